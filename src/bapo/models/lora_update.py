"""The low-rank update of a LoRA layer as one operation, with PEFT's layers, names and files left as they are.

PEFT computes x + dropout(x) A^T B^T in the adapter's float32: it copies every input to float32, draws a random number
per element for each layer, and keeps all of these for the backward pass. Here the products run in the model's own
precision (what autocast would do), and the layers that read the same input share one dropped copy of it and a mask of
a byte per element; nothing else of the input's size is kept. Adapter weights and their gradients stay float32.

Shape suffixes: D inputs, O outputs, R rank.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

_CHANCES = 2**16  # a mask element is one 16-bit draw, so its probability is exact to 1 / 65,536


class SharedDropout:
    """Drops elements of an input; layers that read the same input get the same dropped input."""

    def __init__(self) -> None:
        self._input: weakref.ref[Tensor] | None = None
        self._probability = 0.0
        self._dropped: tuple[Tensor, Tensor] | None = None

    def __call__(self, x: Tensor, probability: float) -> tuple[Tensor, Tensor]:
        """The input with zeros in it, not scaled up, and the mask of what was kept; from torch's global generator."""
        same = self._input is not None and self._input() is x and self._probability == probability
        if not same or self._dropped is None:
            self._input, self._probability = weakref.ref(x), probability
            mask = _draw(x, probability)
            self._dropped = x.detach() * mask.to(x.dtype), mask
        return self._dropped


def _draw(x: Tensor, probability: float) -> Tensor:
    words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64, device=x.device)
    draws = words.random_(torch.iinfo(torch.int64).min, None).view(torch.int16)[: x.numel()]
    return (draws >= round(probability * _CHANCES) - _CHANCES // 2).view(x.shape)


class _LowRankUpdate(torch.autograd.Function):
    """result + scale * (mask * x) A^T B^T, in the precision of x; ``dropped`` is mask * x."""

    @staticmethod
    def forward(
        ctx: Any,
        result: Tensor,
        x: Tensor,
        a_RD: Tensor,
        b_OR: Tensor,
        dropped: Tensor,
        mask: Tensor | None,
        scale: float,
    ) -> Tensor:
        a, b = a_RD.to(x.dtype), b_OR.to(x.dtype) * scale
        dropped = dropped.reshape(-1, a.shape[1])
        inner = dropped @ a.mT
        ctx.save_for_backward(dropped, inner, a, b, mask)
        ctx.scale, ctx.dtype, ctx.shape = scale, a_RD.dtype, x.shape
        return torch.addmm(result.reshape(-1, b.shape[0]), inner, b.mT.to(result.dtype)).view(result.shape)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        dropped, inner, a, b, mask = ctx.saved_tensors
        gradient = upstream[0].to(dropped.dtype).reshape(-1, b.shape[0])
        of_inner = gradient @ b
        of_x = of_a = of_b = None
        if ctx.needs_input_grad[1]:
            of_x = (of_inner @ a).view(ctx.shape)
            of_x = of_x if mask is None else of_x.mul_(mask.to(of_x.dtype))
        if ctx.needs_input_grad[2]:
            of_a = (of_inner.mT @ dropped).to(ctx.dtype)
        if ctx.needs_input_grad[3]:
            of_b = (gradient.mT @ inner).to(ctx.dtype) * ctx.scale
        return upstream[0], of_x, of_a, of_b, None, None, None


def fuse_lora(model: nn.Module) -> int:
    """Let the plain LoRA layers of a PEFT model compute their update in one operation; in place.

    A layer falls back to PEFT's own code whenever its state is special: disabled, merged, several adapters, DoRA.

    Returns:
        The number of layers changed.
    """
    from peft.tuners.lora.layer import Linear

    kinds: tuple[type, ...] = (Linear,)
    try:
        from peft.tuners.lora.bnb import Linear4bit

        kinds = (Linear, Linear4bit)
    except ImportError:
        pass
    shared = SharedDropout()
    layers = [module for module in model.modules() if type(module) in kinds]
    for layer in layers:
        if "forward" not in vars(layer):
            layer.forward = _FusedForward(layer, shared)
    return len(layers)


class _FusedForward:
    """The forward of one layer."""

    def __init__(self, layer: Any, drop: SharedDropout) -> None:
        self.layer, self.drop = layer, drop
        self.original: Callable[..., Tensor] = layer.forward

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        layer = self.layer
        adapter = layer.active_adapters[0] if len(layer.active_adapters) == 1 else None
        plain = (
            adapter in layer.lora_A
            and adapter not in layer.lora_variant
            and not (layer.disable_adapters or layer.merged or args or kwargs or layer.lora_bias.get(adapter))
        )
        if not plain:
            return self.original(x, *args, **kwargs)
        result = layer.base_layer(x)
        x = x.to(result.dtype)  # autocast, where there is any, has chosen the result's precision
        scale, dropped, mask = layer.scaling[adapter], x.detach(), None
        dropout = getattr(layer.lora_dropout[adapter], "p", 0.0)
        if dropout and layer.training:
            dropped, mask = self.drop(x, dropout)
            scale /= 1.0 - dropout
        a, b = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
        return _LowRankUpdate.apply(result, x, a, b, dropped, mask, scale)
