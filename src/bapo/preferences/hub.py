"""Preference data sets of the hub, and data sets saved to disk, in TRL's formats."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bapo.errors import BapoError, foreign
from bapo.files import readable
from bapo.preferences.formats import pair_from_record
from bapo.preferences.record import Pair


def pairs_from_dataset(rows: Iterable[Mapping[str, Any]], name: str) -> Iterator[Pair]:
    """Comparisons of any iterable of records in one of TRL's preference formats."""
    for number, row in enumerate(rows, start=1):
        yield pair_from_record(readable(row), f"{name} row {number}")


def read_hub(name: str) -> Iterator[Pair]:
    """Comparisons of ``organization/data-set`` (its train split) or ``organization/data-set:split``.

    Raises:
        BapoError: the data set or the split cannot be had.
    """
    identifier, _, split = name.partition(":")
    with foreign(
        f"The data set {identifier} could not be read from the hub",
        "check its name and split, or download it and name the file",
    ):
        from datasets import load_dataset

        rows = list(load_dataset(identifier, split=split or "train"))
    yield from pairs_from_dataset(rows, name)


def read_saved_dataset(folder: Path) -> Iterator[Pair]:
    """Comparisons of a folder written by ``save_to_disk``: a data set, or the train split of several.

    Raises:
        BapoError: the folder holds no data set, a damaged one, or several splits without ``train``.
    """
    with foreign(
        f"The folder {folder} holds no data set saved with save_to_disk, or a damaged one", "name one, or a file"
    ):
        from datasets import Dataset, load_from_disk

        saved = load_from_disk(str(folder))
    if not isinstance(saved, Dataset) and "train" not in saved:
        raise BapoError(
            f"The folder {folder} holds several splits ({', '.join(saved)}) and no train: name one of them."
        )
    with foreign(f"The data set in {folder} could not be read", "save it again"):
        own = saved if isinstance(saved, Dataset) else saved["train"]
        own.data.validate(full=True)  # a damaged one may end the process otherwise
        rows = list(own)
    yield from pairs_from_dataset(rows, folder.name)
