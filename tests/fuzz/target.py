"""What is fuzzed: a reader, files that it takes, and what it may make of damaged ones."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tests.fuzz.mutations import mutate

KINDS = ("content", "folder", "missing", "unreadable", "link", "empty")
"""What an input puts in place of one file of a reader."""


class Input(NamedTuple):
    """One file of a reader's, and what is in its place."""

    file: str
    kind: str
    content: bytes


@dataclass(frozen=True)
class Target:
    """A reader.

    Attributes:
        name: what it is called.
        files: contents of good files, by path in the folder.
        read: reads the folder; raises what the reader raises, and says what is wrong with what it took, if anything is.
        damaged: of the files those that are damaged; all by default.
        hostile: contents that were written to do harm, of the file ``of``, or else of the first.
        slow: whether an input takes more than a few hundredths of a second.
    """

    name: str
    files: Mapping[str, bytes]
    read: Callable[[Path], str | None]
    damaged: tuple[str, ...] = ()
    hostile: tuple[bytes, ...] = field(default=(), repr=False)
    of: str | None = None
    slow: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Of the files that are damaged."""
        return self.damaged or tuple(self.files)

    def packed(self, at: int, kind: int, content: bytes) -> bytes:
        """An input as bytes: the file's number, the kind's, and a content."""
        return bytes((at, kind)) + content

    def unpacked(self, packed: bytes) -> Input:
        """An input from any bytes."""
        at, kind, content = packed[:1] or b"\0", packed[1:2] or b"\0", packed[2:]
        number = kind[0] if kind[0] < len(KINDS) else 0
        return Input(self.names[at[0] % len(self.names)], KINDS[number], content)

    def seeds(self) -> list[bytes]:
        """Inputs to begin with: the good files, and those that were written to do harm."""
        good = [self.packed(at, 0, self.files[name]) for at, name in enumerate(self.names)]
        at = self.names.index(self.of) if self.of else 0
        return good + [self.packed(at, 0, content) for content in self.hostile]

    def mutated(self, packed: bytes, rng: random.Random) -> bytes:
        """Another input, made from one."""
        if rng.random() < 0.02:
            return self.packed(rng.randrange(len(self.names)), rng.randrange(1, len(KINDS)), b"")
        if rng.random() < 0.1 or len(packed) < 3:
            packed = rng.choice(self.seeds())
        return packed[:1] + b"\0" + mutate(packed[2:], rng)

    def laid_out(self, given: Input, folder: Path, good: Path) -> None:
        """The reader's folder with an input in it; good files are links to those in ``good``."""
        for name in self.files:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if name != given.file:
                path.hardlink_to(good / name)
            elif given.kind in ("content", "unreadable", "empty"):
                path.write_bytes(given.content if given.kind != "empty" else b"")
                path.chmod(0 if given.kind == "unreadable" else 0o600)
            elif given.kind == "folder":
                path.mkdir()
            elif given.kind == "link":
                path.symlink_to(path.name)
