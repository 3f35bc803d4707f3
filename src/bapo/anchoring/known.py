"""Which stores there are: those in the user's cache, and those elsewhere, of which the cache keeps a note."""

from __future__ import annotations

import json
import os
from pathlib import Path

from bapo.files import checksum, make_folder, write_json

MANIFEST = "manifest.json"
"""The file by which a folder is a store."""

STORES, _ELSEWHERE = "anchors", "stores"
"""In the user's cache: the folder of stores, and that of notes."""


def note_store(store: Path, cache: Path) -> None:
    """Let a store that lies elsewhere be known in the user's cache, so that what it holds can be forgotten."""
    folder = os.path.realpath(store)
    if Path(folder).parent == Path(os.path.realpath(cache / STORES)):
        return
    path = cache / _ELSEWHERE / f"{checksum(folder.encode('utf-8', 'surrogateescape'))}.json"
    if not path.is_file():
        write_json(make_folder(path.parent) / path.name, {"folder": folder})


def stores_of(cache: Path) -> list[Path]:
    """All stores that the user's cache holds or knows, and that are there."""
    notes = sorted((cache / _ELSEWHERE).glob("*.json"))
    folders = sorted((cache / STORES).glob("*")) + [Path(folder) for path in notes if (folder := _noted(path))]
    return [folder for folder in folders if (folder / MANIFEST).is_file()]


def _noted(path: Path) -> str:
    try:
        return str(json.loads(path.read_bytes())["folder"])
    except (OSError, ValueError, LookupError, TypeError):
        return ""
