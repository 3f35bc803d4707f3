"""An anchor strength that moves: what it follows, what it must not depend on, and that a checkpoint keeps it."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from bapo.errors import BapoError
from bapo.objectives import ANCHOR_CONTROLS, AnchorControl
from bapo.training.anchor_control import STATE, load_state, save_state
from bapo.training.checkpoints import last_complete
from tests.command import Command, bapo
from tests.test_cli import own_preferences
from tests.tiny import tiny_model, tiny_tokenizer
from tests.training.test_trainer import make

ADAPTIVE = {"anchor_control": "adaptive", "objective_settings": {"drift_target": 1e-3, "gain": 1.0}}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BAPO_CACHE", str(tmp_path / "cache"))


def trained(folder: Path, **settings: Any) -> list[dict[str, float]]:
    trainer = make(folder, **{"max_steps": 6, "learning_rate": 2e-2, **ADAPTIVE, **settings})
    trainer.train()
    return [entry for entry in trainer.state.log_history if "anchor/strength" in entry]


def test_the_strength_follows_the_drift_of_each_step(tmp_path: Path) -> None:
    """By hand from what was logged: the strength of a step is that of the last one, moved by the drift of that."""
    log = trained(tmp_path)
    strengths = [entry["anchor/strength"] for entry in log]
    assert len(log) == 6
    assert strengths[0] == 5.0
    for before, after in pairwise(log):
        error = (-before["drift/per_token"] - 1e-3) / 1e-3
        assert after["anchor/strength"] == pytest.approx(before["anchor/strength"] * (1 + max(-0.2, min(0.2, error))))
    assert min(strengths) < 5.0  # the first step drifts by nothing, which is less than the target
    assert any(after > before for before, after in pairwise(strengths)), "and later by more"


def test_the_strength_does_not_depend_on_how_a_step_is_cut(tmp_path: Path) -> None:
    whole = trained(tmp_path / "a", per_device_train_batch_size=8)
    cut = trained(tmp_path / "b", per_device_train_batch_size=2, gradient_accumulation_steps=4)
    passes = trained(tmp_path / "c", per_device_train_batch_size=8, max_batch_tokens=20)
    for other in (cut, passes):
        for name in ("anchor/strength", "drift/per_token"):
            assert [e[name] for e in other] == pytest.approx([e[name] for e in whole], rel=1e-3, abs=1e-6), name


def test_a_constant_strength_is_logged_every_step(tmp_path: Path) -> None:
    log = trained(tmp_path, objective="dpop", anchor="token", anchor_strength=2, anchor_control="constant",
                  objective_settings={})  # fmt: skip
    assert [entry["anchor/strength"] for entry in log] == [2.0] * 6


def test_another_training_of_the_same_trainer_begins_with_the_first_strength(tmp_path: Path) -> None:
    trainer = make(tmp_path, **ADAPTIVE)
    for _ in range(2):
        trainer.train()
        assert trainer.objective.anchor_strength != 5.0
        assert next(e["anchor/strength"] for e in trainer.state.log_history if "loss" in e) == 5.0


def test_a_checkpoint_keeps_the_state_and_its_checksum(tmp_path: Path) -> None:
    trainer = make(tmp_path, save_strategy="steps", save_steps=1, **ADAPTIVE)
    trainer.train()
    checkpoint = last_complete(tmp_path / "out")
    assert checkpoint is not None
    assert json.loads((checkpoint / STATE).read_text()) == trainer.objective.control.state_dict()
    (checkpoint / STATE).write_text(json.dumps({"strength": 1.0}))
    assert last_complete(tmp_path / "out") == tmp_path / "out" / "checkpoint-1"


def test_what_cannot_be_kept_or_gone_on_with_is_a_sentence(tmp_path: Path) -> None:
    control = AnchorControl(5.0)
    with pytest.raises(BapoError, match="keeps no anchor strength"):
        load_state(control, tmp_path)
    control.strength = object()  # type: ignore[assignment]
    with pytest.raises(BapoError, match="state_dict of AnchorControl must be JSON"):
        save_state(control, tmp_path)


def test_a_control_that_sets_no_number_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = ANCHOR_CONTROLS["adaptive"].made
    monkeypatch.setattr(made, "update", lambda self, step, drift: setattr(self, "strength", float("nan")))
    with pytest.raises(BapoError, match="The strength that Adaptive sets must be a number from 0"):
        trained(tmp_path)


@pytest.mark.slow
def test_a_run_that_is_killed_and_gone_on_with_has_the_same_strength_in_every_step(tmp_path: Path) -> None:
    own_preferences(tmp_path, lines=18)
    tiny_model("llama").save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    command = ["train", "mine.jsonl", "-m", "model", "--precision", "float32", "--held-out", "2", "--max-steps", "30"]
    command += ["--learning-rate", "2e-2", "--anchored-store", "anchors"]
    told = ["training.per_device_train_batch_size=2", "training.save_steps=1", "anchoring.base_max_new_tokens=8"]
    told += ["training.anchor_control=adaptive", "training.objective_settings={drift_target: 0.001}"]
    command += [part for setting in told for part in ("--set", setting)]
    bapo(*command, "-o", "undisturbed", cwd=tmp_path)

    def strengths(name: str) -> list[float]:
        return [entry["anchor/strength"] for entry in json.loads((tmp_path / name / "run.json").read_text())["log"]]

    for stop_at in (4, 17):
        with Command([*command, "-o", "killed"], tmp_path) as running:
            while not (tmp_path / f"killed/checkpoints/checkpoint-{stop_at}/complete").exists():
                assert not running.wait(0.001), "the kill comes too late to strike"
            running.kill()
        assert not (tmp_path / "killed/run.json").exists()
    bapo(*command, "-o", "killed", cwd=tmp_path)
    assert len(strengths("killed")) == 30
    assert len(set(strengths("killed"))) > 20
    assert strengths("killed") == strengths("undisturbed")
