"""Rotary frequencies that depend on the longest position of a whole pass: LongRoPE and dynamic NTK.

Such a model gives a short sequence other numbers when a long one is computed beside it, or, with dynamic NTK in
`transformers`, before it. Whoever computes several sequences asks here up to which length they may share a pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn


def steady_length(config: Any) -> int | None:
    """Tokens up to which every sequence has the same frequencies, whatever is in its pass; None for any length.

    A sequence that is longer must be computed in a pass of its own.
    """
    text = config.get_text_config()
    said = text.to_dict()
    longest = said.get("max_position_embeddings")
    starts = [
        rope.get("original_max_position_embeddings") or said.get("original_max_position_embeddings") or longest
        if kind != "dynamic"
        else longest
        for rope, kind in rotary_kinds(said)
        if "dynamic" in kind or kind in ("longrope", "su")
    ]
    return min((int(start) for start in starts if start is not None), default=1 if starts else None)


def forget_positions(model: nn.Module) -> None:
    """Let dynamic frequencies be those of a model that has computed nothing yet.

    `transformers` lets them grow with the longest sequence so far, and shorter ones are computed with what is left.
    """
    for module in model.modules():
        kinds: Any = getattr(module, "rope_type", None)
        for prefix, kind in (
            [(f"{name}_", kind) for name, kind in kinds.items()] if isinstance(kinds, dict) else [("", kinds)]
        ):
            original = getattr(module, f"{prefix}original_inv_freq", None)
            if "dynamic" in str(kind) and isinstance(original, Tensor):
                current = getattr(module, f"{prefix}inv_freq")
                setattr(module, f"{prefix}inv_freq", original.to(current.device))
                setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)


def rotary_kinds(said: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], str]]:
    """All descriptions of rotary embeddings in a configuration, each with its kind."""
    for value in said.values():
        if isinstance(value, Mapping):
            kind = value.get("rope_type") or value.get("type")
            if isinstance(kind, str):
                yield value, kind
            yield from rotary_kinds(value)
