"""Stages killed with SIGKILL at ten random moments and run again must end as if they had never been killed."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from tests.command import LIMIT_S, Command
from tests.test_cli import own_preferences

KILLS = 10

pytestmark = pytest.mark.slow


def run(arguments: list[str], cwd: Path, kill_after: float | None = None) -> float | None:
    """Run the command and return its seconds, or None if it had to be killed after ``kill_after`` of them."""
    start = time.monotonic()
    with Command(arguments, cwd) as command:
        if not command.wait(kill_after or LIMIT_S):
            assert kill_after, f"still running after {LIMIT_S} s"
            command.kill()
            return None
        done = command.done()
    assert done.returncode == 0, done.stderr
    return time.monotonic() - start


@pytest.fixture(autouse=True)
def _server_is_up(tmp_path: Path) -> None:
    """So that the first run that is timed does not wait for the imports that all others find done."""
    run(["--help"], tmp_path)


def kill_often(arguments: list[str], cwd: Path, whole: float, expected: dict[str, bytes], pattern: str) -> None:
    """Run again after every kill until a run is through, compare it, begin another; until ten kills have struck."""
    rng = random.Random(20_24)
    kills = through = 0
    while kills < KILLS or not through:
        folder = cwd / f"killed-{through}"
        moment = rng.uniform(0.1, 1.0) * whole if kills < KILLS else None
        seconds = run([*arguments, "-o", folder.name], cwd, moment)
        if seconds is None:
            kills += 1
        else:
            whole = min(whole, seconds)  # the machine may have been busy with something else when it was measured
            assert content(folder, pattern) == expected, f"after {kills} kills in all"
            through += 1
        assert through < KILLS, "the kills come too late to strike"


def content(folder: Path, pattern: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob(pattern))}


def test_anchoring_killed_at_random_moments_ends_with_the_same_bytes(tmp_path: Path) -> None:
    own_preferences(tmp_path, lines=32)
    arguments = ["anchor", "mine.jsonl", "--max-new-tokens", "12"]
    whole = run([*arguments, "-o", "uninterrupted"], tmp_path)
    expected = content(tmp_path / "uninterrupted", "*.jsonl")
    assert len(expected) == 2  # base responses and log-probs
    kill_often(arguments, tmp_path, whole, expected, "*.jsonl")


def test_training_killed_at_random_moments_ends_with_the_same_adapter(tmp_path: Path) -> None:
    own_preferences(tmp_path, lines=18)
    arguments = ["train", "mine.jsonl", "--steps", "6", "--held-out", "2", "--set", "training.batch_pairs=2"]
    arguments += ["--anchors", "anchors", "--set", "training.save_steps=1", "--set", "anchoring.max_new_tokens=8"]
    run([*arguments, "-o", "first"], tmp_path)  # anchors too, so that the next one is training alone
    whole = run([*arguments, "-o", "uninterrupted"], tmp_path)
    adapter = "adapter_model.safetensors"
    expected = content(tmp_path / "uninterrupted", adapter)
    assert len(expected) == 1
    assert content(tmp_path / "first", adapter) == expected
    kill_often(arguments, tmp_path, whole, expected, adapter)
