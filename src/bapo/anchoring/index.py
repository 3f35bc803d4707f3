"""The index of an anchored store: where in its journals a record lies, and what was made of groups before.

It is SQLite's, can be deleted at any time, and is never the only place of anything: what it says was all read from a
journal or computed from a text. It is trusted in parts:

- Of a journal it says what lies where in its first so many bytes. These are hashed before anything is believed; if they
  are other bytes, the journal is read anew, line by line, so that a damaged line is named. What stands behind them is
  read, too. A record is always read from its line, and that is compared with the line's checksum.
- What is kept of a group (`bapo.anchoring.kept`) carries a checksum of its own, and what was taken from journals is
  dropped when one of these is not as it was.
- An index that SQLite cannot read, or that others hold, is done without: the same is then in memory for a while.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar

from bapo.errors import BapoError
from bapo.journal import Batch, Extent, Journal

INDEX = ".index.sqlite"
"""Its file. It holds token ids of people's texts, so only its owner may read it."""

Result = TypeVar("Result")
Names = Callable[[dict[str, Any]], tuple[bytes, ...]]
"""Under which names a record is looked for."""

Kind = Literal["tokens", "anchored"]
"""What is kept of a group: its token ids; or its base responses and scores, which were taken from journals."""

_FORMAT = 1
_AT_ONCE = 500
"""Names that SQLite is asked for at once."""

_APPENDED = 256
"""Batches after which it is written to the disk; what a kill leaves out of it is read again."""

_CHECKSUM_BYTES = 8

_TABLES = """
CREATE TABLE IF NOT EXISTS covered (journal TEXT PRIMARY KEY, size INTEGER, digest TEXT);
CREATE TABLE IF NOT EXISTS places (journal TEXT, name BLOB, place INTEGER, PRIMARY KEY (journal, name)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tokens (name BLOB PRIMARY KEY, content BLOB);
CREATE TABLE IF NOT EXISTS anchored (name BLOB PRIMARY KEY, content BLOB);
"""


class StoreIndex:
    """The index of a store's folder; made where there is none.

    Args:
        folder: of the store.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / INDEX
        self._journals: dict[str, tuple[Journal, Names]] = {}
        self._appended = 0
        try:
            self._database = _opened(self._path)
        except (sqlite3.Error, OSError) as error:
            self._database = self._in_memory(error)

    def add_journal(self, journal: Journal, names: Names) -> None:
        """Know of a journal; what the index lacks of it is read.

        Raises:
            BapoError: the journal cannot be read, or a line is not what was written.
        """
        self._run(lambda database: self._catch_up(database, journal, names))
        self._journals[journal.path.name] = journal, names

    def known(self, journal: Journal, names: Collection[bytes]) -> set[bytes]:
        """Those of the names under which the journal has a record."""
        return set(self._places(journal, names))

    def records(self, journal: Journal, names: Collection[bytes]) -> Iterator[tuple[bytes, dict[str, Any]]]:
        """The records that there are of these names, in the order of the file; each line is read once.

        Raises:
            BapoError: the journal cannot be read, or is damaged there.
        """
        try:
            yield from self._read(journal, self._places(journal, names))
        except _Misfit as error:
            self._do_without(error)
            yield from self._read(journal, self._places(journal, names))

    def append(self, journal: Journal, batch: Batch) -> None:
        """Write a batch to a journal.

        Raises:
            BapoError: see `Journal.append`.
        """
        names = self._journals[journal.path.name][1]
        place = journal.append(batch)
        self._run(lambda database: _add_places(database, journal, names, place, batch))
        self._appended += 1
        if self._appended % _APPENDED == 0:
            self.commit()

    def kept(self, kind: Kind, names: Collection[bytes]) -> dict[bytes, bytes]:
        """What is kept under these names; what is damaged is left out."""
        rows = self._run(lambda database: _rows(database, f"SELECT name, content FROM {kind} WHERE name IN", names))
        return {
            name: content[_CHECKSUM_BYTES:]
            for name, content in rows
            if content[:_CHECKSUM_BYTES] == _checksum(name, content[_CHECKSUM_BYTES:])
        }

    def keep(self, kind: Kind, contents: Mapping[bytes, bytes]) -> None:
        """Keep contents by their names."""
        rows = [(name, _checksum(name, content) + content) for name, content in contents.items()]
        self._run(lambda database: database.executemany(f"INSERT OR REPLACE INTO {kind} VALUES (?, ?)", rows))

    def commit(self) -> None:
        """Write to the disk what was added, and how far the journals are covered."""

        def work(database: sqlite3.Connection) -> None:
            for name, (journal, _) in self._journals.items():
                database.execute("INSERT OR REPLACE INTO covered VALUES (?, ?, ?)", (name, *journal.extent))
            database.commit()

        self._run(work)

    def close(self) -> None:
        """Let go of the file; what was not committed is forgotten."""
        with suppress(sqlite3.Error):
            self._database.close()

    def _read(self, journal: Journal, places: Mapping[bytes, int]) -> Iterator[tuple[bytes, dict[str, Any]]]:
        names_at: dict[int, set[bytes]] = {}
        for name, place in places.items():
            names_at.setdefault(place, set()).add(name)
        names_of = self._journals[journal.path.name][1]
        ordered = sorted(names_at)
        try:
            for place, batch in zip(ordered, journal.read_at(ordered), strict=True):
                records = {name: record for record in batch for name in names_of(record)}
                if not names_at[place] <= records.keys():
                    raise _Misfit(f"{journal.path} has other records at {place}")
                yield from ((name, records[name]) for name in names_at[place])
        except BapoError as error:
            raise _Misfit(str(error)) from error

    def _places(self, journal: Journal, names: Collection[bytes]) -> dict[bytes, int]:
        query = "SELECT name, place FROM places WHERE journal = ? AND name IN"
        return dict(self._run(lambda database: _rows(database, query, names, journal.path.name)))

    def _catch_up(self, database: sqlite3.Connection, journal: Journal, names: Names) -> None:
        row = database.execute("SELECT size, digest FROM covered WHERE journal = ?", (journal.path.name,)).fetchone()
        if not journal.skip(Extent(0, "") if row is None else Extent(*row)) or row is None:
            for table in ("covered", "places"):
                database.execute(f"DELETE FROM {table} WHERE journal = ?", (journal.path.name,))
            if row is not None:
                database.execute("DELETE FROM anchored")
        for place, batch in journal.read_on():
            _add_places(database, journal, names, place, batch)

    def _run(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        """Ask SQLite; where it fails, go on with an index in memory."""
        try:
            return work(self._database)
        except sqlite3.Error as error:
            self._do_without(error)
            return work(self._database)

    def _do_without(self, error: Exception) -> None:
        self.close()
        self._database = self._in_memory(error)
        for journal, names in self._journals.values():
            journal.check()
            self._catch_up(self._database, journal, names)

    def _in_memory(self, error: Exception) -> sqlite3.Connection:
        if not isinstance(error, sqlite3.OperationalError):  # it is damaged; and not held by others, or without room
            with suppress(OSError):
                self._path.unlink()
        return _with_tables(sqlite3.connect(":memory:", check_same_thread=False))


class _Misfit(sqlite3.DatabaseError):
    """The index says of a journal what it is not."""


def _opened(path: Path) -> sqlite3.Connection:
    os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))  # SQLite's own would be wider
    database = sqlite3.connect(path, timeout=10, check_same_thread=False)
    try:
        return _with_tables(database)
    except sqlite3.Error:
        database.close()
        raise


def _with_tables(database: sqlite3.Connection) -> sqlite3.Connection:
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version not in (0, _FORMAT):
        raise sqlite3.DatabaseError("of another format")
    database.execute("PRAGMA synchronous = NORMAL")
    if not version:
        database.executescript(_TABLES)
        database.execute(f"PRAGMA user_version = {_FORMAT}")
    return database


def _add_places(database: sqlite3.Connection, journal: Journal, names: Names, place: int, batch: Batch) -> None:
    """Later records of a name take the place of earlier ones."""
    rows = [(journal.path.name, name, place) for record in batch for name in names(record)]
    database.executemany("INSERT OR REPLACE INTO places VALUES (?, ?, ?)", rows)


def _rows(database: sqlite3.Connection, query: str, names: Iterable[bytes], *before: str) -> list[tuple[bytes, Any]]:
    rows: list[tuple[bytes, Any]] = []
    left = iter(names)
    while asked := list(islice(left, _AT_ONCE)):
        rows += database.execute(f"{query} ({','.join('?' * len(asked))})", (*before, *asked))
    return rows


def _checksum(name: bytes, content: bytes) -> bytes:
    return hashlib.blake2b(name + content, digest_size=_CHECKSUM_BYTES).digest()
