"""Weights laid out the way that products with few rows read them, as generation has them: a row for each response.

On a CPU, oneDNN rearranges a weight in every product with it. For thousands of rows that is nothing; for a few it takes
as long as the product. Here each weight is rearranged once, and the numbers stay the same to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from bapo.kernels.probe import agrees, random_rows

SHARE_OF_MEMORY = 0.25
"""Share of the memory that is available which the rearranged copy of a model's weights may take."""


@contextmanager
def packed_weights(model: nn.Module, rows: int) -> Iterator[int]:
    """Inside, linear layers in bf16 on a CPU multiply with a rearranged copy of their weight; without gradients.

    Nothing is rearranged where the copy would take more than `SHARE_OF_MEMORY`, where a layer has a forward of its own,
    or where a probe of the first layer of its kind does not give that layer's own output to the bit.

    Args:
        model: the model; its layers are as they were afterwards.
        rows: rows that are multiplied at once, about.

    Yields:
        The number of layers that use a copy.
    """
    layers: list[Any] = [module for module in model.modules() if _can_be_packed(module)]
    size = sum(layer.weight.numel() * layer.weight.element_size() for layer in layers)
    packed: list[Any] = []
    same: dict[tuple[torch.Size, bool], bool] = {}
    try:
        if size <= SHARE_OF_MEMORY * psutil.virtual_memory().available:
            for layer in layers:
                forward, kind = _packed_forward(layer, rows), (layer.weight.shape, layer.bias is None)
                if forward is None:
                    break
                if kind not in same:
                    same[kind] = agrees(layer, forward, random_rows(rows, layer.in_features, layer.weight))
                if same[kind]:
                    layer.forward = forward
                    packed.append(layer)
        yield len(packed)
    finally:
        for layer in packed:
            del layer.forward


def _can_be_packed(module: Any) -> bool:
    return (
        type(module) is nn.Linear
        and "forward" not in vars(module)
        and type(module.weight) is nn.Parameter
        and (module.weight.device.type, module.weight.dtype) == ("cpu", torch.bfloat16)
    )


def _packed_forward(layer: Any, rows: int) -> Callable[[Tensor], Tensor] | None:
    """The layer's forward with a rearranged weight, by the operations to which `torch.compile` lowers frozen layers."""
    operations = torch.ops.mkldnn
    try:
        weight = operations._reorder_linear_weight(layer.weight.detach(), rows)
    except (AttributeError, RuntimeError):  # built without oneDNN, or on a processor that it does not do this for
        return None

    def forward(x: Tensor) -> Tensor:
        product: Tensor = operations._linear_pointwise(x, weight, layer.bias, "none", [], "")
        return product

    return forward
