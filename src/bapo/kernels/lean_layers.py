"""Norms and gated feed-forward layers that keep less for the backward pass, with the numbers that they had.

`transformers` writes them as chains of small operations, each of which keeps its own input: a root-mean-square norm
keeps its input in float32 and again normed, a gated unit keeps the activated gate that the gate alone would give again.
Here each is one operation that keeps what came in, and says how its output can be made again of that, so that adapters
need not keep it either. A layer is changed only if its own forward is, instruction by instruction, one of those that
are known here, and if it then gives the same output to the bit, in training and in evaluation mode.

Shape suffixes: D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bapo.kernels.kept_memory import reusable_empty
from bapo.kernels.probe import agrees, random_rows
from bapo.kernels.remade import note_recipe


class _RMSNorm(torch.autograd.Function):
    """weight * (x * scale) with a constant weight and scale = 1 / sqrt(mean(x^2) + eps), in float32; and that scale."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        precise = reusable_empty(x, dtype=torch.float32).copy_(x)
        squares = torch.mul(precise, precise, out=reusable_empty(precise))
        scale = torch.rsqrt(squares.mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight_D, scale)
        ctx.mark_non_differentiable(scale)
        return _weighted(precise.mul_(scale), weight_D, x), scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_D, scale = ctx.saved_tensors
        normed = x.to(torch.float32) * scale
        gradient = (upstream[0] * weight_D).to(x.dtype).float()
        along = (gradient * normed).mean(-1, keepdim=True)
        return (gradient - normed.mul_(along)).mul_(scale).to(x.dtype), None, None


def _scaled(x: Tensor, weight_D: Tensor, scale: Tensor) -> Tensor:
    return _weighted(reusable_empty(x, dtype=torch.float32).copy_(x).mul_(scale), weight_D, x)


def _weighted(precise: Tensor, weight_D: Tensor, like: Tensor) -> Tensor:
    normed = reusable_empty(like).copy_(precise)
    return normed.mul_(weight_D) if weight_D.dtype == normed.dtype else weight_D * normed


class _GatedUnit(torch.autograd.Function):
    """silu(gate) * up."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return _gated(gate, up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        of_gate = torch.ops.aten.silu_backward(upstream[0] * up, gate)
        return of_gate, _gated(gate, upstream[0])


def _gated(gate: Tensor, up: Tensor) -> Tensor:
    activated: Tensor = torch.ops.aten.silu.out(gate, out=reusable_empty(gate))
    return activated.mul_(up)


class _LeanNorm:
    """The forward of a root-mean-square norm; its own where its weight is trained."""

    def __init__(self, norm: Any) -> None:
        self.norm, self.eps = norm, float(norm.variance_epsilon)
        self.original: Callable[..., Tensor] = norm.forward

    def __call__(self, hidden_states: Tensor) -> Tensor:
        if self.norm.weight.requires_grad:
            return self.original(hidden_states)
        output, scale = _RMSNorm.apply(hidden_states, self.norm.weight, self.eps)
        return note_recipe(output, _scaled, hidden_states, self.norm.weight, scale)


class _LeanFeedForward:
    """The forward of a gated feed-forward layer with SiLU."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer

    def __call__(self, x: Tensor) -> Tensor:
        gate, up = self.layer.gate_proj(x), self.layer.up_proj(x)
        output: Tensor = self.layer.down_proj(note_recipe(_GatedUnit.apply(gate, up), _gated, gate, up))
        return output


def lean_forwards(model: nn.Module) -> dict[nn.Module, Callable[..., Tensor]]:
    """The norms and feed-forward layers that are of the known kinds, each with a forward that keeps less."""
    forwards: dict[nn.Module, Callable[..., Tensor]] = {}
    proven: dict[Hashable, bool] = {}
    for module in model.modules():
        lean = _lean_forward(module)
        if lean is None:
            continue
        kind = _kind(module)
        if kind not in proven:
            proven[kind] = _gives_the_same(module, lean)
        if proven[kind]:
            forwards[module] = lean
    return forwards


def _kind(module: nn.Module) -> Hashable:
    """Layers of one kind compute the same with their weights, so that one probe does for all of them."""
    weights = ((p.dtype, p.device, p.requires_grad) for p in module.parameters())
    return type(module), repr(module), tuple(weights)


def _lean_forward(module: nn.Module) -> Callable[[Tensor], Tensor] | None:
    if "forward" in vars(module):
        return None
    known_norm, known_unit = _known_forwards()
    weight = getattr(module, "weight", None)
    if _does(module, known_norm):
        return _LeanNorm(module) if isinstance(weight, nn.Parameter) and not weight.requires_grad else None
    return _LeanFeedForward(module) if _does(module, known_unit) else None


def _known_forwards() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Those of Llama's norm and gated unit, which most families have copied to the letter."""
    from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

    return LlamaRMSNorm.forward, LlamaMLP.forward


def _does(module: nn.Module, known: Callable[..., Any]) -> bool:
    """Whether the module's class computes what the known forward does: same arguments, same instructions."""
    code = getattr(type(module).forward, "__code__", None)
    return code is not None and _instructions(code) == _instructions(known.__code__)


def _instructions(code: CodeType) -> tuple[Any, ...]:
    return code.co_code, code.co_consts, code.co_names, code.co_varnames, code.co_argcount, code.co_flags


def _gives_the_same(module: nn.Module, lean: Callable[[Tensor], Tensor]) -> bool:
    """Whether both forwards agree to the bit on a few random rows."""
    layer: Any = module
    size = layer.weight.shape[-1] if isinstance(lean, _LeanNorm) else layer.gate_proj.in_features
    return agrees(module, lean, random_rows(3, size, next(module.parameters())))
