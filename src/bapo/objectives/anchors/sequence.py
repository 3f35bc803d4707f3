"""The anchor of the paper."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from bapo.objectives.logps import BaseLogps
from bapo.objectives.registry import anchor


@anchor("sequence")
def sequence_anchor(base: BaseLogps) -> Tensor:
    """What a response has lost as a whole: equation 5 of the BAPO paper.

    max(0, log pi_ref(y_b|x) - log pi_theta(y_b|x)).
    """
    return F.relu(-base.drift)
