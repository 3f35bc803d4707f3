"""Norms and gated feed-forward layers that keep less for the backward pass, with the numbers that they had.

`transformers` writes them as chains of small operations, each of which keeps its own input: a root-mean-square norm
keeps its input in float32 and again normed, a gated unit keeps the activated gate that the gate alone would give again.
Here each is one operation that keeps what came in. A layer is changed only if it then gives the same output to the bit.

Shape suffixes: D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _RMSNorm(torch.autograd.Function):
    """weight * (x / sqrt(mean(x^2) + eps)), with a constant weight; inside in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        precise = x.to(torch.float32)
        scale = torch.rsqrt(precise.pow(2).mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight_D, scale)
        return weight_D * (precise * scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_D, scale = ctx.saved_tensors
        normed = x.to(torch.float32) * scale
        gradient = (upstream[0] * weight_D).to(x.dtype).float()
        along = (gradient * normed).mean(-1, keepdim=True)
        return (gradient - normed.mul_(along)).mul_(scale).to(x.dtype), None, None


class _GatedUnit(torch.autograd.Function):
    """silu(gate) * up."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        of_gate = torch.ops.aten.silu_backward(upstream[0] * up, gate)
        return of_gate, F.silu(gate).mul_(upstream[0])


class _LeanNorm:
    """The forward of a root-mean-square norm; its own where its weight is trained."""

    def __init__(self, norm: Any) -> None:
        self.norm, self.eps = norm, float(norm.variance_epsilon)
        self.original: Callable[..., Tensor] = norm.forward

    def __call__(self, hidden_states: Tensor) -> Tensor:
        if self.norm.weight.requires_grad:
            return self.original(hidden_states)
        output: Tensor = _RMSNorm.apply(hidden_states, self.norm.weight, self.eps)
        return output


class _LeanFeedForward:
    """The forward of a gated feed-forward layer with SiLU."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer

    def __call__(self, x: Tensor) -> Tensor:
        output: Tensor = self.layer.down_proj(_GatedUnit.apply(self.layer.gate_proj(x), self.layer.up_proj(x)))
        return output


def lean_layers(model: nn.Module) -> int:
    """Let the norms and feed-forward layers that are of the known kinds keep less; in place.

    Returns:
        The number of layers changed.
    """
    changed = 0
    for module in model.modules():
        lean = _lean_forward(module)
        if lean is not None and _gives_the_same(module, lean):
            module.forward = lean
            changed += 1
    return changed


def _lean_forward(module: nn.Module) -> Callable[[Tensor], Tensor] | None:
    if "forward" in vars(module):
        return None
    names = {name for name, _ in module.named_children()}
    weight = getattr(module, "weight", None)
    if hasattr(module, "variance_epsilon") and isinstance(weight, nn.Parameter) and not weight.requires_grad:
        return _LeanNorm(module)
    return _LeanFeedForward(module) if names >= {"gate_proj", "up_proj", "down_proj", "act_fn"} else None


@torch.no_grad()
def _gives_the_same(module: nn.Module, lean: Callable[[Tensor], Tensor]) -> bool:
    """Whether both forwards agree to the bit on a few random tokens."""
    layer: Any = module
    size = layer.weight.shape[-1] if isinstance(lean, _LeanNorm) else layer.gate_proj.in_features
    own = next(module.parameters())
    dtype = own.dtype if own.is_floating_point() else torch.bfloat16
    probe = torch.randn(3, size, generator=torch.Generator().manual_seed(0)).to(own.device, dtype)
    training = module.training
    module.eval()
    try:
        return torch.equal(layer(probe), lean(probe))
    except (RuntimeError, TypeError, AttributeError):
        return False
    finally:
        module.train(training)
