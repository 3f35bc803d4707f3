"""Data sets in TRL's preference formats, as preferences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from bapo.errors import BapoError
from bapo.preferences import Preferences, Prompt, group_pairs, pairs_from_dataset


def preferences_from_dataset(data: Iterable[Mapping[str, Any]]) -> tuple[Preferences, dict[Prompt, tuple[str, ...]]]:
    """Preferences, and the base responses that a column ``base`` holds (a text, or several) by prompt.

    Plain-text prompts stay plain, as in TRL.

    Raises:
        BapoError: a record is no comparison, or a base response is not text.
    """
    rows = list(data)
    pairs = list(pairs_from_dataset(rows, "the training data"))
    bases: dict[Prompt, tuple[str, ...]] = {}
    for number, (row, pair) in enumerate(zip(rows, pairs, strict=True), start=1):
        base = row.get("base")
        if base is None:
            continue
        texts = (base,) if isinstance(base, str) else tuple(base)
        if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            raise BapoError(
                f"the training data row {number}: 'base' must be text that is not empty, or a list of such."
            )
        bases.setdefault(pair.prompt, texts)
    preferences = group_pairs("the training data", pairs)
    if not preferences.groups:
        raise BapoError(f"The training data hold no usable comparison ({dict(preferences.dropped)}).")
    return preferences, bases
