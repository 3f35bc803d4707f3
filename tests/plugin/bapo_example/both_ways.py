"""An anchor that holds base responses from both sides."""

from torch import Tensor

from bapo.objectives import BaseLogps, anchor


@anchor("both-ways")
def both_ways(base: BaseLogps) -> Tensor:
    """Squared drift: base responses should become neither less likely nor more."""
    return base.drift**2
