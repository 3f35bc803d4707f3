"""What another package brings is found by its entry points, named in help and errors, and used like our own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bapo.errors import BapoError
from bapo.objectives import PAIR_LOSSES, make_objective, pair_loss
from bapo.registry import KINDS, Registry, names, own_names
from tests.command import bapo
from tests.tiny import tiny_model, tiny_tokenizer

PLUGIN = Path(__file__).parent / "plugin"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a command that sees the package of `PLUGIN`, installed by pip without a network."""
    place = tmp_path_factory.mktemp("plugin")
    shutil.copytree(PLUGIN, place / "source")  # where pip may build
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    told = [*pip, "--disable-pip-version-check", "--target", str(place / "installed"), str(place / "source")]
    subprocess.run(told, check=True, capture_output=True, timeout=300)
    paths = [str(place / "installed"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tiny_model("llama").save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.slow
def test_an_installed_package_is_used_from_the_command_line(
    installed: dict[str, str], model: Path, tmp_path: Path
) -> None:
    """Pair loss, anchor, anchor control and source of another package in one run; its log is worked by hand."""
    told = {"cwd": tmp_path, "environment": installed, "fresh": True}
    command = ["personalize", "sums:wrong", "-m", "model", "--precision", "float32", "--objective", "squared"]
    command += ["--anchor-strength", "8", "--held-out", "2", "--max-steps", "5", "--also-train", "dpo", "-o", "out"]
    settings = ["training.anchor=both-ways", "training.anchor_control=halving", "anchoring.base_max_new_tokens=6",
                "training.objective_settings={target: 3, every: 2}", "generations.max_new_tokens=4"]  # fmt: skip
    command += [part for setting in settings for part in ("--set", setting)]
    bapo(*command, **told)
    log = json.loads((tmp_path / "out/squared/run.json").read_text())["log"]
    assert log[0]["loss"] == pytest.approx(9.0, rel=1e-4)  # (3 - beta * 0)^2, and nothing has drifted
    assert [entry["anchor/strength"] for entry in log] == [8, 8, 4, 4, 2]
    assert any(entry["loss/anchor"] > 0 for entry in log[1:])
    assert "anchor/strength" not in json.loads((tmp_path / "out/dpo/run.json").read_text())["log"][0]
    (row, *_) = json.loads((tmp_path / "out/report.json").read_text())["content"]["answers"]
    assert re.fullmatch(r"What is \d+ plus \d+\?", row["prompt"])


@pytest.mark.slow
def test_help_and_errors_name_what_a_package_brings(installed: dict[str, str], tmp_path: Path) -> None:
    told = {"cwd": tmp_path, "environment": {**installed, "COLUMNS": "1000"}, "fresh": True}
    text = " ".join(bapo("train", "--help", **told).stdout.split())
    for name in ("squared", "sums:NAME", *own_names("pair_losses")):
        assert name in text
    assert "arc_easy" in bapo("evaluate", "--help", **told).stdout
    said = refusals([arguments for arguments, _ in REFUSED], **told)
    for found, (arguments, sentence) in zip(said, REFUSED, strict=True):
        assert sentence in found, arguments
    assert "12 prompts" in bapo("data", "sums:right", **told).stdout


REFUSED = [
    (["train", "--objective", "sqared"], "did you mean 'squared'?): use one of bapo, dpo"),
    (["train", "--objective", "broken"], "'broken' of the package bapo-example could not be loaded from bapo_exam"),
    (["train", "--objective", "forgotten"], "is not registered by bapo_example.squared:nothing_registers_this"),
    (["train", "--objective", "dpop"], "'dpop' is taken: bapo and bapo-example bring one each"),
    (["train", "--objective", "squared", "--anchor-strength", "1"], "squared has no anchor, and so no anchor_strength"),
    (["data", "sums:rigt"], "did you mean 'sums:right'?): use one of right, wrong"),
    (["data", "sum"], "sums:NAME"),
    (["evaluate", "-b", "arc_eazy"], "did you mean 'arc_easy'?"),
]


def refusals(commands: list[list[str]], cwd: Path, environment: dict[str, str], fresh: bool) -> list[str]:
    """What each command is told, all in one process that imports everything once."""
    code = """
import json, sys
from bapo.cli.app import app
from bapo.errors import BapoError
said = []
for arguments in json.loads(sys.argv[1]):
    try:
        app(arguments)
    except BapoError as error:
        said.append(str(error))
print(json.dumps(said))
"""
    command = [sys.executable, "-c", code, json.dumps(commands)]
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=True, timeout=300
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("group", KINDS)
def test_every_name_of_ours_registers_itself_in_the_file_of_that_name(group: str) -> None:
    assert own_names(group)
    registries = {own.group: own for own in _registries()}
    for name in own_names(group):
        assert registries[group][name] is not None
    assert set(own_names(group)) == set(registries[group]._found)


def _registries() -> list[Registry[object]]:
    from bapo.evaluation import BENCHMARKS
    from bapo.objectives import ANCHOR_CONTROLS, ANCHORS
    from bapo.preferences import SOURCES

    return [PAIR_LOSSES, ANCHORS, ANCHOR_CONTROLS, SOURCES, BENCHMARKS]


def test_names_are_told_without_torch_or_any_plugin() -> None:
    code = "import sys, bapo.registry as r; list(map(r.names, r.KINDS)); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_loss_of_a_script_needs_no_entry_point_and_may_be_defined_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PAIR_LOSSES, "_found", dict(PAIR_LOSSES))  # so that it is gone afterwards

    def cell(shift):
        @pair_loss("mine")
        def mine(pairs, beta):
            return pairs.margin + shift

        return mine

    for shift in (1.0, 2.0):
        assert cell(shift) is make_objective("mine").pair_loss.func
    assert "mine" in PAIR_LOSSES
    assert "mine" not in names("pair_losses")
    for taken in ("mine", "dpo"):
        with pytest.raises(BapoError, match=f"objective '{taken}' of .* has a name that is taken by"):

            @pair_loss(taken)
            def another(pairs, beta):
                return pairs.margin
