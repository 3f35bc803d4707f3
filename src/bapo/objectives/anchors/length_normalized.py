"""The anchor in nats per token."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from bapo.objectives.logps import BaseLogps
from bapo.objectives.registry import anchor


@anchor("length-normalized")
def length_normalized_anchor(base: BaseLogps) -> Tensor:
    """What a response has lost per token: equation 5 divided by the number of its tokens.

    0 of a response without any.
    """
    return F.relu(-base.drift) / base.lengths.clamp(min=1)
