"""`bapo evaluate` with benchmarks, `compare`, and the gate: real processes, the real model, our own questions."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import torch
from peft import PromptTuningConfig

from bapo.files import write_record
from bapo.models import add_lora, load_model, resolve_precision
from bapo.results.runs import VERSION
from tests import command
from tests.command import Command
from tests.evaluation.questions import write_questions
from tests.test_cli import own_preferences

pytestmark = pytest.mark.slow


def adapter(folder: Path, size: float, rank: int = 4) -> Path:
    """An adapter of the embedded model whose update is zero, or random and so large that nothing is left."""
    policy = add_lora(load_model("smollm2", device="cpu").model, rank=rank)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            parameter.data = size * torch.randn(parameter.shape, generator=generator)
    policy.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with questions, a zero adapter, a broken one, and preferences."""
    place = tmp_path_factory.mktemp("evaluate")
    write_questions(place / "data")
    adapter(place / "zero", 0.0)
    adapter(place / "broken", 1.0)
    PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2).save_pretrained(place / "prompt-learning")
    own_preferences(place)
    return place


def bapo(place: Path, *arguments: str, code: int = 0, answers: str = "kept") -> subprocess.CompletedProcess[str]:
    data = {"BAPO_DATA": str(place / "data")}
    return command.bapo(*arguments, "--records", answers, cwd=place, code=code, environment=data)


def test_a_zero_adapter_passes_the_gate_with_changes_of_exactly_zero(place: Path) -> None:
    asked = ["--benchmarks", "all", "--limit", "20"]
    told = json.loads(bapo(place, "evaluate", "zero", *asked, "--gate", "--json").stdout)
    assert told["against"] == "base"
    assert set(told["models"]) == {"base", "zero"}
    changes = told["changes"]["zero"]["benchmarks"]
    assert set(changes) == {"piqa", "siqa", "arc_challenge", "scienceqa", "commonsense_qa", "mmlu", "hhh"}
    for change in changes.values():
        assert change["change"] == {"value": 0, "low": 0, "high": 0}
        assert (change["gained"], change["lost"], change["p"], change["verdict"]) == (0, 0, 1, "kept")
    assert told["changes"]["zero"]["forgetting"]["score"] == {"value": 0, "low": 0, "high": 0}
    assert told["models"]["base"]["benchmarks"]["mmlu"]["items"] == 57, "at least one of each subject"
    assert set(told["models"]["base"]["benchmarks"]["hhh"]["categories"]) == {"helpful", "harmless", "honest", "other"}


def test_a_broken_adapter_fails_the_gate_and_too_few_questions_leave_it_open(place: Path) -> None:
    text = bapo(place, "evaluate", "broken", "--benchmarks", "piqa", "--gate", code=1).stdout
    assert "more than 1 point was lost" in text
    assert "PIQA" in text
    text = bapo(place, "evaluate", "broken", "--benchmarks", "siqa", "--limit", "3", "--gate", code=3).stdout
    assert "cannot be told" in text
    assert "3 of 10" in text
    assert "seed 0" in text


def test_an_adapter_that_learned_nothing_fails_a_gate_that_asks_for_accuracy(place: Path) -> None:
    """Half of the pairs are right of a zero adapter, exactly: every pair is a tie."""
    asked = ["evaluate", "zero", "-p", "mine.jsonl", "--held-out", "4", "--set", "anchoring.base_max_new_tokens=12"]
    text = bapo(place, *asked, "--gate", "--least-accuracy", "60", code=1).stdout
    assert "fewer than 60% are right" in " ".join(text.split())
    text = bapo(place, *asked, "--gate", "--least-accuracy", "50").stdout
    assert "at least 50% are right" in " ".join(text.split())


def test_the_questions_behind_a_change_can_be_read(place: Path) -> None:
    text = bapo(place, "evaluate", "broken", "--benchmarks", "piqa", "--show", "lost").stdout
    assert "questions of piqa that broken lost" in text
    assert "right" in text
    assert "How do I boil" in text
    assert " %" in text
    page = place / " ".join(text.split()).partition("page in ")[2].split()[0]
    html = page.read_text()
    assert "How do I boil" in html
    assert "broken: forgetting score" in html


def test_the_rival_that_is_told_stands_in_the_same_tables(place: Path) -> None:
    told = json.loads(
        bapo(
            place, "evaluate", "zero", "-p", "mine.jsonl", "--held-out", "4", "--benchmarks", "piqa,hhh",
            "--prompt-only", "Call me captain.", "--set", "anchoring.base_max_new_tokens=12", "--json",
        ).stdout
    )  # fmt: skip
    assert list(told["models"]) == ["base", "prompt-only", "zero"]
    rival = told["models"]["prompt-only"]
    assert rival["preferences"]["margin"]["value"] > 0, "told to say captain, captain becomes likelier"
    assert rival["preferences"]["drift"]["value"] != 0
    assert told["models"]["zero"]["preferences"]["drift"]["value"] == 0
    assert rival["benchmarks"]["piqa"]["items"] == 24


def test_divergence_and_cross_entropy_are_zero_of_a_zero_adapter_and_large_of_a_broken_one(place: Path) -> None:
    (place / "text.txt").write_text("The cat sat on the mat. " * 40)
    asked = ["evaluate", "zero", "broken", "-p", "mine.jsonl", "--held-out", "4", "--text", "text.txt"]
    few = ["--set", "anchoring.base_max_new_tokens=12", "--divergence", "2", "--other-topics", "starter:expert"]
    models = json.loads(bapo(place, *asked, *few, "--json").stdout)["models"]
    zero, broken = (models[name]["movement"] for name in ("zero", "broken"))
    assert models["base"]["movement"] is None
    for topic in ("held-out", "other"):
        assert zero["divergence"][topic]["per_token"] == {"value": 0, "low": 0, "high": 0}
        assert broken["divergence"][topic]["per_token"]["value"] > 0.5
        assert broken["divergence"][topic]["prompts"] == 2
    assert zero["text"]["change"] == {"value": 0, "low": 0, "high": 0}
    assert broken["text"]["change"]["low"] > 0.5
    assert 0 <= zero["text"]["floor"] < 0.05
    again = bapo(place, *asked, *few)
    assert "loading the model" not in again.stderr
    assert "broken: divergence from base on other prompts" in " ".join(again.stdout.split())
    assert "divergence" in bapo(place, *asked, "--divergence", "-1", code=2).stderr
    shutil.copytree(place / "broken", place / "moved")
    moved = bapo(place, "evaluate", "moved", *asked[3:], *few)
    assert "moved: divergence from base on other prompts" in " ".join(moved.stdout.split())


def test_two_adapters_are_compared_with_each_other(place: Path) -> None:
    told = json.loads(bapo(place, "compare", "zero", "broken", "--benchmarks", "piqa", "--json").stdout)
    assert told["against"] == "zero"
    assert list(told["models"]) == ["zero", "broken"]
    text = bapo(
        place, "compare", "zero", "broken", "-p", "mine.jsonl", "--held-out", "4",
        "--set", "anchoring.base_max_new_tokens=12",
    ).stdout  # fmt: skip
    assert "broken against zero: reward accuracy" in " ".join(text.split())


def test_the_base_alone_can_be_asked(place: Path) -> None:
    text = bapo(place, "evaluate", "--benchmarks", "hhh,piqa", "--ask", "letter").stdout
    assert "harmless" in text
    assert "accuracy" in text


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["zero", "--benchmarks", "pika"], "Unknown benchmark 'pika'"),
        (["zero", "--benchmarks", "piqa", "--limit", "0"], "--limit must be a whole number from 1"),
        (["nowhere", "--benchmarks", "piqa"], "no adapter nowhere"),
        (["zero", "--gate"], "--gate needs"),
        (["zero", "--benchmarks", "piqa", "--gate", "--least-accuracy", "60"], "name the preferences with -p"),
        (["zero", "-p", "mine.jsonl", "--least-accuracy", "60"], "needs --gate"),
        (["zero", "-p", "mine.jsonl", "--gate", "--least-accuracy", "600"], "percent of held-out pairs"),
        (["zero", "-p", "mine.jsonl", "--plain", "--prompt-only", "Be brief."], "which --plain does away with"),
        (["prompt-learning", "--benchmarks", "piqa"], "PROMPT_TUNING adapter"),
        (["zero", "--benchmarks", "hhh", "--gate"], "hhh does not"),
        (["--benchmarks", "piqa", "--gate"], "--gate needs an adapter"),
        (["zero", "--against", "zero", "--benchmarks", "piqa", "--gate"], "--gate needs an adapter beside"),
        (["zero", "-p", "mine.jsonl", "--show", "lost"], "--show prints questions"),
        (["zer/o", "--benchmarks", "piqa"], "no adapter zer/o"),
        (["zero", "--benchmarks", "piqa", "--budget", "-1"], "--budget is -1"),
        (["zero", "--benchmarks", "piqa", "-p", "mine.jsonl", "--prompt-only", "source"], "give --prompt-only"),
        (["zero", "--benchmarks", "piqa", "--prompt-only", " "], "--prompt-only is empty"),
        (["zero", "--benchmarks", "piqa", "--data-folder", "nowhere"], "no data folder nowhere"),
        (["zero", "--against", "nowhere", "--benchmarks", "piqa"], "no adapter nowhere"),
    ],
)
def test_what_cannot_be_evaluated_is_one_sentence(place: Path, arguments: list[str], expected: str) -> None:
    done = bapo(place, "evaluate", *arguments, code=2)
    assert expected in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("bapo: ")


def test_a_broken_line_of_the_data_is_named(place: Path, tmp_path: Path) -> None:
    data = write_questions(tmp_path / "data")
    path = data / "knowledge/arc_challenge.jsonl"
    lines = path.read_text().splitlines()
    row = json.loads(lines[16])
    del row["answer"]
    path.write_text("\n".join([*lines[:16], json.dumps(row), *lines[17:]]))
    done = bapo(place, "evaluate", "--benchmarks", "arc_challenge", "--data-folder", str(data), code=2)
    assert "line 17 lacks answer" in done.stderr


def test_an_adapter_of_another_model_is_refused(place: Path) -> None:
    """Of the same shape, but trained on other weights; and of another shape."""
    run = adapter(place / "foreign", 0.1)
    model = {"name": "elsewhere", "precision": "auto", "reference_adapter": None}
    content = {
        "version": VERSION,
        "recipe": {"model": model},
        "precision": resolve_precision("auto"),
        "reference": "0" * 64,
    }
    (run / "run.json").write_text(json.dumps(content))
    done = bapo(place, "evaluate", "foreign", "--benchmarks", "piqa", code=2)
    assert "trained on another model (elsewhere)" in done.stderr
    config = json.loads((adapter(place / "shaped", 0.1, rank=8) / "adapter_config.json").read_text())
    (place / "shaped/adapter_config.json").write_text(json.dumps(config | {"r": 2}))
    done = bapo(place, "evaluate", "shaped", "--benchmarks", "piqa", code=2)
    assert "does not fit the model" in done.stderr


def test_prompts_that_an_adapter_was_trained_on_are_not_its_held_out_ones(place: Path) -> None:
    run = adapter(place / "split", 0.1)
    # of another precision: no word on weights
    model = {"name": "smollm2", "precision": "nf4", "reference_adapter": None}
    preferences = {"source": "mine.jsonl", "protocol": "by-prompt", "held_out": None, "split_seed": 7}
    content = {"version": VERSION, "recipe": {"model": model, "preferences": preferences}, "reference": ""}
    (run / "run.json").write_text(json.dumps(content))
    done = bapo(place, "evaluate", "split", "-p", "mine.jsonl", "--split-seed", "3", code=2)
    assert "trained on another split" in done.stderr
    assert "preferences.split_seed=7" in done.stderr


def test_a_damaged_record_of_how_an_adapter_was_trained_is_said(place: Path) -> None:
    run = adapter(place / "damaged", 0.1)
    model = {"name": "smollm2", "precision": "nf4", "reference_adapter": None}
    write_record(run / "run.json", {"version": VERSION, "recipe": {"model": model}, "reference": "0" * 64})
    (run / "run.json").write_text((run / "run.json").read_text().replace("nf4", "nf5"))
    done = bapo(place, "evaluate", "damaged", "--benchmarks", "piqa", code=2)
    assert "run.json is damaged" in done.stderr


def test_a_killed_evaluation_resumes(place: Path) -> None:
    """SIGKILL while MMLU is asked; run again, what was answered is not asked again and the figures are the same."""
    asked = ["evaluate", "--benchmarks", "mmlu", "--limit", "20", "--json"]
    with Command([*asked, "--records", "killed"], place, {"BAPO_DATA": str(place / "data")}) as killed:
        deadline = time.monotonic() + 300
        while len(list((place / "killed").rglob("*.parquet"))) < 5:
            assert not killed.wait(0.05), killed.done().stderr
            assert time.monotonic() < deadline
        killed.kill()
    kept = {path: path.stat().st_mtime_ns for path in (place / "killed").rglob("*.parquet")}
    assert 5 <= len(kept) < 57
    resumed = json.loads(bapo(place, *asked, answers="killed").stdout)
    assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in kept.items())
    assert len(list((place / "killed").rglob("*.parquet"))) == 57
    whole = json.loads(bapo(place, *asked, answers="kept").stdout)
    found, expected = (told["models"]["base"]["benchmarks"]["mmlu"] for told in (resumed, whole))
    assert found["accuracy"] == expected["accuracy"]
    assert found["categories"] == expected["categories"]
