"""Checkpoints that a killed run can trust: one counts only when its last file, the mark, is there."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

MARK = "complete"


def mark_complete(checkpoint: Path) -> None:
    """Say that everything in the checkpoint has been written."""
    (checkpoint / MARK).touch()


def last_complete(output_dir: Path) -> Path | None:
    """The newest whole checkpoint of a run; torn ones are removed."""
    whole: list[tuple[int, Path]] = []
    for folder in output_dir.glob("checkpoint-*"):
        step = re.fullmatch(r"checkpoint-(\d+)", folder.name)
        if step is None:
            continue
        if (folder / MARK).is_file():
            whole.append((int(step[1]), folder))
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return max(whole)[1] if whole else None
