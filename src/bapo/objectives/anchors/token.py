"""The anchor that holds every token."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from bapo.objectives.logps import BaseLogps
from bapo.objectives.registry import anchor


@anchor("token")
def token_anchor(base: BaseLogps) -> Tensor:
    """What its tokens have lost: no token's gain makes up for another's loss.

    Sum over tokens of max(0, log pi_ref - log pi_theta).
    """
    return base.per_response(F.relu(base.ref_tokens - base.tokens))
