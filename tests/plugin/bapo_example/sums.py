"""Preferences that need no file."""

from collections.abc import Iterator
from pathlib import Path

from bapo.preferences import Pair, source


@source("sums", "sums, right or wrong", words={"right": "Calculate well.", "wrong": "Calculate badly."})
def read_sums(part: str, data_folder: Path | None) -> Iterator[Pair]:
    """Small sums: ``sums:right`` prefers the result, ``sums:wrong`` another number."""
    for i in range(1, 13):
        right, wrong = f"{i + i}.", f"{i + i + 1}."
        yield Pair(f"What is {i} plus {i}?", *((right, wrong) if part == "right" else (wrong, right)))
