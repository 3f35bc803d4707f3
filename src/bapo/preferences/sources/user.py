"""One of many users: their rows of a comparison file with a column `user`."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bapo.errors import BapoError
from bapo.preferences.formats import pair_from_record
from bapo.preferences.record import Pair
from bapo.preferences.registry import source
from bapo.preferences.tables import records

EVERY = "*"


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
    rows = [(record, where) for record, where in _rows(file) if str(record["user"]) == user]
    if not rows:
        users = users_of(file)
        near = difflib.get_close_matches(user, users, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise BapoError(f"{file} has no rows of the user {user!r}{hint}: it has {len(users):,} users.")
    columns = ({key: value for key, value in record.items() if key != "user"} for record, _ in rows)
    return (pair_from_record(record, where) for record, (_, where) in zip(columns, rows, strict=True))


def users_of(file: str) -> list[str]:
    """Users of a comparison file, in the order of their first rows.

    Raises:
        BapoError: there is no such file, or a row has no user.
    """
    return list(dict.fromkeys(str(record["user"]) for record, _ in _rows(file)))


def _rows(file: str) -> Iterator[tuple[Mapping[str, Any], str]]:
    path = Path(file).expanduser()
    if not path.is_file():
        raise BapoError(f"There is no file {file}: check its name.")
    for where, record in records(path):
        if not isinstance(record, Mapping) or record.get("user") in (None, ""):
            raise BapoError(f"{where} has no user: each row needs a column user, beside prompt, chosen and rejected.")
        yield record, where
