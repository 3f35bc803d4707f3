"""The job `bapo delete`: a run, a personalization or an evaluation, with all that was derived from its data.

First the folder says that it is being deleted, then what lies in stores and in the cache goes, and the folder at the
end: killed at any moment and started again, it goes on. What others use of a store stays and is listed.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bapo.errors import BapoError
from bapo.files import LOCK, locked
from bapo.jobs import kept_folders
from bapo.jobs.kept_folders import Kept, derived_records, remove
from bapo.jobs.places import place_of, store_of

if TYPE_CHECKING:
    from bapo.anchoring import Use


@dataclass(frozen=True)
class StorePart:
    """What goes of an anchored store.

    Attributes:
        folder: of the store.
        prompts, scores: keys that go.
        shared: prompts that stay, by the folder that uses them.
        uses: that name what goes, and ``words`` the hashes of prompts that are taken out of them.
    """

    folder: Path
    prompts: frozenset[str]
    scores: frozenset[str]
    shared: Mapping[str, int]
    uses: tuple[Use, ...]
    words: frozenset[str]


@dataclass(frozen=True)
class Deletion:
    """What is to be deleted.

    Attributes:
        kept: the folder.
        stores: what goes of anchored stores.
        records: files and folders of the cache, and of other folders of records, that go.
        places: what the cache knows of where things lie.
        shared: prompts that stay, by the folder that uses them.
    """

    kept: Kept
    stores: tuple[StorePart, ...] = ()
    records: tuple[Path, ...] = ()
    places: tuple[Path, ...] = ()
    shared: Mapping[str, int] = field(default_factory=dict)

    @property
    def is_known(self) -> bool:
        """Whether a store knows what was anchored for it."""
        return any(part.uses for part in self.stores)


def plan(folder: Path, records: Sequence[Path] = ()) -> Deletion:
    """What deleting a folder would delete; nothing is.

    Args:
        folder: of a run, a personalization or an evaluation.
        records: folders of evaluations beside the cache's (``--records``).

    Raises:
        BapoError: it is none of these, is a link, or belongs to a personalization.
    """
    from bapo.models import cache_folder

    cache = cache_folder()
    stores = _stores(folder, cache)
    uses = {store: list(_uses(store)) for store in stores}
    here = os.path.abspath(folder)
    registered = any(use.folder == here for of_store in uses.values() for use in of_store)
    kept = kept_folders.find(folder, registered=registered)
    living = {use.folder for of_store in uses.values() for use in of_store if use.folder and Path(use.folder).is_dir()}
    living -= {here}
    others = {use.data for of_store in uses.values() for use in of_store if use.folder in living}
    gone = {use.data for of_store in uses.values() for use in of_store if use.folder == here} | kept.data
    words = frozenset(
        used.words
        for of_store in uses.values()
        for use in of_store
        if use.folder == here or (use.folder not in living and use.data in gone)
        for used in use.prompts
    )
    parts = tuple(_part(store, uses[store], words, living, here) for store in stores)
    answers = [cache / "answers", *(path for path in records if path.resolve() != folder.resolve())]
    derived = [path for root in answers for path in derived_records(root, kept.marks, gone - others)]
    changed = {str(part.folder.resolve()) for part in parts if part.prompts or part.scores}
    derived += [path for root in (cache / "anchors", *stores) for path in kept_folders.records_of_stores(root, changed)]
    shared: Counter[str] = Counter()
    for part in parts:
        shared.update(part.shared)
    places = tuple(path for path in map(place_of, (folder, *kept.runs)) if path.is_file())
    return Deletion(kept, tuple(part for part in parts if part.uses), tuple(dict.fromkeys(derived)), places, shared)


def carry_out(deletion: Deletion) -> None:
    """Delete it.

    Raises:
        BapoError: another process is at work there, or something cannot be deleted; started again, it goes on.
    """
    with kept_folders.held(deletion.kept):
        for part in deletion.stores:
            _forget(part)
        for path in (*deletion.records, *deletion.places):
            remove(path)
        kept_folders.clear(deletion.kept)


def _stores(folder: Path, cache: Path) -> list[Path]:
    named = store_of(folder)
    in_cache = sorted(path for path in (cache / "anchors").glob("*") if (path / "manifest.json").is_file())
    return [*in_cache, *([named] if named is not None and named.is_dir() and named not in in_cache else [])]


def _uses(store: Path) -> Iterator[Use]:
    from bapo.anchoring import uses_of

    return uses_of(store)


def _part(store: Path, uses: Sequence[Use], words: frozenset[str], living: set[Any], here: str) -> StorePart:
    """What of a store nobody uses any more; a use without a folder, or of one that is gone, keeps nothing."""
    ours = [use for use in uses if use.folder not in living and (use.folder == here or _any_of(use, words))]
    owners: dict[str, set[str]] = {}
    scores: set[str] = set()
    for use in uses:
        if use.folder in living:
            for used in use.prompts:
                owners.setdefault(used.prompt, set()).add(str(use.folder))
                scores |= set(used.scores)
    theirs = [used for use in ours for used in use.prompts if used.words in words]
    prompts = {used.prompt for used in theirs}
    return StorePart(
        store,
        frozenset(prompts - set(owners)),
        frozenset(key for used in theirs for key in used.scores) - scores,
        Counter(owner for prompt in prompts for owner in owners.get(prompt, ())),
        tuple(ours),
        words,
    )


def _any_of(use: Use, words: frozenset[str]) -> bool:
    return any(used.words in words for used in use.prompts)


def _forget(part: StorePart) -> None:
    from bapo.anchoring import forget

    def busy() -> None:
        raise BapoError(f"Another process anchors into {part.folder}: wait for it, and start the command again.")

    with locked(part.folder / LOCK, busy):
        forget(part.folder, part.prompts, part.scores)
        for path in part.folder.glob(".*"):  # what a killed process was writing
            if path.name != LOCK and path.is_file():
                remove(path)
        for use in part.uses:
            use.without(part.words)
