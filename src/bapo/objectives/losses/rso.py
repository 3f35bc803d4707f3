"""The hinge on the normalized likelihood; `bapo.preferences.rejection_sampling` has the sampling of its pairs."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from bapo.objectives.logps import PairLogps
from bapo.objectives.registry import pair_loss


@pair_loss("rso", "Hinge on the normalized likelihood (Liu et al. 2023)")
def rso_hinge(pairs: PairLogps, beta: float) -> Tensor:
    """max(0, 1 - beta * margin), the hinge on the normalized likelihood. Liu et al. 2023 (RSO), equation 10.

    beta is the paper's gamma: 1 / beta nats of margin are enough.
    """
    return F.relu(1 - beta * pairs.margin)
