"""Preferences by name: starter styles, known data sets, files, saved data sets, the hub, and what packages add."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from bapo.errors import BapoError
from bapo.preferences.grouping import check_usable, group_pairs
from bapo.preferences.record import Pair, Preferences, as_chat
from bapo.preferences.registry import SOURCES, PaperRows, Source, examples
from bapo.registry import nearest, own_names


def read_preferences(name: str, *, data_folder: Path | None = None, plain: bool = False) -> Preferences:
    """Read preferences by name.

    Args:
        name: ``starter:STYLE`` or the like, with the name of any source in front (`SOURCES`); the path of a comparison
            file or of a data set saved to disk; or a hub id (``organization/name`` or ``organization/name:split``).
        data_folder: where sources of raw files look; the variable BAPO_DATA by default.
        plain: whether plain-text prompts stay plain instead of becoming a user turn, which instruction-tuned models
            expect.

    Raises:
        BapoError: an unknown name (names the nearest), data that are not there (says how to get them), or a record that
            is no comparison.
    """
    pairs = read_pairs(name, data_folder)
    preferences = group_pairs(name, pairs if plain else in_chat(pairs))
    check_usable(preferences)
    return preferences


def in_chat(pairs: Iterable[Pair]) -> Iterator[Pair]:
    """The pairs with plain-text prompts turned into one user turn."""
    for pair in pairs:
        yield replace(pair, prompt=as_chat(pair.prompt))


def read_pairs(name: str, data_folder: Path | None = None) -> Iterator[Pair]:
    """Raw comparisons by name, before any grouping; see `read_preferences`."""
    found = _found(name)
    return found.source.read(found.part, data_folder)


def read_paper_rows(name: str, data_folder: Path | None = None) -> PaperRows:
    """What the paper splits of these preferences.

    Raises:
        BapoError: the paper does not use them; and as `read_preferences`.
    """
    found = _found(name)
    if found.source.paper_rows is None:
        of_paper = [f"{source}:" for source in own_names("sources") if SOURCES[source].paper_rows is not None]
        raise BapoError(
            f"The paper's protocol is for {' and '.join(of_paper)} data, not for {name}: use the by-prompt protocol."
        )
    return found.source.paper_rows(found.part, data_folder)


def known_names() -> list[str]:
    """Names that need no file of one's own."""
    return [f"{name}:{part}" for name in own_names("sources") for part in SOURCES[name].words]


def preference_in_words(name: str) -> str | None:
    """What one would tell a model instead of training it; None for preferences that do not say."""
    kind, colon, part = name.partition(":")
    if not colon or kind not in SOURCES:
        return None
    source = SOURCES[kind]
    return source.words.get(source.aliases.get(part, part))


class _Found(NamedTuple):
    source: Source
    part: str


def _found(name: str) -> _Found:
    """The source of preferences, and what they are called there."""
    kind, colon, part = name.partition(":")
    if colon and kind in SOURCES:
        source = SOURCES[kind]
        part = source.aliases.get(part, part)
        if source.words and part not in source.words:
            hint = nearest(part, [*source.words, *source.aliases], before=f"{kind}:")
            raise BapoError(f"There is no preference {name}{hint}: use one of {', '.join(source.words)}.")
        return _Found(source, part)
    for kind in own_names("sources"):
        fits = SOURCES[kind].fits
        if fits is not None and fits(name):
            return _Found(SOURCES[kind], name)
    raise BapoError(f"There are no preferences {name!r}{nearest(name, known_names())}: name one like {examples()}.")
