"""The probe of a layer's other forward: a few rows in evaluation and in training mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def agrees(
    layer: Any,
    forward: Callable[[Tensor], Tensor],
    rows: Tensor,
    same: Callable[[Tensor, Tensor], bool] = torch.equal,
) -> bool:
    """Whether a layer and another forward for it give the same, whichever mode the layer is in.

    What lies below the layer is in evaluation mode meanwhile, and draws nothing.

    Args:
        layer: the layer; its modes are as they were afterwards.
        forward: what would take the place of its own.
        rows: what both are given.
        same: whether its output, and the other one's, count as the same; to the bit by default.
    """
    training = [part for part in layer.modules() if part.training]
    layer.eval()
    try:
        for layer.training in (False, True):
            if not same(layer(rows), forward(rows)):
                return False
    except (RuntimeError, TypeError, AttributeError):
        return False
    finally:
        layer.eval()
        for part in training:
            part.training = True
    return True


def random_rows(count: int, size: int, like: nn.Parameter) -> Tensor:
    """The same random rows (count, size) every time, on the weight's device, in its precision if that computes."""
    dtype = like.dtype if like.is_floating_point() else torch.bfloat16
    return torch.randn(count, size, generator=torch.Generator().manual_seed(0)).to(like.device, dtype)
