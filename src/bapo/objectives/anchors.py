"""Anchors: what a base response costs when it has become less likely. (K,) losses in nats, no reduction.

At equality the hinge and its gradient are zero, so that nothing pulls at step 0.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from bapo.objectives.logps import BaseLogps


def sequence_anchor(base: BaseLogps) -> Tensor:
    """max(0, log pi_ref(y_b|x) - log pi_theta(y_b|x)): equation 5 of the BAPO paper."""
    return F.relu(-base.drift)


def token_anchor(base: BaseLogps) -> Tensor:
    """Sum over tokens of max(0, log pi_ref - log pi_theta): no token's gain makes up for another's loss."""
    return base.per_response(F.relu(base.ref_tokens - base.tokens))


def length_normalized_anchor(base: BaseLogps) -> Tensor:
    """Equation 5 divided by the number of tokens: nats per token; 0 of a response without any."""
    return F.relu(-base.drift) / base.lengths.clamp(min=1)


ANCHORS = {"sequence": sequence_anchor, "token": token_anchor, "length-normalized": length_normalized_anchor}
