"""An anchor strength that depends on the step alone."""

from bapo.objectives import AnchorControl, anchor_control


@anchor_control("halving")
class Halving(AnchorControl):
    """Half of what it was, every so many steps."""

    def __init__(self, strength: float, every: float = 2) -> None:
        super().__init__(strength)
        self.every = every

    def update(self, step: int, drift: float) -> None:
        if step % self.every == 0:
            self.strength /= 2
