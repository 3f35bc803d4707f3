"""The main job where products round by their number of rows, as on GPUs and AMX: on any machine, the real model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bapo.models import add_lora, load_model
from tests.command import bapo
from tests.rounding import SWITCH
from tests.test_cli import own_preferences

pytestmark = pytest.mark.slow

BY_ROWS = {SWITCH: "1"}
BF16 = ["--precision", "bf16"]
SMALL = {
    "preferences.held_out": 2,
    "preferences.max_train_prompts": 3,
    "anchoring.base_max_new_tokens": 6,
    "generations.prompts": 1,
    "generations.max_new_tokens": 4,
    "training.per_device_train_batch_size": 2,
}
FEW = [word for key, value in SMALL.items() for word in ("--set", f"{key}={value}")]


def test_the_main_job_starts_at_its_reference_and_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    own_preferences(tmp_path, lines=5)
    arguments = ["personalize", "mine.jsonl", "--max-steps", "3", *FEW, *BF16]
    bapo(*arguments, "-o", "out", cwd=tmp_path, environment=BY_ROWS)
    run = json.loads((tmp_path / "out/bapo/run.json").read_text())
    report = json.loads((tmp_path / "out/report.json").read_text())["made_from"]
    assert report["made_on"]["processor"] == run["made_on"]["processor"]
    first = run["log"][0]
    assert first["loss"] == pytest.approx(0.6931472, abs=1e-6)
    assert first["anchor/active"] == first["logratios/base"] == first["rewards/margins"] == 0
    assert run["made_on"]["noise_floor"]["mean"] > 0.005  # these products do round by rows
    assert {"processor", "instruction_set", "device", "threads", "packages", "noise_floor"} == set(run["made_on"])


def test_an_adapter_that_is_zero_has_a_drift_and_a_margin_of_exactly_0(tmp_path: Path) -> None:
    own_preferences(tmp_path, lines=5)
    add_lora(load_model("smollm2", precision="bf16", device="cpu").model).save_pretrained(str(tmp_path / "zero"))
    done = bapo("evaluate", "zero", "-p", "mine.jsonl", "--json", *FEW, *BF16, cwd=tmp_path, environment=BY_ROWS)
    report = json.loads(done.stdout)["models"]["zero"]["preferences"]
    for name in ("drift", "margin", "chosen", "rejected"):
        assert set(report[name].values()) == {0.0}, name
    assert report["reward_accuracy"]["value"] == 0.5
