"""Files that a killed process leaves whole: the one atomic write."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all: a reader, or a start after a kill, finds the old content or the new."""
    staging = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with staging.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        staging.replace(path)
    finally:
        staging.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """`write_text` of content as JSON."""
    write_text(path, json.dumps(content, indent=1, default=str) + "\n")
