"""Preference data sets of the hub, and data sets saved to disk, in TRL's formats."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bapo.errors import BapoError
from bapo.preferences.formats import pair_from_record
from bapo.preferences.record import Pair


def pairs_from_dataset(rows: Iterable[Mapping[str, Any]], name: str) -> Iterator[Pair]:
    """Comparisons of any iterable of records in one of TRL's preference formats."""
    for number, row in enumerate(rows, start=1):
        yield pair_from_record(row, f"{name} row {number}")


def read_hub(name: str) -> Iterator[Pair]:
    """Comparisons of ``organization/data-set`` (its train split) or ``organization/data-set:split``.

    Raises:
        BapoError: the data set or the split cannot be had.
    """
    from datasets import load_dataset

    identifier, _, split = name.partition(":")
    try:
        rows = load_dataset(identifier, split=split or "train")
    except Exception as error:  # the hub client raises many kinds; all of them mean the same to the user
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BapoError(
            f"The data set {identifier} could not be read from the hub ({first}): check its name and split, "
            "or download it and name the file."
        ) from error
    yield from pairs_from_dataset(rows, name)


def read_saved_dataset(folder: Path) -> Iterator[Pair]:
    """Comparisons of a folder written by ``datasets.Dataset.save_to_disk``.

    Raises:
        BapoError: the folder holds no data set, or several splits.
    """
    from datasets import Dataset, load_from_disk

    try:
        rows = load_from_disk(str(folder))
    except (FileNotFoundError, ValueError) as error:
        raise BapoError(f"The folder {folder} holds no data set saved with save_to_disk.") from error
    if not isinstance(rows, Dataset):
        raise BapoError(
            f"The folder {folder} holds several splits ({', '.join(rows)}): name the folder of one of them."
        )
    yield from pairs_from_dataset(rows, folder.name)
