"""Records of files of any kind that holds some: JSONL, JSON array, Parquet or CSV."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bapo.errors import BapoError, foreign
from bapo.files import json_lines, parse_json, read_text, reading
from bapo.preferences.arrow import check_readable
from bapo.progress import counted, tell

SUFFIXES = (".jsonl", ".json", ".parquet", ".csv")

_LINES = 1000
"""Lines or rows that are read between two words of progress."""


def records(path: Path) -> Iterator[tuple[str, Any]]:
    """Records of a file with their places; how far it is is told (`bapo.progress.tell`).

    Raises:
        BapoError: another kind of file, or a damaged one.
    """
    readers = {".jsonl": _json, ".json": _json, ".csv": _csv, ".parquet": _parquet}
    if path.suffix.lower() not in readers:
        raise BapoError(f"{path} is of no kind that holds comparisons: use {', '.join(SUFFIXES)}.")
    return readers[path.suffix.lower()](path)


def _json(path: Path) -> Iterator[tuple[str, Any]]:
    tell(_stage(path), 0, 1)
    text = read_text(path)
    if not text.lstrip().startswith("["):
        yield from counted(json_lines(text, path.name), _stage(path), text.count("\n") + (not text.endswith("\n")))
        return
    rows = parse_json(text, path.name)
    for number, row in enumerate(counted(rows, _stage(path), len(rows)), start=1):
        yield f"{path.name} item {number}", row


def _stage(path: Path) -> str:
    return f"reading {path.name}"


def _csv(path: Path) -> Iterator[tuple[str, Any]]:
    """Rows as objects; fields are separated by what makes most of the header: commas, semicolons or tabs."""
    tell(_stage(path), 0, 1)
    text = read_text(path)
    first = re.split("[\r\n]", text, maxsplit=1)[0]
    delimiter = max(",;\t", key=lambda letter: first.count(letter))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    lines, told = text.count("\n"), 0
    while (row := _next_row(reader, path, longest=len(text))) is not None:
        where = f"{path.name} line {reader.line_num}"
        if not header:
            header = [name.strip() for name in row]
            if repeated := [name for name, count in Counter(header).items() if name and count > 1]:
                raise BapoError(f"{path.name} has several columns {repeated[0]!r}: leave one of them.")
        elif row and len(row) != len(header):
            raise BapoError(
                f"{where} has {len(row)} fields and the header {len(header)}: put quotation marks around texts that "
                f"contain {delimiter!r}."
            )
        elif row:
            yield where, dict(zip(header, row, strict=True))
        if reader.line_num - told >= _LINES:
            told = reader.line_num
            tell(_stage(path), min(told, lines), lines)
    tell(_stage(path), lines, lines)


def _next_row(reader: Any, path: Path, longest: int) -> list[str] | None:
    """The next row, however long its fields are; the bound on these is the whole process's, so it is put back."""
    before = csv.field_size_limit(longest)
    try:
        return next(reader, None)
    except csv.Error as error:
        raise BapoError(
            f"{path.name} is not valid CSV at line {reader.line_num} ({error}): end each text that begins with a "
            "quotation mark with another one, and write those inside of it twice."
        ) from error
    finally:
        csv.field_size_limit(before)


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow.parquet as parquet

    failed, todo = f"{path} could not be read as Parquet", "write it again, or download it again"
    tell(_stage(path), 0, 1)
    with reading(path):
        check_readable([path], failed, todo)
    with foreign(failed, todo):
        table = parquet.read_table(path)
        table.validate(full=True)  # a damaged one may end the process otherwise

    def rows() -> Iterator[Any]:
        for batch in table.to_batches(max_chunksize=_LINES):
            with foreign(failed, todo):
                part = batch.to_pylist()
            yield from part

    for number, row in enumerate(counted(rows(), _stage(path), table.num_rows), start=1):
        yield f"{path.name} row {number}", row
