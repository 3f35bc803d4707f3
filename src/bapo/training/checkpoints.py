"""Checkpoints that a killed run can trust: one counts only when its last file, the mark, fits the others."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from bapo.files import write_json

MARK = "complete"


def mark_complete(checkpoint: Path) -> None:
    """Say that everything in the checkpoint has been written, and how large each file is."""
    write_json(checkpoint / MARK, _sizes(checkpoint))


def last_complete(output_dir: Path) -> Path | None:
    """The newest whole checkpoint of a run; torn ones, and those with a file that was cut or deleted, are removed."""
    whole: list[tuple[int, Path]] = []
    for folder in output_dir.glob("checkpoint-*"):
        step = re.fullmatch(r"checkpoint-(\d+)", folder.name)
        if step is None:
            continue
        if _is_whole(folder):
            whole.append((int(step[1]), folder))
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return max(whole)[1] if whole else None


def _is_whole(checkpoint: Path) -> bool:
    try:
        return bool(json.loads((checkpoint / MARK).read_bytes()) == _sizes(checkpoint))
    except (OSError, ValueError):
        return False


def _sizes(checkpoint: Path) -> dict[str, int]:
    files = (path for path in checkpoint.rglob("*") if path.is_file() and path != checkpoint / MARK)
    return {str(path.relative_to(checkpoint)): path.stat().st_size for path in files}
