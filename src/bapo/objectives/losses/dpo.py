"""Direct Preference Optimization."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from bapo.objectives.logps import PairLogps
from bapo.objectives.registry import pair_loss


@pair_loss("dpo", "Direct Preference Optimization (Rafailov et al. 2023)")
def dpo(pairs: PairLogps, beta: float) -> Tensor:
    """-log sigmoid(beta * margin). Rafailov et al. 2023, equation 7; equation 4 of the BAPO paper."""
    return -F.logsigmoid(beta * pairs.margin)
