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
from bapo.evaluation import BENCHMARKS
from bapo.objectives import ANCHOR_CONTROLS, ANCHORS, PAIR_LOSSES, make_objective
from bapo.preferences import SOURCES
from bapo.registry import KINDS, own_names

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


def test_the_examples_of_extending_md_run(monkeypatch: pytest.MonkeyPatch) -> None:
    for registry in (PAIR_LOSSES, ANCHORS, ANCHOR_CONTROLS, SOURCES, BENCHMARKS):
        monkeypatch.setattr(registry, "_found", dict(registry))  # so that other tests see nothing of them
    page = (ROOT / "docs/extending.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    told: dict[str, object] = {"__name__": "extending"}
    for block in blocks:
        exec(compile(block, "docs/extending.md", "exec"), told)
    assert len(blocks) == 6
    assert told["objective"].control.every == 50
    assert make_objective("squared", anchor="both-ways", target=2).anchor_strength == 5
    assert BENCHMARKS["arc_easy"].title == "ARC-Easy"


def test_the_table_of_extending_md_has_every_kind() -> None:
    page = (ROOT / "docs/extending.md").read_text()
    for group, kind in KINDS.items():
        folder = f"src/bapo/{kind.home.replace('.', '/')}/"
        assert re.search(rf"\| `{folder}` \| `@{kind.decorator}` \| `bapo.{group}` \|", page), group
        assert (ROOT / folder).is_dir()


def readme_tables() -> list[str]:
    """The tables of the README that say what is registered."""

    def table(header: str, names: dict[str, str], descriptions: dict[str, str]) -> str:
        rows = [f"| {names[name]} | {description} |" for name, description in descriptions.items()]
        return "\n".join([header, "|---|---|", *rows, ""])

    def of_source(name: str) -> str:
        first, *others = list(SOURCES[name].words) or [""]
        return ", ".join([f"`{name}:{first}`" if first else f"`{SOURCES[name].example}`", *(f"`{o}`" for o in others)])

    def of_objective(name: str) -> str:
        return f"`{name}`" + (f", with the anchor `{PAIR_LOSSES[name].anchor}`" if PAIR_LOSSES[name].anchor else "")

    told = [
        ("sources", "| name | what it is |", of_source, SOURCES),
        ("pair_losses", "| `training.objective` | pair loss |", of_objective, PAIR_LOSSES),
        ("anchors", "| `training.anchor` | what a base response costs, in nats |", "`{}`".format, ANCHORS),
        ("anchor_controls", "| `training.anchor_control` | how the strength moves |", "`{}`".format, ANCHOR_CONTROLS),
    ]
    return [
        table(header, {n: called(n) for n in own_names(group)}, {n: own[n].description for n in own_names(group)})
        for group, header, called, own in told
    ]


def test_the_tables_of_the_readme_are_the_registries() -> None:
    page = (ROOT / "README.md").read_text()
    for table in readme_tables():
        assert table in page, f"the README should have this table:\n{table}"
    for name in own_names("benchmarks"):
        assert BENCHMARKS[name].title.split(" (")[0] in page


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
