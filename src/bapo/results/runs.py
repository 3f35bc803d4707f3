"""The record of a training run, ``run.json`` in its folder: what was trained, of what, and how."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from bapo.errors import BapoError
from bapo.files import checksum_of_file, read_bytes, read_record, write_record
from bapo.results.records import typed
from bapo.settings import shortened

STARTED, DONE = "started.json", "run.json"
VERSION = 2
_SECTIONS = ("preferences", "anchoring", "lora", "training")
AGAIN = "delete the folder and train again, or name another with --output"


@dataclass(frozen=True)
class Run:
    """One finished training run.

    Attributes:
        name: the objective.
        folder: where adapter, settings and log lie.
        log: what the trainer logged, one entry per logging step.
        weights: checksums of the files of weights.
    """

    name: str
    folder: Path
    log: tuple[dict[str, float], ...]
    weights: Mapping[str, str]


@dataclass(frozen=True)
class _Kept:
    """What is read of a run's record."""

    objective: str
    log: tuple[dict[str, float], ...]
    weights: dict[str, str]


def write_run(folder: Path, record: Mapping[str, Any], weights: Mapping[str, str]) -> None:
    """Write the record by which a run counts as finished, with the checksums of its weights.

    Raises:
        BapoError: it cannot be written.
    """
    write_record(folder / DONE, {"kind": "run", "version": VERSION, **record, "weights": dict(weights)})


def read_run(folder: Path) -> Run:
    """A finished run.

    Raises:
        BapoError: the folder holds none, or its record or its weights are not what was written.
    """
    path = folder / DONE
    if not path.is_file():
        raise BapoError(f"{folder} holds no finished run (no {DONE}): train it first.")
    content = read_record(path, AGAIN)
    _check_version(path, content)
    kept = typed(_Kept, content, path, AGAIN)
    if not kept.log or any(name not in entry for entry in kept.log for name in ("step", "loss", "pairs_per_second")):
        raise BapoError(f"{path} is damaged (its log lacks steps, losses or speeds): {AGAIN}.")
    for name, checksum in kept.weights.items():
        if Path(name).name != name:
            raise BapoError(f"{path} names weights outside of its folder ({shortened(name)}): {AGAIN}.")
        if checksum_of_file(folder / name) != checksum:
            raise BapoError(f"{folder / name} is not what was trained, but damaged or replaced: {AGAIN}.")
    return Run(kept.objective, folder, kept.log, kept.weights)


def _check_version(path: Path, content: Mapping[str, Any]) -> None:
    if content.get("version", 1) != VERSION:
        raise BapoError(
            f"{path} is a run in version {content.get('version', 1)}, and this bapo reads version {VERSION}: {AGAIN}."
        )


def record_of(adapter: str | Path | None) -> dict[str, Any] | None:
    """What is known of how an adapter of bapo's was trained; None of one that was made elsewhere.

    Raises:
        BapoError: its record is damaged, or of another version.
    """
    path = Path(adapter or "") / DONE
    if adapter is None or not path.is_file():
        return None
    try:
        run = json.loads(read_bytes(path))
        complete = isinstance(run["recipe"]["model"]["name"], str) and isinstance(run["reference"], str)
        complete &= all(isinstance(run["recipe"].get(section, {}), dict) for section in _SECTIONS)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        complete = False
    if not complete:
        return None
    _check_version(path, run)
    if "checksum" in run:
        return read_record(path, "train it again, or delete that file, and nothing is known of how it was trained")
    return dict(run)


def day_of(folder: Path) -> datetime | None:
    """What the chat template took for now when the prompts of a run were written; None where that is not known.

    A run that goes on, or is evaluated, on a later day or with another store keeps the prompts that it was trained on.
    """
    for path in (folder / DONE, folder / STARTED):
        if path.is_file():
            try:
                return datetime.fromisoformat(json.loads(read_bytes(path))["today"])
            except (BapoError, ValueError, KeyError, TypeError, RecursionError):
                continue
    return None
