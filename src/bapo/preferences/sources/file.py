"""Comparison files of one's own."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path

from bapo.errors import BapoError
from bapo.preferences.formats import pair_from_record
from bapo.preferences.record import Pair
from bapo.preferences.registry import source
from bapo.preferences.tables import SUFFIXES, records


def _fits(name: str) -> bool:
    path = Path(name).expanduser()
    return path.is_file() or (path.suffix.lower() in SUFFIXES and not path.is_dir())


@source(
    "file",
    f"a file with prompt, chosen and rejected ({', '.join(SUFFIXES)})",
    example="mine.jsonl",
    fits=_fits,
)
def read_file(name: str, data_folder: Path | None = None) -> Iterator[Pair]:
    """Comparisons of a file, in order.

    Raises:
        BapoError: there is no such file, it is of another kind or damaged, or a record is no comparison; names the
            line.
    """
    path = Path(name).expanduser()
    if not path.is_file():
        beside = {sibling.stem: sibling.name for sibling in path.parent.glob("*") if sibling.suffix.lower() in SUFFIXES}
        near = difflib.get_close_matches(path.stem, beside, n=1)
        hint = f" (did you mean {beside[near[0]]}?)" if near else ""
        raise BapoError(f"There is no file {name}{hint}: check its name.")
    return (pair_from_record(record, where) for where, record in records(path))
