"""Folders that bapo fills, as they are found again to be deleted: which files in them are its own."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from bapo.errors import BapoError
from bapo.files import LOCK, is_hidden, locked, read_text, write_json, writing
from bapo.jobs.marks import ADAPTERS, adapter_mark
from bapo.jobs.places import PART, RUN, WHOLE, kind_of
from bapo.jobs.run_folder import is_own_page
from bapo.results import ANCHORED, ASKED, PERSONALIZATION
from bapo.results.runs import DONE, STARTED

_OF_A_RUN = (
    "adapter_config.json", "*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json",
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template.*", "additional_chat_templates",
    "vocab.*", "merges.txt", "*.spm", "spiece.model", "sentencepiece*.model", "training_args.bin", "checkpoints",
    STARTED, DONE,
)  # fmt: skip
"""What a trainer and the libraries that save for it write."""

_REPORT, _RECORDS = "report.json", "records"
_FOLDERS_OF_RECORDS = (_RECORDS, "comparisons")
_OF_A_PERSONALIZATION = ("held-out", "answers", "report.html", _REPORT)
_EVALUATION = "evaluation"
_OF_AN_EVALUATION = ("[0-9a-f]" * 16,)
_OF_A_STUDY = ("jobs", "anchored")
_DELETING = "deleting.json"
"""In a folder that is being deleted, what it held; a killed deletion goes on from it."""


@dataclass(frozen=True)
class Kept:
    """A folder that bapo filled.

    Attributes:
        folder: where it lies.
        kind: what it holds, in words.
        data: fingerprints of the data that it was made from.
        marks: by which its adapters are known in records.
        runs: the folders of its runs, if it is a personalization.
        own: what lies in it and is its own.
        others: what lies in it and was written by somebody else.
    """

    folder: Path
    kind: str
    data: frozenset[str]
    marks: frozenset[str]
    runs: tuple[Path, ...]
    own: tuple[Path, ...]
    others: tuple[Path, ...]


def check_free(folder: Path, kind: str) -> None:
    """Refuse a folder in which a file that bapo did not write bears the name of one that it would write.

    Args:
        folder: that is to be filled, if it is there.
        kind: `RUN` or `WHOLE`, of `bapo.jobs.places`.

    Raises:
        BapoError: it has such a file.
    """
    if _kind(folder):
        return
    own, _ = _divided(folder, _OF_A_RUN if kind == RUN else _OF_A_PERSONALIZATION)
    taken = [path.name for path in own if not is_hidden(path) and path.name not in ("README.md", STARTED, DONE)]
    if taken:
        raise BapoError(
            f"{folder} holds {', '.join(taken[:3])}, which no run there has written and which would be replaced: name "
            "another folder with --output."
        )


def find(folder: Path, users: Collection[str] = ()) -> Kept:
    """What a folder holds.

    Args:
        folder: of a run, a personalization or an evaluation.
        users: the folders that stores know as users of what they hold.

    Raises:
        BapoError: it holds nothing of these, is a link or a study's, or belongs to a personalization.
    """
    if folder.is_symlink():
        raise BapoError(f"{folder} is a link, and what it leads to is not deleted through it: name the folder itself.")
    if all((folder / name).is_dir() for name in _OF_A_STUDY):
        raise BapoError(f"{folder} is a study's, and all of it lies in it: delete the folder itself.")
    begun = _content(folder / _DELETING)
    kind, registered = begun.get("kind") or _kind(folder), os.path.realpath(folder) in users
    if kind == PART and not registered:
        raise BapoError(f"{folder} belongs to the personalization {folder.parent}: delete that as a whole.")
    if not kind and registered and _is_empty(folder):
        kind = RUN  # of which nothing has been written, or is left
    kept = None
    if kind in (RUN, PART):
        kept = _run(folder, is_one=bool(begun) or _is_run(folder))
    elif kind == WHOLE:
        kept = _personalization(folder, _texts(begun, "runs"), users)
    elif kind == _EVALUATION:
        kept = _evaluation(folder)
    if kept is not None:
        data, marks = kept.data.union(_texts(begun, "data")), kept.marks.union(_texts(begun, "marks"))
        return replace(kept, data=data, marks=marks)
    raise BapoError(
        f"{folder} holds no run, personalization or evaluation of bapo (no {DONE}, {STARTED}, {_REPORT} or records of "
        "one), so nothing was deleted: name the folder that was its --output or --records."
    )


def is_kept(folder: Path) -> bool:
    """Whether a folder is there, and is not being deleted."""
    return folder.is_dir() and not (folder / _DELETING).is_file()


@contextmanager
def held(kept: Kept) -> Iterator[None]:
    """Hold what a training would hold.

    Raises:
        BapoError: another process is at work there.
    """

    def busy() -> None:
        raise BapoError(f"Another process trains into {kept.folder}: stop it first, or wait for it.")

    with ExitStack() as stack:
        for run in (kept.folder, *kept.runs):
            if run.is_dir():
                stack.enter_context(locked(run / LOCK, busy))
        if kept.folder.is_dir():
            known = {"kind": kept.kind, "data": sorted(kept.data), "marks": sorted(kept.marks)}
            known["runs"] = [run.name for run in kept.runs]
            write_json(kept.folder / _DELETING, known)
        yield
        if os.name != "nt":  # where an open file cannot be removed
            _leave(kept)
    if os.name == "nt":
        _leave(kept)


def _leave(kept: Kept) -> None:
    """Take away locks while they are held: who waits for one finds it gone, and begins anew."""
    for folder in (*kept.runs, kept.folder):
        for name in (LOCK, _DELETING):
            remove(folder / name)
        if folder.is_dir() and not any(folder.iterdir()):
            with writing(folder):
                folder.rmdir()


def clear(kept: Kept) -> None:
    """Delete what is its own."""
    for run in kept.runs:
        clear(_run(run, is_one=True))
    for path in kept.own:
        remove(path)


def remove(path: Path) -> None:
    """Delete a file, a link or a folder with all in it; what a link leads to stays.

    Raises:
        BapoError: it cannot be deleted.
    """
    with writing(path):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def derived_records(root: Path, marks: Collection[str], data: Collection[str]) -> Iterator[Path]:
    """Records below a folder that were made of some adapters or some data, with what belongs to them.

    Answers to benchmarks go with the last record that speaks of them.
    """
    contents = {path: _content(path) for name in _FOLDERS_OF_RECORDS for path in (root / name).glob("*.json")}
    gone = [path for path, content in contents.items() if _is_of(content, marks, data)]
    needed = {store for path, content in contents.items() if path not in gone for store in _answers(content)}
    for store in sorted({store for path in gone for store in _answers(contents[path])} - needed):
        folder = Path(store)
        if os.path.isdir(store) and folder.resolve().is_relative_to(root.resolve()):
            yield folder
    for path in gone:  # last, because they name the folders
        yield from _beside(path)
        yield path


def records_of_stores(root: Path, stores: Collection[str]) -> Iterator[Path]:
    """Records of what was anchored into stores that have lost something."""
    for path in (root / _RECORDS).glob("*.json"):
        content = _content(path)
        if content.get("kind") == ANCHORED.name and set(_texts(content, "content", "folder")) & set(stores):
            yield path


def _kind(folder: Path) -> str:
    """What a folder is by what lies in it, and where nothing does by what is known of it."""
    known = kind_of(folder)
    if _is_run(folder):
        return known if known in (RUN, PART) else PART if _is_personalization(folder.parent) else RUN
    if _is_personalization(folder):
        return WHOLE
    if any("made_from" in _content(path) for path in (folder / _RECORDS).glob("*.json")):
        return _EVALUATION
    if known == WHOLE and any(_is_begun_part(path) or path.name in _OF_A_PERSONALIZATION for path in _inside(folder)):
        return known
    return known if _is_empty(folder) else ""


def _is_begun_part(folder: Path) -> bool:
    """Whether it is a run's of a personalization, which may have been stopped before it wrote anything."""
    return folder.is_dir() and kind_of(folder) == PART and (_is_run(folder) or _is_empty(folder))


def _is_empty(folder: Path) -> bool:
    return all(map(is_hidden, _inside(folder)))


def _run(folder: Path, *, is_one: bool) -> Kept:
    """The run of a folder; of one that has not written anything, ``is_one`` is false."""
    mark = adapter_mark(folder) if is_one else None
    data = frozenset(str(content["data"]) for name in (DONE, STARTED) if "data" in (content := _content(folder / name)))
    own, others = _divided(folder, _OF_A_RUN if is_one else ())
    return Kept(folder, RUN, data, frozenset([mark] if mark else []), (), own, others)


def _personalization(folder: Path, begun: Collection[str], users: Collection[str]) -> Kept:
    """Its own runs are those that it names or began, and no run that a store knows by itself."""
    named = _texts(_content(folder / _REPORT), "content", "adapters")
    runs = tuple(
        path
        for path in sorted(_inside(folder))
        if path.is_dir()
        and not path.is_symlink()
        and os.path.realpath(path) not in users
        and (path.name in begun or _is_begun_part(path) or (path.name in named and _is_run(path)))
    )
    own, others = _divided(folder, _OF_A_PERSONALIZATION)
    ours = [_run(run, is_one=True) for run in runs]
    others = tuple(path for path in others if path not in runs) + tuple(path for run in ours for path in run.others)
    data = _data_in([folder / _REPORT]).union(*(run.data for run in ours))
    marks: frozenset[str] = frozenset().union(*(run.marks for run in ours))
    return Kept(folder, WHOLE, data, marks, runs, own, others)


def _evaluation(folder: Path) -> Kept:
    """Of its folders of records only what is a record, or belongs to one."""
    own, others = map(list, _divided(folder, (*_OF_AN_EVALUATION, *_FOLDERS_OF_RECORDS)))
    records = [path for name in _FOLDERS_OF_RECORDS for path in sorted((folder / name).glob("*.json"))]
    ours = {each for path in records if "kind" in _content(path) for each in (path, *_beside(path))}
    for of_records in [path for path in own if path.name in _FOLDERS_OF_RECORDS]:
        there = _inside(of_records)
        foreign = sorted(path for path in there if path not in ours and not is_hidden(path))
        if foreign:
            own.remove(of_records)
            own += sorted(set(there) - set(foreign))
            others += foreign
    return Kept(folder, _EVALUATION, _data_in(records), frozenset(), (), tuple(own), tuple(others))


def _beside(record: Path) -> list[Path]:
    """What belongs to a record: its rows, and its page."""
    return [path for end in (".parquet", ".html") if (path := record.with_suffix(end)).is_file()]


def _is_run(folder: Path) -> bool:
    return any("identity" in (content := _content(folder / name)) and "settings" in content for name in (DONE, STARTED))


def _is_personalization(folder: Path) -> bool:
    return bool(_content(folder / _REPORT).get("kind") == PERSONALIZATION.name)


def _divided(folder: Path, own: Collection[str]) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """What of a folder is its own, with what a killed process was writing, and what is not."""
    ours: list[Path] = []
    others: list[Path] = []
    for path in sorted(_inside(folder)):
        if path.name in (LOCK, _DELETING):  # which go at the very end
            continue
        staged = is_hidden(path)
        page = path.name == "README.md" and path.is_file() and is_own_page(path)
        is_ours = page or staged or any(fnmatch(path.name, name) for name in own)
        (ours if is_ours else others).append(path)
    return tuple(ours), tuple(others)


def _inside(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _content(path: Path) -> dict[str, Any]:
    """A file of JSON as far as it can be read: one that is damaged is no reason to keep what it is about."""
    try:
        content = json.loads(read_text(path))
    except (BapoError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _texts(content: Any, *keys: str) -> list[str]:
    """What a record holds under some keys: a text, or the texts of a list or an object; of anything else nothing.

    Records lie where others can write, and one that holds something else is no reason to delete nothing.
    """
    for key in keys:
        content = content.get(key) if isinstance(content, dict) else None
    values = content.values() if isinstance(content, dict) else content if isinstance(content, list) else [content]
    return [value for value in values if isinstance(value, str)]


def _data_in(records: Collection[Path]) -> frozenset[str]:
    return frozenset(each for path in records for each in _texts(_content(path), "made_from", "data"))


def _is_of(content: dict[str, Any], marks: Collection[str], data: Collection[str]) -> bool:
    adapters = {
        *_texts(content, "made_from", "adapter_weights"),
        *_texts(content, "made_from", "settings", ADAPTERS),
    }
    return bool(adapters & set(marks)) or bool(set(_texts(content, "made_from", "data")) & set(data))


def _answers(content: dict[str, Any]) -> list[str]:
    return _texts(content, "content", "stores") if content.get("kind") == ASKED.name else []
