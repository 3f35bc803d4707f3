"""The strength follows the drift."""

from __future__ import annotations

from bapo.objectives.registry import AnchorControl, anchor_control
from bapo.settings import RANGES, Range

MOST_ERROR = 0.2


@anchor_control("adaptive", drift_target=Range(0, 100, "(]"), gain=Range(0, 1, "(]"))
class Adaptive(AnchorControl):
    """Rises while base responses lose more nats per token than a target (0.01), and falls while they lose less.

    strength *= 1 + gain * clip((loss - target) / target, -0.2, 0.2), where loss is minus the drift per token: the
    controller by which Ziegler et al. 2019 (section 2.2, gain 0.1) hold a KL divergence at a target.

    Args:
        strength: of the first step; above 0, which would stay 0.
        drift_target: nats per token that base responses may lose.
        gain: how fast it moves: at most a fifth of this share in a step.
    """

    def __init__(self, strength: float, drift_target: float = 0.01, gain: float = 0.1) -> None:
        super().__init__(strength)
        self.drift_target, self.gain = drift_target, gain

    def update(self, step: int, drift: float) -> None:
        """See `AnchorControl.update`."""
        error = (-drift - self.drift_target) / self.drift_target
        moved = self.strength * (1 + self.gain * max(-MOST_ERROR, min(MOST_ERROR, error)))
        self.strength = min(moved, RANGES["anchor_strength"].most)
