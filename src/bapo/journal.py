"""The journal: an append-only file of batches, by which a killed process loses at most the batch that it was at."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bapo.errors import BapoError
from bapo.files import CHECKSUM_DIGITS, checksum, read_bytes, write_bytes, writing


class Journal:
    """An append-only file of batches of records, a batch a line of JSON with its checksum.

    A line is written whole or, after a kill, not at all. Many may read; who appends holds a lock.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._size = self._whole = 0  # as it was last read or written: all of it, and without a torn last line

    def read(self) -> Iterator[list[dict[str, Any]]]:
        """All batches; a torn last line is passed over.

        Raises:
            BapoError: the file cannot be read, or a line is not what was written.
        """
        content = read_bytes(self.path) if self.path.exists() else b""
        self._size, self._whole = len(content), content.rfind(b"\n") + 1
        for number, line in enumerate(content[: self._whole].split(b"\n")[:-1], start=1):
            parsed = _LINE.fullmatch(line)
            if parsed is None or checksum(parsed["records"]) != parsed["checksum"].decode():
                raise BapoError(f"{self.path} is damaged at line {number}: delete that line, and it is made again.")
            yield json.loads(parsed["records"])

    def append(self, batch: list[dict[str, Any]]) -> None:
        """Write one batch behind all that was read, in place of a torn last line, and wait until it is on the disk.

        Raises:
            BapoError: it cannot be written, or the file is not as this process read or wrote it.
        """
        self.check()
        with writing(self.path):
            self.path.touch(0o600)
        with writing(self.path), self.path.open("ab") as file:
            file.truncate(self._whole)
            file.write(_line(batch))
            file.flush()
            os.fsync(file.fileno())
            self._size = self._whole = file.tell()

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
            content = b"".join(_line(batch) for batch in kept if batch)
            write_bytes(self.path, content)
            self._size = self._whole = len(content)
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


def _line(batch: list[dict[str, Any]]) -> bytes:
    records = json.dumps(batch, separators=(",", ":")).encode()
    return b'{"checksum":"%s","records":%s}\n' % (checksum(records).encode(), records)


_LINE = re.compile(rb'\{"checksum":"(?P<checksum>[0-9a-f]{%d})","records":(?P<records>.*)\}' % CHECKSUM_DIGITS)
