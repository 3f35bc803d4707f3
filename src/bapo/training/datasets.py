"""Data sets in TRL's preference formats, as preferences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from bapo.errors import BapoError, foreign
from bapo.preferences import Preferences, check_text, check_usable, group_pairs, pairs_from_dataset


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


def preferences_from_dataset(data: Iterable[Mapping[str, Any]], called: str = "the training data") -> Preferences:
    """The preferences that rows hold.

    Plain-text prompts stay plain, as in TRL.

    Args:
        data: rows, of a list or of any kind of data set; a format that it has (numpy, torch, ...) is taken off.
        called: what errors call it.

    Raises:
        BapoError: the data cannot be read, a record is no comparison, or a base response is not text.
    """
    failed = f"{called[0].upper()}{called[1:]} could not be read"
    with foreign(failed, "check that it is a data set or a list of rows"):
        check_text(data, failed)
        rows = list(_in_plain_objects(data))
    preferences = group_pairs(called, pairs_from_dataset(rows, called))
    check_usable(preferences)
    return preferences


def _in_plain_objects(data: Any) -> Any:
    """A data set without a format that turns its lists into arrays; one that computes its rows stays as it is."""
    own_format = getattr(data, "format", None)
    if not hasattr(data, "with_format") or (isinstance(own_format, dict) and own_format.get("type") == "custom"):
        return data
    return data.with_format(None)
