"""One of many users: their rows of a comparison file with a column `user`."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from bapo.errors import BapoError
from bapo.preferences.formats import pair_from_record
from bapo.preferences.record import Pair
from bapo.preferences.registry import source
from bapo.preferences.tables import records

EVERY = "*"

MOST_HELD = 64 * 2**20
"""Bytes of a file that is kept in memory, user by user; a larger one is read for each."""

Row = tuple[Mapping[str, Any], str]
"""A record, and where it stands."""


@source(
    "user",
    "one user's rows of a comparison file with a column user",
    example="user:people.jsonl#anna",
)
def read_user(name: str, data_folder: Path | None = None) -> Iterator[Pair]:
    """Comparisons of one user, in order; ``name`` is the file, ``#`` and the user.

    Raises:
        BapoError: there is no such file or user, a row has no user, or what `pair_from_record` raises.
    """
    file, _, user = name.rpartition("#")
    if not file or not user:
        raise BapoError(f"user:{name} names no user: write the file, # and the user, such as user:people.jsonl#anna.")
    rows = _rows_of(file, user)
    if not rows:
        users = users_of(file)
        near = difflib.get_close_matches(user, users, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        such = f", such as {users[0]!r}" if users else ""
        raise BapoError(f"{file} has no rows of the user {user!r}{hint}: name one of its {len(users):,} users{such}.")
    columns = ({key: value for key, value in record.items() if key != "user"} for record, _ in rows)
    return (pair_from_record(record, where) for record, (_, where) in zip(columns, rows, strict=True))


def users_of(file: str) -> list[str]:
    """Users of a comparison file, in the order of their first rows.

    Raises:
        BapoError: there is no such file, or a row has no user.
    """
    return list(dict.fromkeys(str(record["user"]) for record, _ in _rows(_there(file))))


def _rows_of(file: str, user: str) -> Sequence[Row]:
    path = _there(file)
    status = path.stat()
    if status.st_size > MOST_HELD:
        return [row for row in _rows(path) if str(row[0]["user"]) == user]
    return _by_user(path, (status.st_ino, status.st_size, status.st_mtime_ns)).get(user, ())


@lru_cache(maxsize=1)
def _by_user(path: Path, version: tuple[int, ...]) -> dict[str, list[Row]]:
    """All rows of a file: whoever reads one user often reads the next one too."""
    by_user: dict[str, list[Row]] = {}
    for row in _rows(path):
        by_user.setdefault(str(row[0]["user"]), []).append(row)
    return by_user


def _there(file: str) -> Path:
    path = Path(file).expanduser()
    if not path.is_file():
        raise BapoError(f"There is no file {file}: check its name.")
    return path


def _rows(path: Path) -> Iterator[Row]:
    for where, record in records(path):
        if not isinstance(record, Mapping) or record.get("user") in (None, ""):
            raise BapoError(f"{where} has no user: each row needs a column user, beside prompt, chosen and rejected.")
        yield record, where
