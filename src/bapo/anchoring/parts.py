"""Parts of a store for another machine: what one user's data need, and nothing that others anchored."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bapo.anchoring.known import MANIFEST
from bapo.anchoring.store import names_of_record
from bapo.anchoring.uses import uses_of
from bapo.files import read_bytes, write_bytes
from bapo.journal import Journal, as_journal


def part_of(store: Path, data: str) -> dict[str, bytes]:
    """What a store holds of some data, as files of a smaller store, by their names.

    Args:
        store: the folder.
        data: fingerprint of the data, as whoever anchored them gave it; the whole store, if nobody did.

    Raises:
        BapoError: a file cannot be read, or is damaged.
    """
    used = [prompt for use in uses_of(store) if use.data == data for prompt in use.prompts]
    prompts, scores = {each.prompt for each in used}, {key for each in used for key in each.scores}

    def is_used(record: Mapping[str, Any]) -> bool:
        return not used or record.get("prompt") in prompts or record.get("key") in scores

    journals = {path.name: Journal(path).read() for path in sorted(store.glob("*.jsonl"))}
    files = {name: as_journal(list(filter(is_used, batch)) for batch in read) for name, read in journals.items()}
    return {MANIFEST: read_bytes(store / MANIFEST), **files}


def add_part(store: Path, files: Mapping[str, bytes]) -> None:
    """Add what a store lacks of another one over the same model; its lock is held.

    Args:
        store: the folder, which may be empty.
        files: as of `part_of`.

    Raises:
        BapoError: a journal is damaged, or cannot be written.
    """
    for name, content in files.items():
        path = store / name
        if name.endswith(".jsonl") and path.is_file():
            _add_records(path, content)
        elif not path.is_file():
            write_bytes(path, content)


def _add_records(path: Path, content: bytes) -> None:
    journal = Journal(path)
    known = {name for batch in journal.read() for record in batch for name in names_of_record(record)}
    journal.add(content, lambda record: not known.issuperset(names_of_record(record)))
