"""Stages killed with SIGKILL at ten random moments and run again must end as if they had never been killed."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.test_cli import own_preferences

KILLS = 10

pytestmark = pytest.mark.slow


def run(arguments: list[str], cwd: Path, kill_after: float | None = None) -> float:
    """Run the command, killing it after so many seconds; returns how long it lived."""
    start = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "bapo", *arguments],
        cwd=cwd,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _, stderr = process.communicate(timeout=kill_after or 600)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    else:
        assert process.returncode == 0, stderr
    return time.monotonic() - start


def killed_often(arguments: list[str], cwd: Path, whole: float) -> int:
    """Start the command ten times and kill it at a random moment; how many times it was still alive."""
    rng = random.Random(20_24)
    alive = 0
    for _ in range(KILLS):
        moment = rng.uniform(0.25, 1.0) * whole  # before a quarter Python is still importing
        alive += run(arguments, cwd, kill_after=moment) >= moment
    return alive


def content(folder: Path, pattern: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob(pattern))}


def test_anchoring_killed_at_random_moments_ends_with_the_same_bytes(tmp_path: Path) -> None:
    own_preferences(tmp_path, lines=64)
    arguments = ["anchor", "mine.jsonl", "--max-new-tokens", "12"]
    whole = run([*arguments, "-o", "uninterrupted"], tmp_path)
    alive = killed_often([*arguments, "-o", "killed"], tmp_path, whole)
    assert alive >= 3, "hardly any kill came before the end"
    run([*arguments, "-o", "killed"], tmp_path)
    expected = content(tmp_path / "uninterrupted", "*.jsonl")
    assert expected.keys() >= {"logps.jsonl"}
    assert content(tmp_path / "killed", "*.jsonl") == expected


def test_training_killed_at_random_moments_ends_with_the_same_adapter(tmp_path: Path) -> None:
    own_preferences(tmp_path, lines=24)
    arguments = ["train", "mine.jsonl", "--steps", "8", "--held-out", "2", "--set", "training.batch_pairs=3"]
    arguments += ["--anchors", "anchors", "--set", "training.save_steps=1", "--set", "anchoring.max_new_tokens=8"]
    run([*arguments, "-o", "first"], tmp_path)  # anchors too, so that the next one is training alone
    whole = run([*arguments, "-o", "uninterrupted"], tmp_path)
    alive = killed_often([*arguments, "-o", "killed"], tmp_path, whole)
    assert alive >= 3, "hardly any kill came before the end"
    run([*arguments, "-o", "killed"], tmp_path)
    expected = content(tmp_path / "uninterrupted", "adapter_model.safetensors")
    assert expected
    assert content(tmp_path / "first", "adapter_model.safetensors") == expected
    assert content(tmp_path / "killed", "adapter_model.safetensors") == expected
