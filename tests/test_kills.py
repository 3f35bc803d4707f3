"""Stages killed with SIGKILL and run again, or run twice at once, must end as if they had run once and undisturbed."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.command import LIMIT_S, Command, bapo
from tests.test_cli import own_preferences
from tests.tiny import tiny_model, tiny_tokenizer

KILLS = 2

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
    """Run again after every kill until a run is through, compare it, begin another; until so many kills have struck.

    What is written where is what ``arguments`` end with an option for.
    """
    rng = random.Random(20_24)
    kills = through = 0
    while kills < KILLS or not through:
        folder = cwd / f"killed-{through}"
        moment = rng.uniform(0.1, 1.0) * whole if kills < KILLS else None
        seconds = run([*arguments, folder.name], cwd, moment)
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
    own_preferences(tmp_path, lines=20)
    arguments = ["anchor", "mine.jsonl", "--base-max-new-tokens", "12", "--anchored-store"]
    whole = run([*arguments, "uninterrupted"], tmp_path)
    expected = content(tmp_path / "uninterrupted", "*.jsonl")
    assert len(expected) == 2  # base responses and log-probs
    kill_often(arguments, tmp_path, whole, expected, "*.jsonl")


def test_training_killed_at_random_moments_ends_with_the_same_adapter(tmp_path: Path) -> None:
    own_preferences(tmp_path, lines=18)
    arguments = ["train", "mine.jsonl", "--max-steps", "6", "--held-out", "2", "--anchored-store", "anchors"]
    for setting in ("per_device_train_batch_size=2", "save_steps=1"):
        arguments += ["--set", f"training.{setting}"]
    arguments += ["--set", "anchoring.base_max_new_tokens=8", "--output"]
    run([*arguments, "first"], tmp_path)  # anchors too, so that the next one is training alone
    whole = run([*arguments, "uninterrupted"], tmp_path)
    adapter = "adapter_model.safetensors"
    expected = content(tmp_path / "uninterrupted", adapter)
    assert len(expected) == 1
    assert content(tmp_path / "first", adapter) == expected
    kill_often(arguments, tmp_path, whole, expected, adapter)


TO_THE_MIDDLE = ["train", "mine.jsonl", "-m", "model", "--precision", "float32", "--held-out", "2", "--max-steps", "19"]
TO_THE_MIDDLE += ["--set", "training.per_device_train_batch_size=2", "--set", "training.lr_scheduler_type=constant"]
TO_THE_MIDDLE += ["--anchored-store", "anchors", "--set", "training.save_steps=1"]
TO_THE_MIDDLE += ["--set", "anchoring.base_max_new_tokens=8"]
"""A run that ends inside an epoch, of eight steps, with a learning rate that another step would show."""


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That run, with a tiny model, and all that it takes."""
    folder = tmp_path_factory.mktemp("undisturbed")
    own_preferences(folder, lines=18)
    tiny_model("llama").save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    run([*TO_THE_MIDDLE, "-o", "undisturbed"], folder)
    return folder


@pytest.fixture
def undisturbed(first_run: Path, tmp_path: Path) -> dict[str, bytes]:
    """The adapter of that run; it and all that another one takes are in the test's folder."""
    shutil.copytree(first_run, tmp_path, dirs_exist_ok=True)
    return content(tmp_path / "undisturbed", "*.safetensors")


def test_a_run_killed_behind_its_last_checkpoint_ends_with_the_same_adapter(
    undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    for attempt in range(10):
        folder = tmp_path / f"killed-{attempt}"
        with Command([*TO_THE_MIDDLE, "-o", folder.name], tmp_path) as command:
            while not (folder / "checkpoints/checkpoint-19/complete").exists() and not command.wait(0.001):
                pass
            command.kill()
        struck = not (folder / "run.json").exists()
        run([*TO_THE_MIDDLE, "-o", folder.name], tmp_path)
        assert content(folder, "*.safetensors") == undisturbed
        if struck:
            return
    pytest.fail("the kills come too late to strike")


def test_the_same_command_twice_at_once_ends_with_the_same_adapter(
    undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    for attempt in range(3):
        folder = f"twice-{attempt}"
        with (
            Command([*TO_THE_MIDDLE, "-o", folder], tmp_path) as first,
            Command([*TO_THE_MIDDLE, "-o", folder], tmp_path) as second,
        ):
            assert first.wait()
            assert second.wait()
            said = [own.done() for own in (first, second)]
        assert [own.returncode for own in said] == [0, 0], said
        assert content(tmp_path / folder, "*.safetensors") == undisturbed
        if any(f"waiting for another process that trains into {folder}" in own.stderr for own in said):
            return
    pytest.fail("none waited for the other")


def test_a_finished_run_whose_files_are_gone_or_damaged_does_not_count_as_finished(
    undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    arguments = [*TO_THE_MIDDLE, "-o", "undisturbed"]
    adapter, record = (tmp_path / "undisturbed" / name for name in ("adapter_model.safetensors", "run.json"))
    weights, told = adapter.read_bytes(), record.read_text()
    for path, damaged in (
        (adapter, weights[:-1] + bytes([weights[-1] ^ 1])),
        (record, told.replace('"pairs": 16', '"pairs": 17')),
    ):
        before = path.read_bytes()
        path.write_bytes(damaged if isinstance(damaged, bytes) else damaged.encode())
        assert "delete the folder" in bapo(*arguments, cwd=tmp_path, code=2).stderr
        path.write_bytes(before)
    adapter.unlink()
    assert "adapter_model.safetensors cannot be read" in bapo(*arguments, cwd=tmp_path, code=2).stderr


def test_a_folder_deleted_while_it_is_written_is_no_success(tmp_path: Path) -> None:
    own_preferences(tmp_path, lines=32)
    with Command(
        ["anchor", "mine.jsonl", "--base-max-new-tokens", "12", "--anchored-store", "anchors"], tmp_path
    ) as command:
        while not list(tmp_path.glob("anchors/base-*.jsonl")) and not command.wait(0.001):
            pass
        shutil.rmtree(tmp_path / "anchors", ignore_errors=True)
        assert command.wait()
        done = command.done()
    assert done.returncode == 2, done
    assert done.stderr.strip().splitlines()[-1].startswith("bapo: ")


def test_a_full_disk_in_training_is_a_sentence_and_costs_nothing(undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    """No file may grow to the size of a checkpoint's; the system then refuses to write, as a full disk does."""
    limited = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY)); "
        "from bapo.cli import main; main()"
    )
    command = [sys.executable, "-c", limited, *TO_THE_MIDDLE, "-o", "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 2
    assert "could not be written" in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr
    run([*TO_THE_MIDDLE, "-o", "out"], tmp_path)
    assert content(tmp_path / "out", "*.safetensors") == undisturbed
