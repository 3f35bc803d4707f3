"""The switch: what it takes, and that everything follows it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import bapo.kernels
from bapo.cli.app import app
from bapo.errors import BapoError
from bapo.jobs import read_recipe
from bapo.kernels import KERNELS, chosen
from bapo.kernels.layers import FINDERS
from bapo.training import BAPOConfig


@pytest.mark.parametrize(
    ("setting", "names"),
    [
        ("auto", set(KERNELS)),
        (["auto"], set(KERNELS)),
        ("off", set()),
        ((), set()),
        ("strands", {"strands"}),
        ("strands, lean-layers", {"strands", "lean-layers"}),
        (["strands", "lean-layers"], {"strands", "lean-layers"}),
    ],
)
def test_what_is_chosen(setting: object, names: set[str]) -> None:
    assert chosen(setting) == names  # type: ignore[arg-type]
    assert chosen(chosen(setting)) == names  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("lean-layer", "did you mean 'lean-layers'"),
        (["strands", "fused_lora"], "did you mean 'fused-lora'"),
        ("of", "did you mean 'off'"),
        ("strands,off", "off stands alone"),
        ("", "There is no kernel ''"),
        (True, "kernels must be auto, off, or names of"),
        ([1], "kernels must be auto, off, or names of"),
    ],
)
def test_what_is_refused(setting: object, sentence: str, tmp_path: Path) -> None:
    for told in (lambda: chosen(setting), lambda: BAPOConfig(str(tmp_path), kernels=setting, use_cpu=True)):
        with pytest.raises(BapoError, match=re.escape(sentence)):
            told()


def test_a_recipe_names_the_nearest_kernel() -> None:
    with pytest.raises(BapoError, match="did you mean 'strands'"):
        read_recipe(None, {"model.kernels": "strand"})
    assert read_recipe(None, {"model.kernels": ["strands"]}).model.kernels == ["strands"]


def test_each_kernel_is_a_file_but_strands_which_cut_rows() -> None:
    files = {path.stem.replace("_", "-") for path in Path(bapo.kernels.__file__).parent.glob("*.py")}
    assert KERNELS.keys() - files == {"strands"}
    assert FINDERS.keys() < KERNELS.keys()


def test_the_help_of_a_command_has_all_names() -> None:
    said = CliRunner().invoke(app, ["train", "--help"], env={"COLUMNS": "400"}).output
    assert all(name in said for name in ("--kernels", "auto", "off", *KERNELS))


def test_names_are_known_without_torch() -> None:
    code = "import sys, bapo.kernels; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_page_has_a_row_for_each() -> None:
    page = (Path(__file__).parents[2] / "docs/kernels.md").read_text()
    rows = re.findall(r"^\| `([\w-]+)` \| `([^|]+)` \| ([^|]+) \|", page, re.MULTILINE)
    assert {name: what for name, _, what in rows} == KERNELS
    for name, file, _ in rows:
        assert Path(bapo.__file__).with_name(file.partition("/")[0]).joinpath(file.partition("/")[2]).is_file(), name
