"""Comparison files: JSONL, JSON array, Parquet or CSV with prompt, chosen, rejected."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bapo.errors import BapoError
from bapo.preferences.formats import pair_from_record
from bapo.preferences.record import Pair

SUFFIXES = (".jsonl", ".json", ".parquet", ".csv")


def read_comparisons(path: Path) -> Iterator[Pair]:
    """Comparisons of a file, in order.

    Raises:
        BapoError: another kind of file, a damaged one, or a record that is no comparison; names the line.
    """
    for where, record in records(path):
        yield pair_from_record(record, where)


def records(path: Path) -> Iterator[tuple[str, Any]]:
    """Records of a file with their places.

    Raises:
        BapoError: another kind of file, or a damaged one.
    """
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".json"):
        yield from _json(path)
    elif suffix == ".csv":
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            for row in reader:
                yield f"{path.name} line {reader.line_num}", row
    elif suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet as parquet

        try:
            rows = parquet.read_table(path).to_pylist()
        except (pyarrow.ArrowException, OSError) as error:
            raise BapoError(f"{path} could not be read as Parquet ({str(error).splitlines()[0]}).") from error
        for number, row in enumerate(rows, start=1):
            yield f"{path.name} row {number}", row
    else:
        raise BapoError(f"{path} is of no kind that holds comparisons: use {', '.join(SUFFIXES)}.")


def _json(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BapoError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8.") from error
    if text.lstrip().startswith("["):
        try:
            rows = json.loads(text)
        except ValueError as error:
            raise BapoError(f"{path.name} is not valid JSON: {error}.") from error
        for number, row in enumerate(rows, start=1):
            yield f"{path.name} item {number}", row
        return
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise BapoError(f"{path.name} line {number} is not valid JSON: {error}.") from error
            yield f"{path.name} line {number}", row
