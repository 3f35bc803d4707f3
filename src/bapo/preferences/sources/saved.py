"""Data sets saved to disk, in TRL's formats."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from bapo.errors import BapoError, foreign
from bapo.preferences.arrow import check_readable, rows_of
from bapo.preferences.formats import pairs_from_dataset
from bapo.preferences.record import Pair
from bapo.preferences.registry import source

_STATE = "state.json"
"""In the folder of a data set, which files it lies in."""


def _fits(name: str) -> bool:
    return Path(name).expanduser().is_dir()


@source("saved", "a data set saved with `save_to_disk`", example="path/to/folder", fits=_fits)
def read_saved(name: str, data_folder: Path | None = None) -> Iterator[Pair]:
    """Comparisons of a folder written by ``save_to_disk``: a data set, or the train split of several.

    Raises:
        BapoError: the folder holds no data set, a damaged one, one that lies elsewhere, or several splits without
            ``train``.
    """
    folder = Path(name).expanduser()
    failed, todo = f"The data set in {folder} could not be read", "save it again"
    with foreign(
        f"The folder {folder} holds no data set saved with save_to_disk, or a damaged one", "name one, or a file"
    ):
        from datasets import Dataset

        part = _part(folder)
        check_readable(_files(part), failed, todo)
        table = Dataset.load_from_disk(str(part))
    yield from pairs_from_dataset(rows_of(table, failed, todo), folder.name)


def _part(folder: Path) -> Path:
    """The folder itself, or of several splits that of ``train``."""
    several = folder / "dataset_dict.json"
    if (folder / _STATE).is_file() or not several.is_file():
        return folder
    splits = json.loads(several.read_bytes())["splits"]
    if "train" not in splits:
        raise BapoError(
            f"The folder {folder} holds several splits ({', '.join(splits)}) and no train: name one of them."
        )
    return folder / "train"


def _files(folder: Path) -> list[Path]:
    """The files that `datasets` reads of a folder, whatever they are called."""
    names = [file["filename"] for file in json.loads((folder / _STATE).read_bytes())["_data_files"]]
    for name in names:
        if not Path(os.path.abspath(folder / name)).is_relative_to(os.path.abspath(folder)):
            raise BapoError(
                f"The data set in {folder} names a file outside of it ({name}): save it again, or see who made it."
            )
    return [folder / name for name in names]
