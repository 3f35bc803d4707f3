"""Attention by segments: each response attends to its prompt and to itself, in any architecture of `transformers`.

Registered in `transformers`' attention interface, so that one function serves every model that dispatches through it.
Two kernels compute the same numbers: "split" calls scaled dot product attention once a segment and runs anywhere;
"flex" hands the whole row to torch's flex attention, one launch a layer, for CUDA. A model call without ``segments``
(generation, say) behaves as `transformers`' own SDPA attention does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from bapo.likelihood.layout import Segments

logger = logging.getLogger(__name__)

SEGMENT_ATTENTION = "bapo_segments"

KERNELS = ("flex", "split")
"""Ways to compute the same attention, the one that is tried first on a device that has it standing first."""

# Arguments that change what attention computes and that this function does not know.
_UNSUPPORTED = ("s_aux", "position_bias", "head_mask")


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

    if segments.kernel == "flex" and dropout == 0.0:
        return _flex(query, key, value, scaling, sliding_window, softcap, segments), None
    return _split(query, key, value, scaling, sliding_window, softcap, segments, dropout), None


def kernels_for(device: torch.device) -> tuple[str, ...]:
    """The kernels worth trying on a device, best first: flex only on CUDA, where it agrees with split both ways."""
    return KERNELS if device.type == "cuda" and flex_agrees(device) else KERNELS[1:]


@cache
def flex_agrees(device: torch.device) -> bool:
    """Whether flex attention runs on the device and gives split's outputs and gradients on a small row."""
    generator = torch.Generator().manual_seed(0)
    segments = Segments(((5, (3, 4)), (6, (2,))))
    inputs = [torch.randn(1, heads, 20, 16, generator=generator).to(device).requires_grad_() for heads in (4, 2, 2)]
    found = []
    try:
        for kernel in cast("tuple[Callable[..., Tensor], ...]", (_split, _flex)):
            output = kernel(*inputs, None, 4, None, segments)
            found.append((output, *torch.autograd.grad(output.square().sum(), inputs)))
    except Exception as error:  # compilers fail in many ways, and there is a kernel that needs none
        logger.debug("Flex attention does not run on %s (%s).", device, error)
        return False
    return all(torch.allclose(a, b, rtol=1e-2, atol=1e-2) for a, b in zip(*found, strict=True))


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
    """One attention call a segment: a prompt over itself, a response over its prompt and itself."""
    heads_per_key = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, heads_per_key), repeat_kv(value, heads_per_key)
    lengths = segments.lengths
    queries, keys, values = (tensor.split(lengths, dim=2) for tensor in (query, key, value))

    outputs: list[Tensor] = []
    for prompt_length, response_lengths in segments.groups:
        at_prompt = len(outputs)
        for at, length in enumerate((prompt_length, *response_lengths), start=at_prompt):
            own = at == at_prompt
            key_at = keys[at] if own else torch.cat((keys[at_prompt], keys[at]), dim=2)
            value_at = values[at] if own else torch.cat((values[at_prompt], values[at]), dim=2)
            windowed = sliding_window is not None and sliding_window < key_at.shape[2]
            mask = (
                None
                if own and not windowed
                else segments.mask(length, key_at.shape[2], sliding_window if windowed else None, query.device)
            )
            outputs.append(
                _attend(queries[at], key_at, value_at, mask, scaling, dropout, softcap) if length else queries[at]
            )
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous()


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
        segment, prompt, position = segments.owners(query.device)

        def attends(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
            own = (segment[k] == segment[q]) | (segment[k] == prompt[q])
            allowed = own & (k <= q)
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
