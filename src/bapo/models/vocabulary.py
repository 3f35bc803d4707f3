"""Token ids that the embeddings of a model hold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from bapo.errors import BapoError


def check_vocabulary(model: Any, tokenizer: Any, texts: Iterable[Sequence[int]]) -> None:
    """Every id has its row in the embeddings. A tokenizer may well know more tokens, as long as none of them occurs.

    Args:
        model: a causal language model.
        tokenizer: to name the token.
        texts: token ids, the model's input or what it is asked the probability of.

    Raises:
        BapoError: an id has none; names the token.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    largest = max((max(ids) for ids in texts if ids), default=0)
    if largest >= rows:
        token = tokenizer.convert_ids_to_tokens(largest)
        raise BapoError(
            f"The tokenizer's token {token!r} has the id {largest}, and the model has embeddings for {rows} tokens: "
            f"make room for it with model.resize_token_embeddings({len(tokenizer)}) and train them, or use the "
            "tokenizer that the model came with."
        )
