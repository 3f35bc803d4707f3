"""Data sets saved to disk, in TRL's formats."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bapo.errors import BapoError, foreign
from bapo.files import reading
from bapo.preferences.arrow import check_readable
from bapo.preferences.formats import pairs_from_dataset
from bapo.preferences.record import Pair
from bapo.preferences.registry import source


def _fits(name: str) -> bool:
    return Path(name).expanduser().is_dir()


@source("saved", "a data set saved with `save_to_disk`", example="path/to/folder", fits=_fits)
def read_saved(name: str, data_folder: Path | None = None) -> Iterator[Pair]:
    """Comparisons of a folder written by ``save_to_disk``: a data set, or the train split of several.

    Raises:
        BapoError: the folder holds no data set, a damaged one, or several splits without ``train``.
    """
    folder = Path(name).expanduser()
    with reading(folder):
        check_readable(sorted(folder.rglob("*.arrow")), f"The data set in {folder} could not be read", "save it again")
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
        table = saved if isinstance(saved, Dataset) else saved["train"]
        table.data.validate(full=True)  # a damaged one may end the process otherwise
        rows = list(table)
    yield from pairs_from_dataset(rows, folder.name)
