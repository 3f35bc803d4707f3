"""Checkpoints that a killed run can trust: one counts only if its last file, the mark, fits the others byte by byte."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from bapo.errors import BapoError
from bapo.files import checksum_of_file, flush_folder, flush_name, write_json

MARK = "complete"


def mark_complete(checkpoint: Path, reference: str) -> None:
    """Say that everything in the checkpoint has been written, what each file holds, and which model it belongs to.

    Raises:
        BapoError: the disk refuses.
    """
    flush_folder(checkpoint)
    write_json(checkpoint / MARK, {"reference": reference, "files": _checksums(checkpoint)})
    for named in (checkpoint, checkpoint.parent):
        flush_name(named)


def last_complete(output_dir: Path) -> Path | None:
    """The newest whole checkpoint of a run; those with a file that was changed, cut or deleted are passed over."""
    return next((folder for folder in reversed(_in_order(output_dir)) if _mark(folder) is not None), None)


def drop_older(output_dir: Path, most: int | None, kept: Collection[Path]) -> None:
    """Remove checkpoints, those written first of all, until ``most`` are left; those in ``kept`` stay."""
    checkpoints = sorted(_in_order(output_dir), key=lambda folder: folder.stat().st_mtime_ns)
    spare = [folder for folder in checkpoints if folder not in kept]
    for folder in spare[: max(0, len(checkpoints) - most) if most else 0]:
        shutil.rmtree(folder, ignore_errors=True)


def check_checkpoint(checkpoint: Path, reference: str) -> None:
    """Whether training can go on from there.

    Raises:
        BapoError: it is no whole checkpoint, or one of another model.
    """
    mark = _mark(checkpoint)
    if mark is None:
        raise BapoError(
            f"{checkpoint} is no whole checkpoint of a BAPOTrainer: name another one, or start anew without it."
        )
    if mark["reference"] not in (reference, None):
        raise BapoError(
            f"The checkpoint {checkpoint} belongs to another model or precision: load the one that it was trained from."
        )


def _in_order(output_dir: Path) -> list[Path]:
    steps = ((re.fullmatch(r"checkpoint-(\d+)", folder.name), folder) for folder in output_dir.glob("checkpoint-*"))
    return [folder for _, folder in sorted((int(step[1]), folder) for step, folder in steps if step)]


def _mark(checkpoint: Path) -> dict[str, Any] | None:
    """What the mark says, if it fits the files that it names; one of an earlier version names their sizes."""
    try:
        mark: dict[str, Any] = json.loads((checkpoint / MARK).read_bytes())
        if "files" not in mark:
            sizes = {name: (checkpoint / name).stat().st_size for name in mark}
            return {"reference": None} if mark and sizes == mark else None
        inside = all((checkpoint / name).is_relative_to(checkpoint) and ".." not in name for name in mark["files"])
        whole = inside and all(checksum_of_file(checkpoint / name) == kept for name, kept in mark["files"].items())
        return mark if mark["files"] and mark["reference"] and whole else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, BapoError):
        return None


def _checksums(checkpoint: Path) -> dict[str, str]:
    files = (path for path in sorted(checkpoint.rglob("*")) if path.is_file() and path != checkpoint / MARK)
    return {str(path.relative_to(checkpoint)): checksum_of_file(path) for path in files}
