"""Attention by segments: each attends to itself and what stands above it, in any architecture of `transformers`.

Registered in `transformers`' attention interface, so one function serves every model that dispatches through it. Two
backends compute the same numbers: "split" calls scaled dot product attention once a segment and runs anywhere; "flex"
hands the whole row to torch's flex attention, one launch a layer, for CUDA. A model call without ``segments``
(generation, say) behaves as `transformers`' own SDPA attention does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from bapo.kernels.gradient_rows import rows_of
from bapo.kernels.kept_memory import reusable_empty
from bapo.likelihood.layout import Segments

if TYPE_CHECKING:
    from bapo.likelihood.strands import Ties

logger = logging.getLogger(__name__)

SEGMENT_ATTENTION = "bapo_segments"

BACKENDS = ("flex", "split")
"""Ways to compute the same attention, the one that is tried first on a device that has it standing first."""

QUERIES_AT_ONCE = 256
"""Queries whose attention weights are held at once in a backward pass."""

_UNSUPPORTED = ("s_aux", "position_bias", "head_mask")  # arguments that this function does not know


class UnsupportedAttentionError(Exception):
    """The model asks for an attention that segments cannot express; callers take the plain path instead."""


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    dropout: float,
    softcap: float | None,
) -> Tensor:
    """Attention of (1, heads, queries, dim) over (1, heads, keys, dim); ``mask`` None means causal, square."""
    if softcap is None:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scaling
        )
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    scores = torch.tanh((query @ key.transpose(-1, -2)) * scale / softcap) * softcap
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    boolean = mask.dtype == torch.bool
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min) if boolean else scores + mask
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    return F.dropout(weights, dropout) @ value


def segment_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    segments: Segments | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention function for `transformers.AttentionInterface`.

    Args:
        module: the attention layer (its ``num_key_value_groups`` is read).
        query: (1, heads, T, dim).
        key: (1, key heads, T, dim).
        value: (1, key heads, T, dim).
        attention_mask: used only without ``segments``.
        scaling: factor on the scores; None is dim ** -0.5.
        dropout: probability of dropping an attention weight.
        sliding_window: keys further back than this are not seen.
        softcap: scores s become softcap * tanh(s / softcap).
        segments: where prompts and responses stand; None falls back to ordinary attention.
        kwargs: whatever else a model passes on.

    Returns:
        (1, T, heads, dim), and None for the weights.

    Raises:
        UnsupportedAttentionError: the layer asks for something that this function does not know (attention sinks, ...).
    """
    unknown = [name for name in _UNSUPPORTED if kwargs.get(name) is not None]
    if unknown or not getattr(module, "is_causal", True):
        raise UnsupportedAttentionError(", ".join(unknown) or "bidirectional attention")
    if segments is None:
        return _ordinary_attention(module, query, key, value, attention_mask, scaling, dropout, softcap, **kwargs)

    if segments.ties is not None:
        key, value = _Tied.apply(key, value, segments)
    if segments.backend == "flex" and dropout == 0.0:
        return _flex(query, key, value, scaling, sliding_window, softcap, segments), None
    return _split(query, key, value, scaling, sliding_window, softcap, segments, dropout), None


def backends_for(device: torch.device) -> tuple[str, ...]:
    """The backends worth trying on a device, best first: flex only on CUDA, where it agrees with split both ways."""
    return BACKENDS if device.type == "cuda" and flex_agrees(device) else BACKENDS[1:]


@cache
def flex_agrees(device: torch.device) -> bool:
    """Whether flex attention runs on the device and is as near to the true outputs and gradients as split is.

    The truth is split's in float64, on a small row; as near means within ten times of split's own distance from it.
    """
    generator = torch.Generator().manual_seed(0)
    layout = (5, 3, 4, 6, 2), (-1, 0, 0, -1, 3)
    inputs = [torch.randn(1, heads, 20, 16, generator=generator) for heads in (4, 2, 2)]

    def results(backend: Callable[..., Tensor], where: torch.device, dtype: torch.dtype) -> list[Tensor]:
        leaves = [tensor.to(where, dtype).requires_grad_() for tensor in inputs]
        output = backend(*leaves, None, 4, None, Segments(*layout))
        return [part.cpu().double() for part in (output, *torch.autograd.grad(output.square().sum(), leaves))]

    try:
        by_split, by_flex = (results(backend, device, torch.float32) for backend in (_split, _flex))
    except Exception as error:  # compilers fail in many ways, and there is a backend that needs none
        logger.debug("Flex attention does not run on %s (%s).", device, error)
        return False
    truth = results(_split, torch.device("cpu"), torch.float64)
    return all(
        float((flex - true).norm()) <= 10 * float((split - true).norm())
        for flex, split, true in zip(by_flex, by_split, truth, strict=True)
    )


def _split(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None,
    sliding_window: int | None,
    softcap: float | None,
    segments: Segments,
    dropout: float = 0.0,
) -> Tensor:
    """One attention call a segment, over itself and what stands above it."""
    if softcap is None and dropout == 0.0:
        scale = scaling if scaling is not None else query.shape[-1] ** -0.5
        output: Tensor = _SplitAttention.apply(query, key, value, scale, sliding_window, segments)
        return output
    heads_per_key = query.shape[1] // key.shape[1]
    outputs: list[Tensor] = []
    for seen in segments.seen():
        response = seen[-1]
        if response.start == response.stop:
            continue
        keys, values = (repeat_kv(_at(tensor, seen), heads_per_key) for tensor in (key, value))
        mask = _mask(segments, response.stop - response.start, keys.shape[2], sliding_window, query.device)
        outputs.append(_attend(query[:, :, response], keys, values, mask, scaling, dropout, softcap))
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous()


def _at(tensor: Tensor, seen: tuple[slice, ...]) -> Tensor:
    """The seen places of (1, heads, T, dim), side by side."""
    return tensor[:, :, seen[0]] if len(seen) == 1 else torch.cat([tensor[:, :, place] for place in seen], dim=2)


def _mask(segments: Segments, queries: int, keys: int, window: int | None, device: torch.device) -> Tensor | None:
    """What the last ``queries`` of the ``keys`` may see; None where that is all that is causal, in a square."""
    windowed = window is not None and window < keys
    return segments.mask(queries, keys, window if windowed else None, device) if windowed or queries < keys else None


class _Tied(torch.autograd.Function):
    """Keys and values of a strand, (1, key heads, T, dim), and behind them those that it needs of other strands."""

    @staticmethod
    def forward(ctx: Any, key: Tensor, value: Tensor, segments: Segments) -> tuple[Tensor, ...]:
        ties, places = cast("Ties", segments.ties), segments.places()
        ctx.segments, ctx.layer = segments, ties.layers
        ties.layers += 1
        for at, number, strands in ties.lent:
            keys_and_values = key[:, :, places[at]], value[:, :, places[at]]
            ties.exchange.leave((ctx.layer, number), keys_and_values, takers=len(strands))
        others = [ties.exchange.take((ctx.layer, number)) for number in ties.borrowed]
        return tuple(torch.cat(parts, dim=2) for parts in zip((key, value), *others, strict=True))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        ties, places = ctx.segments.ties, ctx.segments.places()
        for place, number in zip(places[ctx.segments.count :], ties.borrowed, strict=True):
            theirs = tuple(whole[:, :, place] for whole in upstream)
            ties.exchange.leave((ctx.layer, number, ties.strand), theirs)
        gradients = tuple(whole[:, :, : ctx.segments.tokens].clone() for whole in upstream)
        for at, number, strands in ties.lent:
            for strand in strands:
                for whole, part in zip(gradients, ties.exchange.take((ctx.layer, number, strand)), strict=True):
                    whole[:, :, places[at]] += part
        return *gradients, None


class _SplitAttention(torch.autograd.Function):
    """Attention by segments whose backward is plain matrix products.

    Forward is scaled dot product attention. Its own backward for the CPU is several times slower than the products that
    it consists of, so here the weights are computed again from query and key, for a bounded number of queries at once,
    and the query heads of a key head are one product. Kept for it are query, key, value and output, nothing else.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        sliding_window: int | None,
        segments: Segments,
    ) -> Tensor:
        key_heads, heads_per_key = key.shape[1], query.shape[1] // key.shape[1]
        output = reusable_empty(query, (1, query.shape[2], query.shape[1], value.shape[-1]))
        for seen in segments.seen():
            response = seen[-1]
            length = response.stop - response.start
            if not length:
                continue
            keys, values = _at(key, seen), _at(value, seen)
            if length > QUERIES_AT_ONCE:  # blocks above the diagonal are left out, which pays for long prompts
                keys, values = repeat_kv(keys, heads_per_key), repeat_kv(values, heads_per_key)
                mask = _mask(segments, length, keys.shape[2], sliding_window, query.device)
                attended = _attend(query[:, :, response], keys, values, mask, scale, 0.0, None)
            else:
                bias = segments.bias(length, keys.shape[2], sliding_window, heads_per_key, query)
                queries = query[:, :, response].reshape(1, key_heads, heads_per_key * length, -1)
                attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias, scale=scale)
            output[0, response] = attended.reshape(query.shape[1], length, -1).transpose(0, 1)
        ctx.save_for_backward(query, key, value)
        ctx.scale, ctx.window, ctx.segments, ctx.rows = scale, sliding_window, segments, rows_of(output.flatten(2))
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value = ctx.saved_tensors
        key_heads, heads_per_key = key.shape[1], query.shape[1] // key.shape[1]
        gradient = upstream[0].transpose(1, 2)
        of_query, of_key, of_value = (torch.zeros_like(tensor) for tensor in (query, key, value))
        # What several segments add to one above them is summed in full precision.
        precise = torch.promote_types(key.dtype, torch.float32)
        places = ctx.segments.places()
        shared = {at: torch.zeros_like(key[0, :, places[at]], dtype=precise) for at in set(ctx.segments.parents) - {-1}}
        shared_values = {at: torch.zeros_like(value[0, :, places[at]], dtype=precise) for at in shared}

        def by_key_head(tensor: Tensor, place: slice) -> Tensor:
            return tensor[0, :, place].reshape(key_heads, -1, tensor.shape[-1])

        for line, seen in zip(ctx.segments.lines(), ctx.segments.seen(), strict=True):
            response = seen[-1]
            if response.start == response.stop or not ctx.rows.reach(response):
                continue
            keys, values = _at(key, seen)[0], _at(value, seen)[0]
            before = keys.shape[1] - (response.stop - response.start)
            blocks = []
            for start in range(response.start, response.stop, QUERIES_AT_ONCE):
                rows = slice(start, min(start + QUERIES_AT_ONCE, response.stop))
                reach = before + rows.stop - response.start
                bias = ctx.segments.bias(rows.stop - rows.start, reach, ctx.window, heads_per_key, key)
                pushed_query, *pushed = _attention_gradients(
                    by_key_head(query, rows),
                    keys[:, :reach],
                    values[:, :reach],
                    by_key_head(gradient, rows),
                    bias,
                    ctx.scale,
                )
                of_query[0, :, rows] = pushed_query.view(key_heads * heads_per_key, -1, query.shape[-1])
                blocks.append(pushed)
            for whole, sums, of_blocks in (
                (of_key, shared, [of_keys for of_keys, _ in blocks]),
                (of_value, shared_values, [of_values for _, of_values in blocks]),
            ):
                own_sum = of_blocks[-1]
                if len(of_blocks) > 1:
                    own_sum = own_sum.to(precise)
                    for block in of_blocks[:-1]:
                        own_sum[:, : block.shape[1]] += block
                parts = own_sum.split([place.stop - place.start for place in seen], dim=1)
                for at, place, part in zip(line, seen, parts, strict=True):
                    if at in sums:
                        sums[at] += part
                    else:
                        whole[0, :, place] = part
        for whole, sums in ((of_key, shared), (of_value, shared_values)):
            for at, own_sum in sums.items():
                whole[0, :, places[at]] = own_sum
        return of_query, of_key, of_value, None, None, None


def _attention_gradients(
    query: Tensor, key: Tensor, value: Tensor, gradient: Tensor, bias: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of softmax(scale * query key^T) value.

    Args:
        query: (key heads, query heads of a key head * queries, dim).
        key: (key heads, keys, dim).
        value: (key heads, keys, dim).
        gradient: of the attention's output, shaped as the query.
        bias: (query heads of a key head * queries, keys), 0 where a key is seen and -inf elsewhere.
        scale: factor on the scores.
    """
    weights = torch.baddbmm(bias, query, key.mT, alpha=scale).softmax(-1)
    of_weights = torch.bmm(gradient, value.mT)
    of_scores = torch.ops.aten._softmax_backward_data(of_weights, weights, -1, weights.dtype).mul_(scale)
    return torch.bmm(of_scores, key), torch.bmm(of_scores.mT, query), torch.bmm(weights.mT, gradient)


def _flex(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None,
    sliding_window: int | None,
    softcap: float | None,
    segments: Segments,
) -> Tensor:
    """The whole row in one call, over the blocks that hold something to attend to."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention
    from transformers.integrations.flex_attention import compile_friendly_flex_attention

    name = ("flex", sliding_window, query.device)
    if name not in segments.masks:
        segment, position, sees = segments.owners(query.device)

        def attends(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
            allowed = sees[segment[q], segment[k]] & (k <= q)
            return allowed if sliding_window is None else allowed & (position[q] - position[k] < sliding_window)

        tokens = query.shape[2]
        segments.masks[name] = create_block_mask(attends, None, None, tokens, tokens, device=query.device.type)

    def capped(score: Tensor, batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        assert softcap is not None
        return softcap * torch.tanh(score / softcap)

    compute: Any = compile_friendly_flex_attention if query.is_cuda else flex_attention
    output = compute(
        query,
        key,
        value,
        score_mod=None if softcap is None else capped,
        block_mask=segments.masks[name],
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    whole_row: Tensor = output.transpose(1, 2).contiguous()
    return whole_row


def _ordinary_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None,
    dropout: float,
    softcap: float | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What the model would have computed without us: SDPA, or explicit scores where they are soft-capped."""
    if softcap is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    heads_per_key = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, heads_per_key), repeat_kv(value, heads_per_key)
    if attention_mask is None and query.shape[2] != key.shape[2]:  # one new token against a cache
        attention_mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device)
    return _attend(query, key, value, attention_mask, scaling, dropout, softcap).transpose(1, 2).contiguous(), None


AttentionInterface.register(SEGMENT_ATTENTION, segment_attention)
AttentionMaskInterface.register(SEGMENT_ATTENTION, sdpa_mask)
