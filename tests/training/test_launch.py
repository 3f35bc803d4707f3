"""One run in several processes from the command line, as `accelerate launch` starts it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

from tests.command import bapo
from tests.tiny import tiny_model, tiny_tokenizer

CONFIGURATIONS = sorted((Path(__file__).parents[2] / "recipes/accelerate").glob("*.yaml"))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    tiny_model("llama").save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    rows = [{"prompt": f"mine {i}", "chosen": f"good {i}", "rejected": f"bad {i * i}"} for i in range(14)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def arguments(batch: int, output: str) -> list[str]:
    training = {"sampler": "by-pair", "per_device_train_batch_size": batch, "max_steps": 3, "learning_rate": 1e-2}
    keys = [f"training.{key}={value}" for key, value in training.items()]
    keys += ["anchoring.base_max_new_tokens=6", "preferences.held_out=4", "lora.dropout=0"]
    sets = [part for key in keys for part in ("--set", key)]
    return ["train", "mine.jsonl", "-m", "model", "--precision", "float32", "-o", output, *sets]


def launched(place: Path, *more: str) -> subprocess.CompletedProcess[str]:
    configuration = next(path for path in CONFIGURATIONS if path.stem == "ddp")
    launcher = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    started = [*launcher, "--config_file", str(configuration), "--main_process_port", "29581", "-m", "bapo", *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "BAPO_CACHE": str(place / "cache")}
    return subprocess.run(started, cwd=place, capture_output=True, text=True, timeout=600, env=environment)


@pytest.mark.slow
def test_two_launched_processes_take_the_steps_of_one_and_speak_once(place: Path) -> None:
    done = launched(place, *arguments(2, "two"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("adapter in two") == 1
    assert done.stderr.count("training bapo: 3/3") == 1
    bapo(*arguments(4, "one"), cwd=place)
    two, one = (json.loads((place / name / "run.json").read_text())["log"] for name in ("two", "one"))
    assert len(one) == len(two) == 3
    for entry, expected in zip(two, one, strict=True):
        for name in ("loss", "loss/pair", "logratios/base", "rewards/margins"):
            assert entry[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-5), name


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.stem)
def test_shipped_configurations_are_ones_that_accelerate_knows(path: Path) -> None:
    """FSDP2 itself is tested as `fully_shard` on CPUs, in tests/likelihood/test_sharded.py."""
    configuration = load_config_from_file(str(path))
    assert configuration.num_processes == 2
    content = yaml.safe_load(path.read_text())
    assert content["distributed_type"] == {"ddp": "MULTI_GPU", "fsdp2": "FSDP"}[path.stem]
