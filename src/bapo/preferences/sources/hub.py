"""Data sets of the hub, in TRL's formats."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bapo.errors import foreign
from bapo.preferences.arrow import check_readable, rows_of
from bapo.preferences.formats import pairs_from_dataset
from bapo.preferences.record import Pair
from bapo.preferences.registry import source


def _fits(name: str) -> bool:
    """``organization/name`` or ``organization/name:split``, and nothing that looks like a path or lies there.

    A name may have a dot, as in ``organization/llama-3.1-mixture``; letters alone behind it are a file's kind.
    """
    path = Path(name)
    is_file = path.suffix[1:].isalpha()
    return name.count("/") == 1 and not is_file and not name.startswith((".", "/", "~")) and not path.exists()


@source("hub", "a data set of the hub", example="organization/name", fits=_fits)
def read_hub(name: str, data_folder: Path | None = None) -> Iterator[Pair]:
    """Comparisons of ``organization/data-set`` (its train split) or ``organization/data-set:split``.

    Raises:
        BapoError: the data set or the split cannot be had.
    """
    identifier, _, split = name.partition(":")
    failed = f"The data set {identifier} could not be read from the hub"
    todo = "check its name and split, or download it and name the file"
    with foreign(failed, todo):
        from datasets import load_dataset

        table = load_dataset(identifier, split=split or "train")
        check_readable([Path(file["filename"]) for file in table.cache_files], failed, todo)
    yield from pairs_from_dataset(rows_of(table, failed, todo), name)
