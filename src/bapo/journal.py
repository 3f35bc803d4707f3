"""The journal: an append-only file of batches, by which a killed process loses at most the batch that it was at."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bapo.errors import BapoError
from bapo.files import CHECKSUM_DIGITS, checksum, flush_name, reading, write_bytes, writing

Batch = list[dict[str, Any]]

_PIECE = 1 << 20
"""Bytes that are read and hashed at once."""


class Extent(NamedTuple):
    """The first bytes of a journal, by how many they are and what their hash is."""

    size: int
    digest: str


class Journal:
    """An append-only file of batches of records, a batch a line of JSON with its checksum.

    A line is written whole or, after a kill, not at all. Many may read; who appends holds a lock. Whatever is read of a
    line was compared with that line's checksum. Only one line at a time is in memory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._size = self._whole = 0  # as it was last read or written: all of it, and without a torn last line
        self._lines, self._hash = 0, hashlib.sha256()  # of the whole lines

    @property
    def extent(self) -> Extent:
        """All whole lines that were read, skipped or written."""
        return Extent(self._whole, self._hash.hexdigest())

    def read(self) -> Iterator[Batch]:
        """All batches; a torn last line is passed over.

        Raises:
            BapoError: the file cannot be read, or a line is not what was written.
        """
        self.start_again()
        for _, batch in self.read_on():
            yield batch

    def read_on(self) -> Iterator[tuple[int, Batch]]:
        """The batches behind what was read or skipped so far, each with its place in the file.

        Raises:
            BapoError: see `read`.
        """
        start = self._whole
        if not self.path.exists():
            self.start_again()
            return
        with reading(self.path), self.path.open("rb") as file:
            self._size = os.fstat(file.fileno()).st_size
            file.seek(start)
            while start < self._size and (line := file.readline(self._size - start)).endswith(b"\n"):
                batch = self._parsed(line, self._lines + 1)
                self._hash.update(line)
                self._lines += 1
                self._whole = start + len(line)
                yield start, batch
                start = self._whole

    @property
    def goes_on(self) -> bool:
        """Whether something stands behind what was read, skipped or written."""
        return self.path.is_file() and self.path.stat().st_size > self._whole

    def start_again(self) -> None:
        """Be as if nothing had been read, skipped or written."""
        self._size = self._whole = self._lines = 0
        self._hash = hashlib.sha256()

    def skip(self, extent: Extent) -> bool:
        """Pass over the first bytes without looking at their lines, if they are the ones that somebody knows.

        Args:
            extent: their number and hash.

        Returns:
            Whether they are; otherwise nothing is passed over.

        Raises:
            BapoError: the file cannot be read.
        """
        self.start_again()
        if not extent.size or not self.path.is_file():
            return not extent.size
        left, digest, lines = extent.size, hashlib.sha256(), 0
        with reading(self.path), self.path.open("rb") as file:
            while piece := file.read(min(_PIECE, left)):
                digest.update(piece)
                lines += piece.count(b"\n")
                left -= len(piece)
        if left or digest.hexdigest() != extent.digest:
            return False
        self._size = self._whole = extent.size
        self._lines, self._hash = lines, digest
        return True

    def read_at(self, places: list[int]) -> Iterator[Batch]:
        """The batches that lie at some places, in the order of these.

        Raises:
            BapoError: the file cannot be read, or what lies there is not what was written.
        """
        if not places:
            return
        with reading(self.path), self.path.open("rb") as file:
            for place in places:
                file.seek(place)
                line = file.readline()
                yield self._parsed(line, place=place)

    def append(self, batch: Batch) -> int:
        """Write one batch behind all that was read, in place of a torn last line, and wait until it is on the disk.

        Returns:
            Its place in the file.

        Raises:
            BapoError: it cannot be written, or the file is not as this process read or wrote it.
        """
        line = _line(batch)
        self.check()
        place = self._whole
        with writing(self.path):
            self.path.touch(0o600)
        with writing(self.path), self.path.open("ab") as file:
            file.truncate(place)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
            self._size = self._whole = file.tell()
        if not place:
            flush_name(self.path)
        self._lines += 1
        self._hash.update(line)
        return place

    def keep(self, wanted: Callable[[dict[str, Any]], bool]) -> int:
        """Write the file anew with those records that are wanted, and without a torn last line.

        Returns:
            How many records were not wanted.

        Raises:
            BapoError: the file cannot be read or written, or a line is not what was written.
        """
        batches = list(self.read())
        kept = [[record for record in batch if wanted(record)] for batch in batches]
        forgotten = sum(map(len, batches)) - sum(map(len, kept))
        if forgotten or self._whole < self._size:
            write_bytes(self.path, as_journal(kept))
            self.start_again()
        return forgotten

    def check(self) -> None:
        """Find out whether the file is still as this process read or wrote it.

        Raises:
            BapoError: it is not; somebody else changed or deleted it.
        """
        if (self.path.stat().st_size if self.path.is_file() else 0) != self._size:
            raise BapoError(
                f"{self.path} was changed or deleted by something else while it was written: start the command again."
            )

    def _parsed(self, line: bytes, number: int | None = None, place: int = 0) -> Batch:
        parsed = _LINE.fullmatch(line)
        if parsed is None or checksum(parsed["records"]) != parsed["checksum"].decode():
            number = number or self._number_at(place)
            raise BapoError(f"{self.path} is damaged at line {number}: delete that line, and it is made again.")
        batch: Batch = json.loads(parsed["records"])
        return batch

    def add(self, content: bytes, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Append the wanted records of another journal's content, batch by batch.

        Raises:
            BapoError: it is damaged, or cannot be appended.
        """
        for number, line in enumerate(content.splitlines(keepends=True), 1):
            batch = [record for record in self._parsed(line, number) if wanted(record)]
            if batch:
                self.append(batch)

    def _number_at(self, place: int) -> int:
        with self.path.open("rb") as file:
            return file.read(place).count(b"\n") + 1


def as_journal(batches: Iterable[Batch]) -> bytes:
    """The content of a journal of these batches, without empty ones."""
    return b"".join(_line(batch) for batch in batches if batch)


def _line(batch: Batch) -> bytes:
    records = json.dumps(batch, separators=(",", ":")).encode()
    return b'{"checksum":"%s","records":%s}\n' % (checksum(records).encode(), records)


_LINE = re.compile(rb'\{"checksum":"(?P<checksum>[0-9a-f]{%d})","records":(?P<records>.*)\}\n' % CHECKSUM_DIGITS)
