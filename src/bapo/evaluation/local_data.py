"""Benchmark questions from a local folder of JSONL files, for machines without the hub.

The format (docs/evaluation.md): one object a line with ``id``, ``question``, ``choices``, ``answer`` (index of the
right choice, from 0), ``context`` where there is one, and ``subject`` for MMLU; for HHH ``category``, ``prompt``,
``chosen``, ``rejected``. Each is turned into the row that the benchmark's task expects from the hub.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from bapo.errors import BapoError
from bapo.files import json_lines, make_folder, read_text, write_text

Row = dict[str, Any]

FILES: Mapping[str, Mapping[str, str]] = {
    "piqa": {"validation": "knowledge/piqa.jsonl"},
    "siqa": {"validation": "knowledge/siqa.jsonl"},
    "arc_challenge": {"test": "knowledge/arc_challenge.jsonl"},
    "scienceqa": {"test": "knowledge/scienceqa.test.jsonl"},
    "commonsense_qa": {"validation": "knowledge/commonsense_qa.jsonl"},
    "mmlu": {"test": "knowledge/mmlu.test.jsonl", "dev": "knowledge/mmlu.dev.jsonl"},
    "hhh": {"test": "alignment/hhh.jsonl"},
}
"""Of each benchmark its splits and their files."""

_LETTERS = "ABCDEFGH"


def _labelled(row: Row) -> Row:
    return {"text": row["choices"], "label": list(_LETTERS[: len(row["choices"])])}


_TO_HUB: Mapping[str, Callable[[Row], Row]] = {
    "piqa": lambda r: {
        "goal": r["question"], "sol1": r["choices"][0], "sol2": r["choices"][1], "label": r["answer"],
    },
    "siqa": lambda r: {
        "context": r.get("context", ""), "question": r["question"], "answerA": r["choices"][0],
        "answerB": r["choices"][1], "answerC": r["choices"][2], "label": str(r["answer"] + 1),
    },
    "arc_challenge": lambda r: {
        "question": r["question"], "choices": _labelled(r), "answerKey": _LETTERS[r["answer"]],
    },
    "scienceqa": lambda r: {
        "question": r["question"], "choices": r["choices"], "answer": r["answer"], "hint": r.get("context", ""),
    },
    "commonsense_qa": lambda r: {
        "question": r["question"], "choices": _labelled(r), "answerKey": _LETTERS[r["answer"]],
    },
    "mmlu": lambda r: {
        "question": r["question"], "choices": r["choices"], "answer": r["answer"], "subject": r["subject"],
    },
    "hhh": lambda r: {key: r[key] for key in ("prompt", "chosen", "rejected", "category")},
}  # fmt: skip

_FROM_HUB: Mapping[str, Callable[[Row], Row]] = {
    "piqa": lambda r: {"question": r["goal"], "choices": [r["sol1"], r["sol2"]], "answer": int(r["label"])},
    "siqa": lambda r: {
        "question": r["question"], "context": r["context"],
        "choices": [r["answerA"], r["answerB"], r["answerC"]], "answer": int(r["label"]) - 1,
    },
    "arc_challenge": lambda r: {
        "question": r["question"], "choices": list(r["choices"]["text"]),
        "answer": list(r["choices"]["label"]).index(r["answerKey"]),
    },
    "scienceqa": lambda r: {
        "question": r["question"], "choices": list(r["choices"]), "answer": int(r["answer"]),
        **({"context": r["hint"]} if r.get("hint") else {}),
    },
    "commonsense_qa": lambda r: {
        "question": r["question"], "choices": list(r["choices"]["text"]),
        "answer": list(r["choices"]["label"]).index(r["answerKey"]),
    },
    "mmlu": lambda r: {
        "question": r["question"], "choices": list(r["choices"]), "answer": int(r["answer"]), "subject": r["subject"],
    },
    "hhh": lambda r: {key: r[key] for key in ("prompt", "chosen", "rejected", "category")},
}  # fmt: skip

_CHOICES = {"piqa": 2, "siqa": 3, "commonsense_qa": 5, "mmlu": 4}  # the tasks of these have fields for so many choices


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
        raise BapoError(f"There is no data folder {path}: name one with --data or BAPO_DATA, or neither for the hub.")
    return path


def hub_rows(benchmark: str, split: str, folder: Path) -> tuple[Row, ...]:
    """The questions of a local file, as rows of the benchmark's hub data set.

    Raises:
        BapoError: the file is missing, or a line does not fit the format; says which line and why.
    """
    path = folder / FILES[benchmark][split]
    if not path.is_file():
        raise BapoError(
            f"{path} is missing: write it with `bapo data-files {benchmark}` on a machine that reaches the hub."
        )
    return _read(benchmark, path, path.stat().st_mtime_ns)


@cache
def _read(benchmark: str, path: Path, changed: int) -> tuple[Row, ...]:
    rows = tuple(
        _TO_HUB[benchmark](_checked(benchmark, row, where)) for where, row in json_lines(read_text(path), path)
    )
    if not rows:
        raise BapoError(f"{path} holds no questions.")
    return rows


def _checked(benchmark: str, row: Any, where: str) -> Row:
    needed = {"hhh": ("category", "prompt", "chosen", "rejected"), "mmlu": ("question", "choices", "answer", "subject")}
    keys = needed.get(benchmark, ("question", "choices", "answer"))
    if not isinstance(row, dict):
        raise BapoError(f"{where} is not an object: each line must be one object with {', '.join(keys)}.")
    missing = [key for key in keys if key not in row]
    if missing:
        raise BapoError(f"{where} lacks {' and '.join(missing)}: each line needs {', '.join(keys)}.")
    if not all(isinstance(row[key], str) for key in keys if key not in ("choices", "answer")):
        raise BapoError(f"{where}: all but choices and answer must be text.")
    if benchmark == "hhh":
        if not row["prompt"].strip():
            raise BapoError(f"{where}: the prompt is empty.")
        return row
    if not isinstance(row.get("context", ""), str):
        raise BapoError(f"{where}: the context must be text.")
    choices, answer = row["choices"], row["answer"]
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c for c in choices):
        raise BapoError(f"{where}: choices must be a list of at least two texts.")
    if len(choices) > len(_LETTERS) or len(choices) != _CHOICES.get(benchmark, len(choices)):
        wanted = _CHOICES.get(benchmark, f"at most {len(_LETTERS)}")
        raise BapoError(f"{where} has {len(choices)} choices, but {benchmark} takes {wanted}.")
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        raise BapoError(f"{where}: answer is {answer!r}, but must be an index from 0 to {len(choices) - 1}.")
    return row


def write_files(benchmark: str, documents: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write the local files of a benchmark from the rows of its hub data set, split by split.

    Args:
        benchmark: its name.
        documents: of each split in `FILES`, its rows.
        folder: where the files go; existing ones are replaced.
    """
    written = []
    for split, name in FILES[benchmark].items():
        path = folder / name
        make_folder(path.parent)
        lines = (
            json.dumps({"id": f"{benchmark}-{split}-{number}", **_FROM_HUB[benchmark](row)}, ensure_ascii=False)
            for number, row in enumerate(documents[split])
        )
        write_text(path, "".join(f"{line}\n" for line in lines))
        written.append(path)
    return written
