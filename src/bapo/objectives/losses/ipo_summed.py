"""IPO on summed log-ratios."""

from __future__ import annotations

from torch import Tensor

from bapo.objectives.logps import PairLogps
from bapo.objectives.registry import pair_loss


@pair_loss("ipo-summed", "IPO as written (Azar et al. 2023)")
def ipo_summed(pairs: PairLogps, beta: float) -> Tensor:
    """(margin - 1 / (2 beta))^2 on summed log-ratios, as written. Azar et al. 2023, equation 17 with tau = beta."""
    return (pairs.margin - 1 / (2 * beta)) ** 2
