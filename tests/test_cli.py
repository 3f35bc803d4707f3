"""The command as a user runs it: real processes, the real embedded model."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.csv
import pyarrow.parquet
import pytest
from rich.console import Console

from bapo.cli.console import live_progress
from bapo.jobs import read_recipe, shipped_recipes
from bapo.models import resolve_precision
from bapo.preferences import read_preferences
from bapo.progress import watched_by
from tests.command import bapo
from tests.tiny import tiny_model, tiny_tokenizer

TINY_RUN = ["--held-out", "4", "--max-steps", "2", "--set", "preferences.max_train_prompts=3"]
SHORT = [
    "--set",
    "anchoring.base_max_new_tokens=12",
    "--set",
    "generations.max_new_tokens=12",
    "--set",
    "training.per_device_train_batch_size=4",
]


def own_preferences(folder: Path, lines: int = 20) -> Path:
    path = folder / "mine.jsonl"
    path.write_text(
        "".join(
            json.dumps(
                {
                    "prompt": f"What is {i} plus {i}?",
                    "chosen": f"{2 * i}, captain!",
                    "rejected": f"The sum of {i} and {i} is {2 * i}.",
                }
            )
            + "\n"
            for i in range(1, lines + 1)
        )
    )
    return path


def test_help_is_quick_and_import_brings_no_torch(tmp_path: Path) -> None:
    start = time.perf_counter()
    text = bapo("--help", cwd=tmp_path, fresh=True).stdout
    seconds = time.perf_counter() - start
    assert "personalize" in text
    assert seconds < 2, "half a second on an idle machine; this bound only catches an import of torch"
    subprocess.run(
        [sys.executable, "-c", "import sys, bapo, bapo.cli; sys.exit('torch' in sys.modules)"], check=True, timeout=60
    )


@pytest.mark.parametrize(
    "command",
    [
        "personalize",
        "data",
        "anchor",
        "train",
        "sample",
        "evaluate",
        "compare",
        "generate",
        "benchmark-files",
        "lm-eval",
        "selfcheck",
        "recipe",
        "study",
        "theory",
    ],
)
def test_every_command_has_help(command: str, tmp_path: Path) -> None:
    assert "usage: " in bapo(command, "--help", cwd=tmp_path).stdout.lower()


def test_data_shows_what_was_read(tmp_path: Path) -> None:
    text = bapo("data", "starter:concise", cwd=tmp_path).stdout
    assert "48 prompts" in text
    assert "240 pairs" in text
    summary = json.loads(bapo("data", str(own_preferences(tmp_path)), "--json", cwd=tmp_path).stdout)
    assert summary["prompts"] == summary["pairs"] == 20
    assert summary["doubtful"] == {}
    rows = [{"prompt": "p", "chosen": own, "rejected": other} for own, other in ("AB", "BA")]
    (tmp_path / "both.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "kept 2 of 2 though doubtful: contradicts another pair" in bapo("data", "both.jsonl", cwd=tmp_path).stdout


@pytest.mark.slow
def test_twenty_lines_of_ones_own_become_a_personalized_model(tmp_path: Path) -> None:
    own_preferences(tmp_path)
    arguments = ["personalize", "mine.jsonl", "--also-train", "dpo", "-o", "out", *TINY_RUN, *SHORT]
    text = bapo(*arguments, cwd=tmp_path, fresh=True).stdout
    for expected in ("base", "BAPO", "DPO", "reward accuracy", "drift", "out/bapo", "What is"):
        assert expected in text
    report = json.loads((tmp_path / "out/report.json").read_text())["content"]
    assert report["held_out"].keys() == {"bapo", "dpo"}
    assert [set(side["answers"]) for side in report["answers"]] == [{"base", "bapo", "dpo"}] * 3
    page = (tmp_path / "out/report.html").read_text()
    assert page.count("<h4>bapo</h4>") == 3
    assert "<svg" in page
    adapter = tmp_path / "out/bapo/adapter_model.safetensors"
    before = adapter.stat().st_mtime_ns

    again = json.loads(bapo(*arguments, "--json", cwd=tmp_path).stdout)  # finished stages are not repeated
    assert again["held_out"] == report["held_out"]
    assert adapter.stat().st_mtime_ns == before

    other = bapo(*arguments, "--learning-rate", "1e-3", cwd=tmp_path, code=2)
    assert "other settings" in other.stderr

    evaluated = json.loads(
        bapo(
            "evaluate", "out/bapo", "-p", "mine.jsonl", *TINY_RUN[:2], *TINY_RUN[4:], *SHORT, "--json", cwd=tmp_path
        ).stdout
    )
    assert evaluated["models"]["out/bapo"]["preferences"] == report["held_out"]["bapo"]
    untold = bapo("evaluate", "out/bapo", "--json", cwd=tmp_path)  # the adapter's record knows its split
    assert json.loads(untold.stdout)["models"] == evaluated["models"]
    assert "loading the model" not in untold.stderr
    other_split = bapo("evaluate", "out/bapo", "--split-seed", "3", cwd=tmp_path, code=2)
    assert "trained on another split" in other_split.stderr
    answers = json.loads(
        bapo("generate", "Say hi.", "-a", "out/bapo", "--max-new-tokens", "5", "--json", cwd=tmp_path).stdout
    )
    assert answers[0].keys() == {"prompt", "base", "out/bapo"}
    loads_in_peft_alone(tmp_path / "out/bapo")


def loads_in_peft_alone(adapter: Path) -> None:
    """Without a line of ours: the adapter is a plain PEFT adapter, and it changes what the model says."""
    code = f"""
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
from pathlib import Path
import os, platformdirs
cache = Path(os.environ.get("BAPO_CACHE") or platformdirs.user_cache_dir("bapo"))
folder = next((cache / "models").glob("SmolLM2*"))
base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
ids = torch.tensor([[1, 2, 3, 4]])
before = base(ids).logits
after = PeftModel.from_pretrained(base, {str(adapter)!r})(ids).logits
assert not torch.equal(before, after)
import sys
assert not any(name == "bapo" or name.startswith("bapo.") for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


@pytest.mark.slow
def test_anchor_and_train_alone_share_the_anchored_data(tmp_path: Path) -> None:
    own_preferences(tmp_path, lines=7)
    first = bapo(
        "anchor", "mine.jsonl", "--anchored-store", "anchors", "--base-max-new-tokens", "8", "--json", cwd=tmp_path
    )
    assert json.loads(first.stdout)["prompts"] == 7
    before = {p.name: p.read_bytes() for p in (tmp_path / "anchors").glob("*.jsonl")}
    run = bapo(
        *("train", "mine.jsonl", "--objective", "dpo", "-o", "run", "--anchored-store", "anchors", "--max-steps", "1"),
        *("--held-out", "2", "--set", "anchoring.base_max_new_tokens=8", "--json"),
        cwd=tmp_path,
    )
    assert json.loads(run.stdout)["objective"] == "dpo"
    assert {p.name: p.read_bytes() for p in (tmp_path / "anchors").glob("*.jsonl")} == before
    other = "bf16" if resolve_precision("auto") == "float32" else "float32"
    refused = bapo("anchor", "mine.jsonl", "--anchored-store", "anchors", "--precision", other, cwd=tmp_path, code=2)
    assert "another model" in refused.stderr


@pytest.mark.parametrize("recipe", shipped_recipes())
def test_every_shipped_recipe_is_started(recipe: str, tmp_path: Path) -> None:
    """Small sizes, another model and other data are told on the command line; everything else is the recipe's own.

    The paper's precision is 4-bit, so this trains and evaluates in 4 bits on the CPU as well.
    """
    own_preferences(tmp_path, lines=8)
    told = bapo(
        *("personalize", "mine.jsonl", "--recipe", recipe, "--model", "smollm2", "-o", "out", *TINY_RUN, *SHORT),
        *("--set", "preferences.protocol=by-prompt", "--json"),
        cwd=tmp_path,
    ).stdout
    assert json.loads(told)["held_out"]["bapo"]["pairs"] == 4
    run = json.loads((tmp_path / "out/bapo/run.json").read_text())
    assert run["precision"] == resolve_precision(read_recipe(recipe).model.precision)


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_it_is_said_how_far_the_reading_of_a_file_is(suffix: str, tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i}", "chosen": "yes", "rejected": "no"} for i in range(2500)]
    path = tmp_path / f"mine.{suffix}"
    table = pyarrow.Table.from_pylist(rows)
    {
        "jsonl": lambda: path.write_text("".join(json.dumps(row) + "\n" for row in rows)),
        "json": lambda: path.write_text(json.dumps(rows)),
        "csv": lambda: pyarrow.csv.write_csv(table, path),
        "parquet": lambda: pyarrow.parquet.write_table(table, path),
    }[suffix]()
    told: list[tuple[str, int, int]] = []
    with watched_by(lambda stage, done, total, note="": told.append((stage, done, total))):
        assert len(read_preferences(str(path)).groups) == 2500
    total = 2501 if suffix == "csv" else 2500  # lines of a table with a head
    stage = f"reading {path.name}"
    assert told[0] == (stage, 0, 1)
    assert [each for each in told if each[1]] == [(stage, at, total) for at in (1000, 2000, total)]


@pytest.mark.parametrize(("seconds", "said"), [(0.0, []), (0.8, ["reading mine: 0/9 after 0 s"])])
def test_nothing_is_said_of_work_that_is_over_in_a_moment(
    seconds: float, said: list[str], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bapo.cli.console.err", Console(stderr=True, force_terminal=False))
    with live_progress(libraries=False) as report:
        report("reading mine", 0, 9)
        time.sleep(seconds)
    assert capsys.readouterr().err.splitlines() == said


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["data", "starter:consise"], "did you mean 'starter:concise'"),
        (["train", "--max-steps", "1000000000000000000000000"], "'training.max_steps' in the command is 1000000000"),
        (["train", "--learning-rate", "inf"], "'training.learning_rate' in the command is inf"),
        (["personalize", "--seed", "-1"], "must be a whole number from 0 to 4,294,967,295"),
        (["generate", "Hi.", "--temperature", "nan"], "--temperature must be a number from 0 to 100, and it is nan"),
        (["generate", "Hi.", "--max-new-tokens", "0"], "--max-new-tokens must be a whole number"),
        (["evaluate", "--benchmarks", "piqa", "--limit", "0"], "--limit must be a whole number from 1"),
        (["data", "nowhere.jsonl"], "There is no file nowhere.jsonl: check its name"),
        (["data", "broken.jsonl"], "broken.jsonl line 2 has no 'rejected'"),
        (["personalize", "--objective", "bpao"], "Unknown objective 'bpao' (did you mean 'bapo'?)"),
        (["personalize", "--recipe", "demoo"], "There is no recipe 'demoo'"),
        (["personalize", "--set", "training.lerning_rate=1"], "did you mean 'training.learning_rate'"),
        (["personalize", "--set", "rank"], "--set takes key=value"),
        (["personalize", "--learning-rate", "-1"], "'training.learning_rate'"),
        (["personalize", "--held-out", "1000"], "48 prompts"),
        (["personalize", "--set", "lora.enabled=false", "--precision", "nf4"], "4-bit weights cannot be trained"),
        (["personalize", "--model", "./nowhere"], "There is no model folder ./nowhere"),
        (["evaluate", "no-adapter", "--held-out", "2"], "There is no adapter no-adapter"),
    ],
)
def test_bad_input_is_one_sentence(arguments: list[str], sentence: str, tmp_path: Path) -> None:
    (tmp_path / "broken.jsonl").write_text(
        '{"prompt": "a", "chosen": "b", "rejected": "c"}\n{"prompt": "a", "chosen": "b"}\n'
    )
    done = bapo(*arguments, cwd=tmp_path, code=2)
    *progress, last = done.stderr.strip().splitlines()
    assert last.startswith("bapo: ")
    assert sentence in last
    before = ("starting: ", "reading ", "loading the model: 0/1")
    assert all(line.startswith(before) for line in progress), "work was done before the mistake was seen"


def test_a_template_that_writes_a_response_otherwise_is_told_of(tmp_path: Path) -> None:
    opens = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content.split('</think>')[-1] }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|><think>{% endif %}"
    )
    tiny_model("llama").save_pretrained(tmp_path / "model")
    tiny_tokenizer(opens).save_pretrained(tmp_path / "model")
    own_preferences(tmp_path, 4)
    done = bapo(
        "anchor", "mine.jsonl", "-m", "model", "--anchored-store", "store", "--base-max-new-tokens", "4", cwd=tmp_path
    )
    assert "bapo: The chat template writes" in done.stderr
    assert "8 responses are not what the template writes" in done.stdout
