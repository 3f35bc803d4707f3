"""Sources of preferences by name, and the decorator that registers one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

from bapo.errors import BapoError
from bapo.preferences.record import Pair
from bapo.registry import Registry, own_names

DATA_VARIABLE = "BAPO_DATA"

Reader = TypeVar("Reader", bound=Callable[[str, Path | None], Iterator[Pair]])


class PaperRows(NamedTuple):
    """What the paper splits: raw rows, duplicates and all, and how many of them it trains on."""

    rows: list[Pair]
    training: int


@dataclass(frozen=True, slots=True)
class Source:
    """A registered source.

    Attributes:
        read: from what stands behind ``name:``, and the data folder if one is named, to comparisons.
        description: what it is, for people.
        example: how one is named, for help and errors.
        words: what it knows by name, each with what one would tell a model instead of training it; a source that has
            none takes any name.
        aliases: other names of these.
        fits: whether a name without a colon, such as a path, is one of its own.
        paper_rows: of a name, for the paper's protocol; None where the paper has none.
    """

    read: Callable[[str, Path | None], Iterator[Pair]]
    description: str
    example: str
    words: Mapping[str, str | None] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    fits: Callable[[str], bool] | None = None
    paper_rows: Callable[[str, Path | None], PaperRows] | None = None


SOURCES: Registry[Source] = Registry("sources")


def source(
    name: str,
    description: str = "",
    *,
    example: str = "",
    words: Mapping[str, str | None] | None = None,
    aliases: Mapping[str, str] | None = None,
    fits: Callable[[str], bool] | None = None,
    paper_rows: Callable[[str, Path | None], PaperRows] | None = None,
) -> Callable[[Reader], Reader]:
    """Register a reader of preferences, which are then named ``name:PART``; see `Source`."""

    def register(read: Reader) -> Reader:
        shown = example or f"{name}:{next(iter(words or {}), 'NAME')}"
        SOURCES.add(name, Source(read, description, shown, words or {}, aliases or {}, fits, paper_rows), read)
        return read

    return register


def examples(*, whole: bool = False) -> str:
    """How sources are named, one example each, or with all that is known by name; for help and errors.

    Of what other packages bring only the name is told, so that nothing of theirs is loaded.
    """
    ours = own_names("sources")
    descriptions = {name: SOURCES[name].example if name in ours else f"{name}:NAME" for name in SOURCES}
    for name in ours:
        others = [part for part in SOURCES[name].words if f"{name}:{part}" != descriptions[name]]
        if not others:
            descriptions[name] += f" ({SOURCES[name].description})"
        elif whole:
            descriptions[name] += f" (or {', '.join(others)})"
    return ", ".join(descriptions.values())


def find_file(named: str, places: Sequence[str], data_folder: Path | None, where_to_get: str) -> Path:
    """The first of a source's files that is there.

    Args:
        named: the source, for errors.
        places: where its file may lie, below the data folder.
        data_folder: by default that which BAPO_DATA names.
        where_to_get: what to do for want of it, as an imperative that "into that folder" can follow.

    Raises:
        BapoError: no folder is named, or none of the files is in it.
    """
    folder = data_folder or (Path(os.environ[DATA_VARIABLE]) if os.environ.get(DATA_VARIABLE) else None)
    if folder is None:
        raise BapoError(
            f"{named} needs its raw files: {where_to_get}, then name the folder with --data-folder or {DATA_VARIABLE}."
        )
    for place in places:
        if (folder / place).is_file():
            return folder / place
    raise BapoError(
        f"{named} is not in {folder} (looked for {places[0]} and the like): {where_to_get} into that folder."
    )
