"""Every command in the README and the docs is one that the command line understands; tests elsewhere run them."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import shlex
from pathlib import Path

import pytest
import typer

import bapo
from bapo.cli.app import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = [
    (page.name, match.group(1).split("#")[0].strip())
    for page in PAGES
    for match in re.finditer(
        r"^    (?:BAPO_DATA=\S+ )?((?:bapo|make|python benchmarks/) ?.*)$", page.read_text(), re.MULTILINE
    )
]


MODULES = sorted(
    module.name for module in pkgutil.walk_packages(bapo.__path__, "bapo.") if "__main__" not in module.name
)


def test_examples_in_docstrings_say_what_comes_out() -> None:
    ran = [doctest.testmod(importlib.import_module(name)) for name in MODULES]
    assert sum(own.attempted for own in ran) > 5
    assert not any(own.failed for own in ran)


def test_there_are_commands_to_look_at() -> None:
    assert len(COMMANDS) > 10


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_a_documented_command_is_understood(page: str, line: str) -> None:
    program, *arguments = shlex.split(line)
    if program == "make":
        assert re.search(rf"^{arguments[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line
    elif program == "python":
        assert (ROOT / arguments[0]).is_file(), line
    else:
        group = typer.main.get_command(app)
        command = group.commands[arguments[0]]  # type: ignore[attr-defined]
        command.make_context(arguments[0], arguments[1:]).close()
