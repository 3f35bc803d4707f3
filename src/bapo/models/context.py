"""How many tokens a model can look at."""

from __future__ import annotations

from typing import Any


def context_length(model: Any) -> int | None:
    """Positions that a model has, for prompt and response together; None where its configuration names no bound.

    Beyond them learned positions do not exist, and rotary ones are extrapolated to where the model was never trained.
    """
    config = model.config.get_text_config()
    named = (getattr(config, name, None) for name in ("max_position_embeddings", "max_seq_len"))
    return next((reach for reach in named if isinstance(reach, int) and reach > 0), None)
