"""One name for every source of preferences."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from bapo.errors import BapoError
from bapo.preferences import dsp, psoups
from bapo.preferences.comparisons import SUFFIXES, read_comparisons
from bapo.preferences.grouping import ReadingPolicy, group_pairs
from bapo.preferences.hub import read_hub, read_saved_dataset
from bapo.preferences.record import Pair, Preferences, as_chat
from bapo.preferences.starter import STARTER_TYPES, read_starter

DATA_VARIABLE = "BAPO_DATA"


def read_preferences(
    source: str, *, data_folder: Path | None = None, policy: ReadingPolicy | None = None, chat: bool = True
) -> Preferences:
    """Read preferences by name.

    Args:
        source: ``starter:STYLE``, ``psoups:TYPE``, ``dsp:DOMAIN``, the path of a comparison file or of a data set saved
            to disk, or a hub id (``organization/name`` or ``organization/name:split``).
        data_folder: where ``psoups:`` and ``dsp:`` look; the variable BAPO_DATA by default.
        policy: what happens to comparisons that teach nothing.
        chat: whether plain-text prompts become a user turn, as instruction-tuned models expect.

    Raises:
        BapoError: an unknown name (names the nearest), data that are not there (says how to get them), or a record that
            is no comparison.
    """
    pairs = read_pairs(source, data_folder)
    preferences = group_pairs(source, in_chat(pairs) if chat else pairs, policy)
    if not preferences.groups:
        reasons = ", ".join(f"{count} {reason}" for reason, count in preferences.dropped.items()) or "it is empty"
        raise BapoError(f"{source} holds no usable comparison ({reasons}).")
    return preferences


def in_chat(pairs: Iterable[Pair]) -> Iterator[Pair]:
    """The pairs with plain-text prompts turned into one user turn."""
    for pair in pairs:
        yield replace(pair, prompt=as_chat(pair.prompt))


def read_pairs(source: str, data_folder: Path | None = None) -> Iterator[Pair]:
    """Raw comparisons by name, before any grouping; see `read_preferences`."""
    kind, colon, part = source.partition(":")
    if colon and kind in ("starter", "psoups", "dsp"):
        return _named(kind, part, data_folder)
    path = Path(source).expanduser()
    if path.is_dir():
        return read_saved_dataset(path)
    if path.is_file():
        return read_comparisons(path)
    if path.suffix.lower() in SUFFIXES:
        beside = {own.stem: own.name for own in path.parent.glob("*") if own.suffix.lower() in SUFFIXES}
        near = difflib.get_close_matches(path.stem, beside, n=1)
        hint = f" (did you mean {beside[near[0]]}?)" if near else ""
        raise BapoError(f"There is no file {source}{hint}: check its name.")
    if path.suffix or source.startswith((".", "/", "~")) or source.count("/") != 1:
        near = difflib.get_close_matches(source, known_names(), n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise BapoError(
            f"There are no preferences {source!r}{hint}: name starter:concise or the like, psoups:P1A, dsp:academy, "
            "a file with prompt, chosen and rejected, or a hub id."
        )
    return read_hub(source)


def known_names() -> list[str]:
    """Names that need no file of one's own."""
    return [
        *(f"starter:{style}" for style in STARTER_TYPES),
        *(f"psoups:{code}" for code in psoups.PREFERENCE_PROMPTS),
        *(f"dsp:{domain}" for domain in dsp.DOMAINS),
    ]


def preference_in_words(source: str) -> str | None:
    """What one would tell a model instead of training it; None for sources that do not say.

    P-Soups' own preference prompts for ``psoups:`` and ``starter:``, a sentence of ours for ``dsp:``.
    """
    kind, _, part = source.partition(":")
    if kind == "dsp":
        return dsp.DOMAIN_PROMPTS.get(part)
    code = STARTER_TYPES.get(part, part) if kind == "starter" else part if kind == "psoups" else ""
    return psoups.PREFERENCE_PROMPTS.get(code)


def psoups_file(code: str, data_folder: Path | None) -> Path:
    """The raw P-Soups file of a type."""
    places = ("preferences/psoups", "psoups", "rm_training", "")
    return _find(
        [f"{place}/{code}.json".lstrip("/") for place in places], f"psoups:{code}", data_folder, psoups.WHERE_TO_GET
    )


def dsp_file(domain: str, data_folder: Path | None) -> Path:
    """The raw DSP file: training data where they are there, else test data."""
    names = [
        f"{place}{stem}.{split}.json"
        for split in ("train", "test")
        for place in ("preferences/", "", "data/")
        for stem in ("dsp", "domain_specific_preference")
    ]
    return _find(names, f"dsp:{domain}", data_folder, dsp.WHERE_TO_GET)


def _named(kind: str, part: str, data_folder: Path | None) -> Iterator[Pair]:
    if kind == "starter":
        styles = {**{style: style for style in STARTER_TYPES}, **{code: style for style, code in STARTER_TYPES.items()}}
        return read_starter(styles[_one_of(part, styles, kind)])
    if kind == "psoups":
        code = _one_of(part, psoups.PREFERENCE_PROMPTS, kind)
        return psoups.read_psoups(psoups_file(code, data_folder), code)
    domain = _one_of(part, dsp.DOMAINS, kind)
    return dsp.read_dsp(dsp_file(domain, data_folder), domain)


def _one_of(part: str, known: Iterable[str], kind: str) -> str:
    names = list(known)
    if part in names:
        return part
    near = difflib.get_close_matches(part, names, n=1, cutoff=0.5)
    hint = f" (did you mean {kind}:{near[0]}?)" if near else ""
    raise BapoError(f"There is no preference {kind}:{part}{hint}: use one of {', '.join(names)}.")


def _find(names: list[str], source: str, data_folder: Path | None, where_to_get: str) -> Path:
    folder = data_folder or (Path(os.environ[DATA_VARIABLE]) if os.environ.get(DATA_VARIABLE) else None)
    if folder is None:
        raise BapoError(
            f"{source} needs its raw files: {where_to_get}, then name the folder with --data or {DATA_VARIABLE}."
        )
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise BapoError(f"{source} is not in {folder} (looked for {names[0]} and the like): {where_to_get} there.")
