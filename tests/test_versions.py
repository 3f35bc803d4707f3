"""The bounds of pyproject.toml and the versions that `make test-lowest` tests are the same."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def numbers(version: str) -> tuple[int, ...]:
    """Of a version, without zeros at its end: 4.0 and 4.0.0 are one."""
    found = [int(part) for part in version.split(".")]
    while found and not found[-1]:
        found.pop()
    return tuple(found)


def test_the_lowest_versions_are_the_bounds() -> None:
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    bounds = dict(re.fullmatch(r"([\w-]+)>=([\d.]+)", dependency).groups() for dependency in dependencies)
    lines = (ROOT / "constraints-lowest.txt").read_text().split()
    lowest = dict(line.split("==") for line in lines)
    assert {name: numbers(own) for name, own in lowest.items()} == {name: numbers(own) for name, own in bounds.items()}
