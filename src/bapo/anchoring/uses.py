"""Who uses what of a store, so that what was made of one run's data can be forgotten and what others use is kept.

A use is a private file in the store. It is there before what it speaks of is, and names keys and hashes, no texts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bapo.errors import BapoError
from bapo.files import checksum, make_folder, read_record, write_record

_FOLDER, _WHOLE, _BEGUN = "uses", ".json", ".begun.json"
_AGAIN = "if something deleted the folder that it lies in, start the command again"


@dataclass(frozen=True, slots=True)
class User:
    """For whom something is anchored.

    Attributes:
        folder: of a run, a personalization or an evaluation; None where nobody goes on to use it.
        data: fingerprint of the data.
    """

    folder: Path | None
    data: str


@dataclass(frozen=True, slots=True)
class UsedPrompt:
    """A prompt of a use: hash of its words, key of its base responses, and keys of the scores behind it.

    The keys are known once it has been tokenized.
    """

    words: str
    prompt: str = ""
    scores: tuple[str, ...] = ()


@dataclass(frozen=True)
class Use:
    """What one user anchored in one store.

    Attributes:
        path: its file.
        folder: of the user, as the file system names it; None as in `User`.
        data: fingerprint of the data.
        prompts: what is used.
    """

    path: Path
    folder: str | None
    data: str
    prompts: tuple[UsedPrompt, ...]

    def without(self, words: frozenset[str]) -> None:
        """Take prompts out of the file; what is left is registered again when it is next anchored."""
        kept = [used for used in self.prompts if used.words not in words]
        if kept:
            _write(self.path.with_name(f"{self.path.name.partition('.')[0]}{_BEGUN}"), self.folder, self.data, kept)
        if not kept or not self.path.name.endswith(_BEGUN):
            self.path.unlink(missing_ok=True)


class Registration:
    """The use that is being made of a store, whose lock is held.

    Args:
        store: the folder.
        user: for whom.
        how: all else that determines which keys are used.
    """

    def __init__(self, store: Path, user: User, how: object) -> None:
        self._folder = None if user.folder is None else os.path.realpath(user.folder)
        self._data = user.data
        name = checksum(json.dumps([self._folder, user.data, how], default=str).encode())
        self._begun, self._whole = (store / _FOLDER / f"{name}{end}" for end in (_BEGUN, _WHOLE))

    def announce(self, words: Callable[[], Iterable[str]]) -> None:
        """Say which words' hashes are at work here, before the index keeps tokens of them."""
        if not self._begun.is_file():
            self.begin(lambda: map(UsedPrompt, words()))

    def begin(self, prompts: Callable[[], Iterable[UsedPrompt]]) -> None:
        """Say which prompts are used, before anything of them is kept; nothing is done where that is known."""
        if not self._whole.is_file():
            make_folder(self._begun.parent, _AGAIN, above=False)
            _write(self._begun, self._folder, self._data, prompts())

    def finish(self, prompts: Callable[[], Iterable[UsedPrompt]]) -> None:
        """Say it once more with the keys of all scores, before these are kept."""
        if not self._whole.is_file():
            make_folder(self._whole.parent, _AGAIN, above=False)
            _write(self._whole, self._folder, self._data, prompts())
            self._begun.unlink(missing_ok=True)


def uses_of(store: Path) -> Iterator[Use]:
    """All uses of a store that are registered.

    Raises:
        BapoError: a file is damaged.
    """
    for path in sorted((store / _FOLDER).glob("*.json")):
        try:
            kept = read_record(path, "delete that file, and what only it names stays in the store")
        except BapoError:
            if path.exists():
                raise
            continue  # of a user who has finished meanwhile, whose file has another name now
        folder = kept["folder"] and os.path.realpath(kept["folder"])
        yield Use(path, folder, kept["data"], tuple(_prompt(line.split()) for line in kept["prompts"]))


def words_hash(text: str) -> str:
    """By which a prompt in words is known."""
    return checksum(text.encode("utf-8", "surrogatepass"))


def _write(path: Path, folder: str | None, data: str, prompts: Iterable[UsedPrompt]) -> None:
    lines = [" ".join((used.words, used.prompt, *used.scores)).rstrip() for used in prompts]
    write_record(path, {"folder": folder, "data": data, "prompts": lines})


def _prompt(parts: Sequence[str]) -> UsedPrompt:
    return UsedPrompt(parts[0], "".join(parts[1:2]), tuple(parts[2:]))
