"""The job `bapo delete`: a run, a personalization or an evaluation, with all that was derived from its data.

First the folder says that it is being deleted, then what lies in stores and in the cache goes, and the folder at the
end: killed at any moment and started again, it goes on. What others use of a store stays and is listed.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from bapo.errors import BapoError
from bapo.files import LOCK, locked
from bapo.jobs import kept_folders
from bapo.jobs.kept_folders import Kept, derived_records, remove
from bapo.jobs.places import place_of

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
    from bapo.anchoring import stores_of, uses_of
    from bapo.models import cache_folder

    cache, here = cache_folder(), os.path.realpath(folder)
    uses = {store: list(uses_of(store)) for store in stores_of(cache)}
    everyone = [use for of_store in uses.values() for use in of_store]
    kept = kept_folders.find(folder, {use.folder for use in everyone if use.folder})
    others = {use.data for use in everyone if _lives(use, here)}
    gone = {use.data for use in everyone if use.folder == here} | kept.data
    words = frozenset(
        used.words
        for use in everyone
        if use.folder == here or (use.data in gone and not _lives(use, here))
        for used in use.prompts
    )
    parts = [part for store in uses if (part := _part(store, uses[store], words, here)).uses]
    answers = [cache / "answers", *(path for path in records if path.resolve() != folder.resolve())]
    derived = [path for root in answers for path in derived_records(root, kept.marks, gone - others)]
    changed = {str(part.folder.resolve()) for part in parts if part.prompts or part.scores}
    derived += [path for root in (cache / "anchors", *uses) for path in kept_folders.records_of_stores(root, changed)]
    shared: Counter[str] = Counter()
    for part in parts:
        shared.update(part.shared)
    places = tuple(path for path in map(place_of, (folder, *kept.runs)) if path.is_file())
    return Deletion(kept, tuple(parts), tuple(dict.fromkeys(derived)), places, shared)


def carry_out(deletion: Deletion) -> None:
    """Delete it. Who uses what is looked up once more, under the lock of each store.

    That somebody uses a store is forgotten last: by it a killed deletion knows, when it is started again, what to do.

    Raises:
        BapoError: another process is at work there, or something cannot be deleted; started again, it goes on.
    """
    with kept_folders.held(deletion.kept):
        here = os.path.realpath(deletion.kept.folder)
        for part in deletion.stores:
            with _current(part, here) as now:
                _forget(now)
        for path in (*deletion.records, *deletion.places):
            remove(path)
        for part in deletion.stores:
            with _current(part, here) as now:
                for use in sorted(now.uses, key=lambda use: use.folder == here):
                    use.without(now.words)
        kept_folders.clear(deletion.kept)


def _lives(use: Use, here: str) -> bool:
    """Whether somebody goes on to use it: a folder that is there, and neither this one nor being deleted."""
    return bool(use.folder) and use.folder != here and kept_folders.is_kept(Path(str(use.folder)))


def _part(store: Path, uses: Sequence[Use], words: frozenset[str], here: str) -> StorePart:
    """What of a store nobody uses any more; a use without a folder, or of one that is gone, keeps nothing."""
    owners: dict[str, set[str]] = {}
    scores: set[str] = set()
    ours = []
    for use in uses:
        if _lives(use, here):
            for used in use.prompts:
                owners.setdefault(used.prompt, set()).add(str(use.folder))
                scores |= set(used.scores)
        elif use.folder == here or _any_of(use, words):
            ours.append(use)
    theirs = [used for use in ours for used in use.prompts if used.words in words]
    prompts = {used.prompt for used in theirs if used.prompt}
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


@contextmanager
def _current(part: StorePart, here: str) -> Iterator[StorePart]:
    """The same part as it is now; its store is held."""
    from bapo.anchoring import uses_of

    def busy() -> None:
        raise BapoError(f"Another process anchors into {part.folder}: wait for it, and start the command again.")

    with locked(part.folder / LOCK, busy):
        yield _part(part.folder, list(uses_of(part.folder)), part.words, here)


def _forget(part: StorePart) -> None:
    from bapo.anchoring import forget

    forget(part.folder, part.prompts, part.scores)
    for path in part.folder.glob(".*"):  # the index, and what a killed process was writing
        if path.name != LOCK and path.is_file():
            remove(path)
