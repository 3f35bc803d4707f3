"""Data sets in TRL's preference formats, as preferences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bapo.errors import BapoError, foreign
from bapo.preferences import Preferences, Prompt, group_pairs, pairs_from_dataset


def train_part(data: Any) -> Any:
    """The data to train on: of several parts by name, as a `DatasetDict` has them, the one named ``train``.

    Raises:
        BapoError: no part has that name.
    """
    if not isinstance(data, Mapping):
        return data
    if "train" not in data:
        raise BapoError(
            f"train_dataset has the parts {', '.join(map(str, data))} and none named train: give the one to train on, "
            "such as data['train_prefs']."
        )
    return data["train"]


def preferences_from_dataset(
    data: Iterable[Mapping[str, Any]], called: str = "the training data"
) -> tuple[Preferences, dict[Prompt, tuple[str, ...]]]:
    """Preferences, and the base responses that a column ``base`` holds (a text, or several) by prompt.

    Plain-text prompts stay plain, as in TRL.

    Args:
        data: rows, of a list or of any kind of data set; a format that it has (numpy, torch, ...) is taken off.
        called: what errors call it.

    Raises:
        BapoError: the data cannot be read, a record is no comparison, or a base response is not text.
    """
    with foreign(f"{called[0].upper()}{called[1:]} could not be read", "check that it is a data set or a list of rows"):
        rows = list(_in_plain_objects(data))
    pairs = list(pairs_from_dataset(rows, called))
    bases: dict[Prompt, tuple[str, ...]] = {}
    for number, (row, pair) in enumerate(zip(rows, pairs, strict=True), start=1):
        base = row.get("base")
        if base is None:
            continue
        texts = (base,) if isinstance(base, str) else base
        if not isinstance(texts, Sequence) or not texts or not all(isinstance(t, str) and t.strip() for t in texts):
            raise BapoError(f"{called} row {number}: 'base' must be text that is not empty, or a list of such.")
        bases.setdefault(pair.prompt, tuple(texts))
    preferences = group_pairs(called, pairs)
    if not preferences.groups:
        raise BapoError(f"{called[0].upper()}{called[1:]} hold no usable comparison ({dict(preferences.dropped)}).")
    return preferences, bases


def _in_plain_objects(data: Any) -> Any:
    """A data set without a format that turns its lists into arrays; one that computes its rows stays as it is."""
    own_format = getattr(data, "format", None)
    if not hasattr(data, "with_format") or (isinstance(own_format, dict) and own_format.get("type") == "custom"):
        return data
    return data.with_format(None)
