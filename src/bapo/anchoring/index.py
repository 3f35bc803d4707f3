"""The index of an anchored store: where in its journals a record lies, and what was made of groups before.

It is SQLite's, can be deleted at any time, and is never the only place of anything: what it says was all read from a
journal or computed from a text. It is trusted in parts:

- Of a journal it says what lies where in its first so many bytes. These are hashed before anything is believed; if they
  are other bytes, the journal is read anew, line by line, so that a damaged line is named. What stands behind them is
  read, too. The places have a hash of their own, which a killed process does not leave; without it they are made anew,
  and with another one the whole index is.
  SQLite's own check comes first. A record is always read from its line, and that is compared with its checksum.
- What is kept of a group (`bapo.anchoring.kept`) carries a checksum, and what was taken from journals is dropped when
  one of these is not as it was.
- An index that SQLite cannot read is made anew. Where others hold it, or there is no room, it is in memory meanwhile.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar

from bapo.files import NO_LINK
from bapo.journal import Batch, Extent, Journal

INDEX = ".index.sqlite"
"""Its file. It holds token ids of people's texts, so only its owner may read it."""

Result = TypeVar("Result")
Names = Callable[[dict[str, Any]], tuple[bytes, ...]]
"""Under which names a record is looked for."""

Kind = Literal["tokens", "anchored"]
"""What is kept of a group: its token ids; or its base responses and scores, which were taken from journals."""

_FORMAT = 2
_AT_ONCE = 500
"""Names that SQLite is asked for at once."""

_APPENDED = 256
"""Batches after which it is written to the disk; what a kill leaves out of it is read again."""

_CHECKSUM_BYTES = 8

_TABLES = """
CREATE TABLE IF NOT EXISTS covered (journal TEXT PRIMARY KEY, size INTEGER, digest TEXT, places TEXT);
CREATE TABLE IF NOT EXISTS places (journal TEXT, name BLOB, place INTEGER, PRIMARY KEY (journal, name)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tokens (name BLOB PRIMARY KEY, content BLOB);
CREATE TABLE IF NOT EXISTS anchored (name BLOB PRIMARY KEY, content BLOB);
"""


@dataclass
class _Indexed:
    """A journal that is in use.

    Attributes:
        journal: the journal.
        names: of its records.
        places: hash of what the index says of it; None where that is to be made anew.
        is_known: whether what the index says was compared with that, or made anew.
        is_changed: whether something was added to it.
    """

    journal: Journal
    names: Names
    places: str | None = None
    is_known: bool = False
    is_changed: bool = False


class StoreIndex:
    """The index of a store's folder; made where there is none.

    Args:
        folder: of the store.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / INDEX
        self._indexed: dict[str, _Indexed] = {}
        self._appended = 0
        try:
            self._database = _opened(self._path)
        except (*_BROKEN, OSError) as error:
            self._database = self._anew(error)

    def add_journal(self, journal: Journal, names: Names) -> None:
        """Know of a journal; what the index does not know of it is read.

        Raises:
            BapoError: the journal cannot be read, or a line is not what was written.
        """
        indexed = _Indexed(journal, names)
        self._run(lambda database: _compare(database, indexed))
        self._indexed[journal.path.name] = indexed

    def known(self, journal: Journal, names: Collection[bytes]) -> set[bytes]:
        """Those of the names under which the journal has a record."""
        return set(self._places(journal, names))

    def records(self, journal: Journal, names: Collection[bytes]) -> Iterator[tuple[bytes, dict[str, Any]]]:
        """The records of names that are known, in the order of the file; each line is read once.

        Raises:
            BapoError: the journal cannot be read, or is damaged there.
        """
        names_at: dict[int, set[bytes]] = {}
        for name, place in self._places(journal, names).items():
            names_at.setdefault(place, set()).add(name)
        names_of = self._indexed[journal.path.name].names
        ordered = sorted(names_at)
        for place, batch in zip(ordered, journal.read_at(ordered), strict=True):
            for record in batch:
                yield from ((name, record) for name in names_of(record) if name in names_at[place])

    def append(self, journal: Journal, batch: Batch) -> None:
        """Write a batch to a journal.

        Raises:
            BapoError: see `Journal.append`.
        """
        indexed = self._indexed[journal.path.name]
        self._run(lambda database: _make_known(database, indexed))
        place = journal.append(batch)
        self._run(lambda database: _add_places(database, indexed, place, batch))
        self._appended += 1
        if self._appended % _APPENDED == 0:
            self.commit()

    def kept(self, kind: Kind, names: Collection[bytes]) -> dict[bytes, bytes]:
        """What is kept under these names; what is damaged is left out."""
        rows = self._run(lambda database: _rows(database, f"SELECT name, content FROM {kind} WHERE name IN", names))
        return {
            name: content[_CHECKSUM_BYTES:]
            for name, content in rows
            if isinstance(content, bytes) and content[:_CHECKSUM_BYTES] == _checksum(name, content[_CHECKSUM_BYTES:])
        }

    def keep(self, kind: Kind, contents: Mapping[bytes, bytes]) -> None:
        """Keep contents by their names."""
        rows = [(name, _checksum(name, content) + content) for name, content in contents.items()]
        self._run(lambda database: database.executemany(f"INSERT OR REPLACE INTO {kind} VALUES (?, ?)", rows))

    def commit(self, *, last: bool = False) -> None:
        """Write to the disk what was added, and how far the journals are covered.

        Args:
            last: whether nothing is added any more, so that places get their hash.
        """

        def work(database: sqlite3.Connection) -> None:
            for name, indexed in self._indexed.items():
                if indexed.is_changed:
                    places = _hash_of_places(database, indexed) if last else None
                    row = (name, *indexed.journal.extent, places)
                    database.execute("INSERT OR REPLACE INTO covered VALUES (?, ?, ?, ?)", row)
            database.commit()

        self._run(work)

    def close(self) -> None:
        """Let go of the file; what was not committed is forgotten."""
        with suppress(sqlite3.Error):
            self._database.close()

    def _places(self, journal: Journal, names: Collection[bytes]) -> dict[bytes, int]:
        def work(database: sqlite3.Connection) -> list[tuple[bytes, int]]:
            _make_known(database, self._indexed[journal.path.name])
            query = "SELECT name, place FROM places WHERE journal = ? AND name IN"
            return _rows(database, query, names, journal.path.name)

        return dict(self._run(work))

    def _run(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        """Ask SQLite; where it fails, go on with an index that is made anew."""
        try:
            return work(self._database)
        except _BROKEN as error:
            self.close()
            self._database = self._anew(error)
            for indexed in self._indexed.values():
                indexed.journal.check()
                _compare(self._database, indexed)
            return work(self._database)

    def _anew(self, error: Exception) -> sqlite3.Connection:
        """An empty one: in place of one that is damaged; in memory where others hold it, or there is no room."""
        if not isinstance(error, sqlite3.OperationalError | OSError):
            with suppress(OSError, *_BROKEN):
                self._path.unlink()
                return _opened(self._path)
        return _with_tables(sqlite3.connect(":memory:", check_same_thread=False))


_BROKEN = (sqlite3.Error, ValueError, TypeError, OverflowError)
"""What comes of a damaged database: SQLite's own errors, and those of Python about values of other types."""


def _compare(database: sqlite3.Connection, indexed: _Indexed) -> None:
    """Find out whether a journal begins with what the index has covered, and read it where it goes on behind that."""
    journal = indexed.journal
    row = database.execute("SELECT * FROM covered WHERE journal = ?", (journal.path.name,)).fetchone()
    fits = row is not None and journal.skip(Extent(int(row[1]), str(row[2])))
    indexed.places, indexed.is_known, indexed.is_changed = row[3] if fits else None, False, False
    if not fits and (row is not None or journal.path.exists()):
        database.execute("DELETE FROM anchored")
    if not fits or journal.goes_on:
        _make_known(database, indexed)


def _make_known(database: sqlite3.Connection, indexed: _Indexed) -> None:
    """See to it that the index says of all lines of a journal where they lie."""
    if indexed.is_known:
        return
    if database.execute("PRAGMA integrity_check(1)").fetchone() != ("ok",):
        raise sqlite3.DatabaseError("damaged")
    journal = indexed.journal
    if indexed.places is None:
        database.execute("DELETE FROM places WHERE journal = ?", (journal.path.name,))
        journal.start_again()
        indexed.is_changed = True
    elif _hash_of_places(database, indexed) != indexed.places:
        raise sqlite3.DatabaseError("the places are not what was written")
    for place, batch in journal.read_on():
        _add_places(database, indexed, place, batch)
    indexed.is_known = True


def _add_places(database: sqlite3.Connection, indexed: _Indexed, place: int, batch: Batch) -> None:
    """Later records of a name take the place of earlier ones."""
    rows = [(indexed.journal.path.name, name, place) for record in batch for name in indexed.names(record)]
    database.executemany("INSERT OR REPLACE INTO places VALUES (?, ?, ?)", rows)
    indexed.is_changed = True


def _hash_of_places(database: sqlite3.Connection, indexed: _Indexed) -> str:
    query = "SELECT name, place FROM places WHERE journal = ? ORDER BY name"
    digest = hashlib.sha256()
    for name, place in database.execute(query, (indexed.journal.path.name,)):
        digest.update(b"%b %d\n" % (name, place))
    return digest.hexdigest()


def _opened(path: Path) -> sqlite3.Connection:
    os.close(os.open(path, os.O_CREAT | os.O_RDWR | NO_LINK, 0o600))  # SQLite's own would be wider
    database = sqlite3.connect(path, timeout=1, check_same_thread=False)
    try:
        return _with_tables(database)
    except _BROKEN:
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


def _rows(database: sqlite3.Connection, query: str, names: Iterable[bytes], *before: str) -> list[tuple[bytes, Any]]:
    rows: list[tuple[bytes, Any]] = []
    left = iter(names)
    while asked := list(islice(left, _AT_ONCE)):
        rows += database.execute(f"{query} ({','.join('?' * len(asked))})", (*before, *asked))
    return rows


def _checksum(name: bytes, content: bytes) -> bytes:
    return hashlib.blake2b(name + content, digest_size=_CHECKSUM_BYTES).digest()
