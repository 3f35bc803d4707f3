"""How many tokens a model can look at."""

from __future__ import annotations

from typing import Any

from bapo.models.positions import rotary_kinds


def context_length(model: Any) -> int | None:
    """Positions that a model has, for prompt and response together; None where its configuration names no bound.

    Beyond them learned positions do not exist, and rotary ones are extrapolated to where the model was never trained.
    Dynamic ones stretch by their factor beyond the length that the configuration names.
    """
    config = model.config.get_text_config()
    named = (getattr(config, name, None) for name in ("max_position_embeddings", "max_seq_len"))
    reach = next((bound for bound in named if isinstance(bound, int) and bound > 0), None)
    factors = [rope.get("factor") or 1.0 for rope, kind in rotary_kinds(config.to_dict()) if "dynamic" in kind]
    return None if reach is None else int(reach * max(factors, default=1.0))
