"""The low-rank update of a LoRA layer as one operation, with PEFT's layers, names and files left as they are.

PEFT computes x + dropout(x) A^T B^T in the adapter's float32: it copies every input to float32, draws a random number
per element for each layer, and keeps all of these for the backward pass. Here the products run in the model's own
precision (what autocast would do), and the layers that read the same input share one dropped copy of it. Kept are that
copy, or only what it can be made of again where somebody has said so, and the places of the dropped elements. Adapter
weights and their gradients stay float32.

Shape suffixes: D inputs, O outputs, R rank.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bapo.kernels.gradient_rows import rows_of
from bapo.kernels.kept_memory import reusable_empty
from bapo.kernels.probe import agrees, random_rows
from bapo.kernels.remade import recipe_of

_generator: ContextVar[torch.Generator | None] = ContextVar("generator", default=None)


@contextmanager
def seeded_dropout(seed: int) -> Iterator[None]:
    """Dropout of adapters on the CPU depends on this seed alone inside, whatever else draws random numbers."""
    token = _generator.set(torch.Generator().manual_seed(seed))
    try:
        yield
    finally:
        _generator.reset(token)


def dropout_seeds(count: int) -> list[int]:
    """Seeds for as many parts of what is computed, drawn as dropout itself would be."""
    seeds: list[int] = torch.randint(2**62, (count,), generator=_generator.get()).tolist()
    return seeds


class LoraInput:
    """What the adapters of layers with a common input multiply: the input with zeros in it, not scaled up.

    Args:
        x: the input.
        places: flat indices of the zeros; None where there are none.

    Attributes:
        tensor: the result.
        kept: what a backward pass needs, beside the places, to have it again.
        again: gives it again.
    """

    def __init__(self, x: Tensor, places: Tensor | None = None) -> None:
        recipe = recipe_of(x)
        self.places = places
        self.tensor = x.detach() if places is None else _zero_at(reusable_empty(x).copy_(x.detach()), places)
        self.kept = (self.tensor,) if recipe is None else recipe.ingredients
        self.again = _Again(None if recipe is None else recipe.make)


class _Again:
    """Makes the tensor of a `LoraInput` again, once for all who need it in a backward pass."""

    def __init__(self, make: Callable[..., Tensor] | None) -> None:
        self._make = make
        self._users = self._waiting = 0
        self._tensor: Tensor | None = None

    def will_be_needed(self) -> None:
        """Count one more who will need it."""
        self._users += 1

    def __call__(self, places: Tensor | None, *kept: Tensor) -> Tensor:
        if self._make is None:
            return kept[0]
        if self._tensor is None:
            self._tensor, self._waiting = self._make(*kept), self._users
            if places is not None:
                _zero_at(self._tensor, places)
        tensor = self._tensor
        self._waiting -= 1
        if not self._waiting:
            self._tensor = None
        return tensor


class SharedInputs(threading.local):
    """Layers that read the same input get the same `LoraInput`. Of one thread."""

    def __init__(self) -> None:
        self._input: weakref.ref[Tensor] | None = None
        self._as_it_was = (0, 0.0)
        self._last: list[LoraInput] = []  # empty when the input is gone

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return SharedInputs, ()  # a copied model has one of its own

    def __call__(self, x: Tensor, probability: float) -> LoraInput:
        """The input for adapters that drop its elements with this probability, drawn as `seeded_dropout` says."""
        as_it_is = 0 if x.is_inference() else x._version, probability
        same = self._input is not None and self._input() is x and self._as_it_was == as_it_is
        if not same:
            places = drawn_places(x.numel(), probability, x.device) if probability else None
            self._last = last = [LoraInput(x, places)]
            self._input, self._as_it_was = weakref.ref(x, lambda _: last.clear()), as_it_is
        return self._last[0]


def drawn_places(count: int, probability: float, device: torch.device) -> Tensor:
    """Indices below ``count``, each drawn with the same probability and independently; some may be there twice.

    The gaps between them are geometric, so one number is drawn for each index found instead of one for each looked at.
    """
    enough = math.ceil(count * probability + 10 * math.sqrt(count * probability)) + 10  # of ten standard deviations
    gaps = (
        torch.rand(enough, device=device, generator=_generator.get())
        .neg_()
        .log1p_()
        .mul_(1 / math.log1p(-probability))
        .ceil_()
        .clamp_(min=1)
    )
    places = gaps.cumsum(0, dtype=torch.int64).sub_(1)
    within, small = places < count, torch.int32 if count < 2**31 else torch.int64
    if device.type == "cpu":
        return places[within].to(small)
    # Without waiting for the device; that not even the first is within happens for inputs of a few elements only.
    return torch.where(within, places, places[:1].clamp(max=count - 1)).to(small)


def _zero_at(contiguous: Tensor, places: Tensor) -> Tensor:
    """The tensor itself, with zeros put at flat indices."""
    contiguous.view(-1).index_fill_(0, places.long(), 0)
    return contiguous


class _LowRankUpdate(torch.autograd.Function):
    """result + scale * dropped A^T B^T, in the precision of x; ``dropped`` is x with zeros in it."""

    @staticmethod
    def forward(
        ctx: Any,
        result: Tensor,
        x: Tensor,
        a_RD: Tensor,
        b_OR: Tensor,
        dropped: LoraInput,
        scale: float,
    ) -> Tensor:
        inner, b = _keep_for_backward(ctx, x, a_RD, b_OR, dropped, scale)
        updated = result.clone(memory_format=torch.contiguous_format)
        updated.view(-1, b.shape[0]).addmm_(inner, b.mT.to(result.dtype))
        return updated

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        of_x, of_a, of_b = _gradients(ctx, upstream[0].to(ctx.dtype), ctx.needs_input_grad[1])
        return upstream[0], of_x, of_a, of_b, None, None


class _LoraLinear(torch.autograd.Function):
    """x W^T + bias + scale * dropped A^T B^T with a constant W: the products add to each other where they stand."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight_OD: Tensor,
        bias_O: Tensor | None,
        a_RD: Tensor,
        b_OR: Tensor,
        dropped: LoraInput,
        scale: float,
    ) -> Tensor:
        inner, b = _keep_for_backward(ctx, x, a_RD, b_OR, dropped, scale)
        ctx.weight = weight_OD
        result = reusable_empty(x, (*x.shape[:-1], weight_OD.shape[0]))
        rows = result.view(-1, weight_OD.shape[0])
        if bias_O is None:
            torch.mm(x.reshape(-1, x.shape[-1]), weight_OD.mT, out=rows)
        else:
            torch.addmm(bias_O, x.reshape(-1, x.shape[-1]), weight_OD.mT, out=rows)
        rows.addmm_(inner, b.mT)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        of_x, of_a, of_b = _gradients(ctx, upstream[0], ctx.needs_input_grad[0], ctx.weight)
        return of_x, None, None, of_a, of_b, None, None


def _keep_for_backward(
    ctx: Any, x: Tensor, a_RD: Tensor, b_OR: Tensor, dropped: LoraInput, scale: float
) -> tuple[Tensor, Tensor]:
    """The inner product dropped A^T, and scale * B, in the precision of x."""
    a, b = a_RD.to(x.dtype), b_OR.to(x.dtype) * scale
    flat = dropped.tensor.reshape(-1, a.shape[1])
    inner = torch.mm(flat, a.mT, out=reusable_empty(flat, (len(flat), len(a))))
    ctx.save_for_backward(inner, a_RD, b_OR, dropped.places, *dropped.kept)
    ctx.scale, ctx.dtype, ctx.shape, ctx.rows, ctx.dropped_again = scale, x.dtype, x.shape, rows_of(x), dropped.again
    dropped.again.will_be_needed()
    return inner, b


def _gradients(
    ctx: Any, upstream: Tensor, of_input: bool, weight_OD: Tensor | None = None
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Gradients with respect to the input (with that of the constant weight, where one is given), to A and to B."""
    inner, a_RD, b_OR, places, *kept = ctx.saved_tensors
    dropped = ctx.dropped_again(places, *kept).reshape(-1, a_RD.shape[1])
    a, b = a_RD.to(dropped.dtype), b_OR.to(dropped.dtype) * ctx.scale
    runs = ctx.rows.runs
    gradients = [upstream.reshape(-1, b.shape[0])[run] for run in runs]
    of_inners = [gradient @ b for gradient in gradients]
    of_a, of_b = torch.zeros_like(a_RD), torch.zeros_like(b_OR)
    for run, gradient, of_inner in zip(runs, gradients, of_inners, strict=True):
        of_a += of_inner.mT @ dropped[run]
        of_b += gradient.mT @ inner[run]
    if not of_input:
        return None, of_a, of_b.mul_(ctx.scale)
    of_x = torch.zeros_like(dropped)
    for run, of_inner in zip(runs, of_inners, strict=True):
        torch.mm(of_inner, a, out=of_x[run])
    if places is not None:
        _zero_at(of_x, places)
    if weight_OD is not None:
        for run, gradient in zip(runs, gradients, strict=True):
            of_x[run].addmm_(gradient, weight_OD)
    return of_x.view(ctx.shape), of_a, of_b.mul_(ctx.scale)


def fused_forwards(model: nn.Module) -> dict[nn.Module, Callable[..., Tensor]]:
    """The plain LoRA layers of a model, each with a forward that computes its update in one operation.

    Such a forward goes to PEFT's own code whenever the state of its layer is special: disabled, merged, several
    adapters, DoRA, weights that are not whole.
    """
    from peft.tuners.lora.layer import Linear

    kinds: tuple[type, ...] = (Linear,)
    try:
        from peft.tuners.lora.bnb import Linear4bit

        kinds = (Linear, Linear4bit)
    except ImportError:
        pass
    shared = SharedInputs()
    forwards: dict[nn.Module, Callable[..., Tensor]] = {}
    proven: dict[Hashable, bool] = {}
    for layer in model.modules():
        if type(layer) in kinds and "forward" not in vars(layer):
            fused = _FusedForward(layer, shared)
            kind = fused.kind()
            if kind not in proven:
                proven[kind] = _gives_the_same(fused)
            if proven[kind]:
                forwards[layer] = fused
    return forwards


class _FusedForward:
    """The forward of one layer."""

    def __init__(self, layer: Any, shared: SharedInputs) -> None:
        self.layer, self.shared = layer, shared
        self.original: Callable[..., Tensor] = layer.forward

    def adapter(self) -> str | None:
        """The layer's adapter, if it has one in use, of the plain kind, whose weights are whole."""
        layer = self.layer
        name: str | None = layer.active_adapters[0] if len(layer.active_adapters) == 1 else None
        if name not in layer.lora_A or name in layer.lora_variant or layer.lora_bias.get(name):
            return None
        whole = all(type(part[name].weight) is nn.Parameter for part in (layer.lora_A, layer.lora_B))
        return name if whole else None

    def kind(self) -> Hashable:
        """Layers of one kind compute the same with their weights."""
        weights = ((p.shape, p.dtype, p.device) for p in self.layer.parameters())
        return type(self.layer), type(self.layer.base_layer), self.adapter(), tuple(weights)

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        layer, adapter = self.layer, self.adapter()
        if adapter is None or layer.disable_adapters or layer.merged or args or kwargs:
            return self.original(x, *args, **kwargs)
        base = layer.base_layer
        result = None if _is_plain_product(base, x) else base(x)
        if result is not None:
            x = x.to(result.dtype)  # autocast, where there is any, has chosen the result's precision
        dropout = getattr(layer.lora_dropout[adapter], "p", 0.0) if layer.training else 0.0
        dropped, scale = self.shared(x, dropout), layer.scaling[adapter] / (1.0 - dropout)
        a, b = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
        if result is None:
            return _LoraLinear.apply(x, base.weight, base.bias, a, b, dropped, scale)
        return _LowRankUpdate.apply(result, x, a, b, dropped, scale)


def _gives_the_same(fused: _FusedForward) -> bool:
    """Whether a layer's output is PEFT's within rounding, on a few rows, without dropout, with a B that is not zero.

    A layer without an adapter of the plain kind is PEFT's own code anyway, until it has one.
    """
    layer, adapter = fused.layer, fused.adapter()
    if adapter is None or layer.merged:
        return True
    dropout, b = layer.lora_dropout[adapter], layer.lora_B[adapter].weight
    disabled, p, data = layer._disable_adapters, getattr(dropout, "p", None), b.data
    layer._disable_adapters = False
    if p is not None:
        dropout.p = 0.0
    b.data = random_rows(len(b), b.shape[1], b) / b.shape[1]
    try:
        return agrees(layer, fused, random_rows(3, layer.in_features, layer.base_layer.weight), _same_but_for_rounding)
    finally:
        b.data, layer._disable_adapters = data, disabled
        if p is not None:
            dropout.p = p


def _same_but_for_rounding(ours: Tensor, other: Tensor) -> bool:
    """Both round sums of some hundreds of products, in float32 or once more in their precision."""
    ours, other, rounding = ours.float(), other.float(), torch.finfo(ours.dtype).eps
    return bool((ours - other).abs().max() <= 32 * rounding * ours.abs().max())


def _is_plain_product(base: Any, x: Tensor) -> bool:
    """Whether the layer below multiplies with a constant weight and nothing else, and nobody hooks into it."""
    hooks = (base._forward_pre_hooks, base._forward_hooks, base._backward_pre_hooks, base._backward_hooks)
    return (
        type(base) is nn.Linear
        and "forward" not in vars(base)
        and not any(hooks)
        and type(base.weight) is nn.Parameter
        and not base.weight.requires_grad
        and not (base.bias is not None and base.bias.requires_grad)
        and (base.weight.dtype, base.weight.device) == (x.dtype, x.device)
        and not torch.is_autocast_enabled(x.device.type)
    )
