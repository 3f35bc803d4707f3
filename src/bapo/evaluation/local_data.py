"""Benchmark questions from a local folder of JSONL files, for machines without the hub.

The format (docs/evaluation.md): one object a line with ``question``, ``choices``, ``answer`` (index of the
right choice, from 0), ``context`` where there is one, and ``subject`` for MMLU; for HHH ``category``, ``prompt``,
``chosen``, ``rejected``. Each is turned into the row that the benchmark's task expects from the hub.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from bapo.errors import BapoError
from bapo.evaluation.registry import BENCHMARKS, LETTERS, Benchmark, Row
from bapo.files import json_lines, make_folder, read_text, write_text


def local_folder(folder: str | Path | None) -> Path | None:
    """The folder that is named, or that ``BAPO_DATA`` names, or None for the hub.

    Raises:
        BapoError: the folder does not exist.
    """
    named = folder or os.environ.get("BAPO_DATA")
    if not named:
        return None
    path = Path(named).expanduser()
    if not path.is_dir():
        raise BapoError(
            f"There is no data folder {path}: name one with --data-folder or BAPO_DATA, or neither for the hub."
        )
    return path


def hub_rows(benchmark: str, split: str, folder: Path) -> tuple[Row, ...]:
    """The questions of a local file, as rows of the benchmark's hub data set.

    Raises:
        BapoError: the file is missing, or a line does not fit the format; says which line and why.
    """
    path = folder / BENCHMARKS[benchmark].files[split]
    if not path.is_file():
        raise BapoError(
            f"{path} is missing: write it with `bapo benchmark-files {benchmark}` on a machine that reaches the hub."
        )
    return _read(benchmark, path, path.stat().st_mtime_ns)


@cache
def _read(benchmark: str, path: Path, changed: int) -> tuple[Row, ...]:
    known = BENCHMARKS[benchmark]
    rows = tuple(known.to_hub(_checked(known, row, where)) for where, row in json_lines(read_text(path), path))
    if not rows:
        raise BapoError(f"{path} holds no questions: write it again with `bapo benchmark-files {benchmark}`.")
    return rows


def _checked(benchmark: Benchmark, row: Any, where: str) -> Row:
    keys = benchmark.keys
    if not isinstance(row, dict):
        raise BapoError(f"{where} is not an object: each line must be one object with {', '.join(keys)}.")
    missing = [key for key in keys if key not in row]
    if missing:
        raise BapoError(f"{where} lacks {' and '.join(missing)}: each line needs {', '.join(keys)}.")
    if not all(isinstance(row[key], str) for key in keys if key not in ("choices", "answer")):
        raise BapoError(f"{where}: all but choices and answer must be text.")
    if not row.get("prompt", "x").strip():
        raise BapoError(f"{where}: the prompt is empty: fill it in, or remove the line.")
    if "choices" not in keys:
        return row
    if not isinstance(row.get("context", ""), str):
        raise BapoError(f"{where}: the context must be text.")
    choices, answer = row["choices"], row["answer"]
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c for c in choices):
        raise BapoError(f"{where}: choices must be a list of at least two texts.")
    if len(choices) > len(LETTERS) or len(choices) != (benchmark.choices or len(choices)):
        wanted = benchmark.choices or f"at most {len(LETTERS)}"
        raise BapoError(
            f"{where} has {len(choices)} choices, but {benchmark.name} takes {wanted}: leave that question out, or "
            "mend its choices."
        )
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        raise BapoError(f"{where}: answer is {answer!r}, but must be an index from 0 to {len(choices) - 1}.")
    return row


def write_files(benchmark: str, documents: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write the local files of a benchmark from the rows of its hub data set, split by split.

    Args:
        benchmark: its name.
        documents: of each split in its ``files``, its rows.
        folder: where the files go; existing ones are replaced.
    """
    written = []
    known = BENCHMARKS[benchmark]
    for split, name in known.files.items():
        path = folder / name
        make_folder(path.parent)
        lines = (
            json.dumps({"id": f"{benchmark}-{split}-{number}", **known.from_hub(row)}, ensure_ascii=False)
            for number, row in enumerate(documents[split])
        )
        write_text(path, "".join(f"{line}\n" for line in lines))
        written.append(path)
    return written
