"""The stages that are disturbed, with tiny models: what is run, and what must be the same in the end."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet

from tests.command import bapo
from tests.evaluation.questions import rows
from tests.tiny import CHATML, tiny_model, tiny_tokenizer

OUT = "out"
"""What every stage writes to."""

_MODEL = ("--precision", "float32", "--set", "anchoring.base_max_new_tokens=6")
_TRAINING = ("--held-out", "2", "--max-steps", "6", "--set", "training.per_device_train_batch_size=2")
_TRAINING += ("--set", "training.save_steps=1")


@dataclass(frozen=True)
class Stage:
    """One command, and what counts of what it leaves.

    Attributes:
        arguments: of `bapo`.
        before: stages that have been through.
        content: what must be the same in the end, from its folder.
    """

    arguments: tuple[str, ...]
    before: tuple[str, ...]
    content: Callable[[Path], dict[str, str]]


def _journals(place: Path) -> dict[str, str]:
    return {path.name: _digest(path.read_bytes()) for path in sorted(place.glob(f"{OUT}/*.jsonl"))}


def _adapters(place: Path) -> dict[str, str]:
    weights = {str(path.relative_to(place)): path.read_bytes() for path in place.glob(f"{OUT}/**/*.safetensors")}
    return {name: _digest(content) for name, content in sorted(weights.items())} | _records(place, "run.json")


def _evaluated(place: Path) -> dict[str, str]:
    return _records(place, "*.json") | _rows(place)


def _personalized(place: Path) -> dict[str, str]:
    return _adapters(place) | _records(place, "*.json") | _rows(place)


STAGES = {
    "anchor": Stage(("anchor", "mine.jsonl", "-m", "model", *_MODEL, "--anchored-store", OUT), (), _journals),
    "train": Stage(
        ("train", "mine.jsonl", "-m", "model", *_MODEL, *_TRAINING, "--anchored-store", "store", "-o", OUT),
        ("anchor",),
        _adapters,
    ),
    "evaluate": Stage(
        (
            "evaluate", "adapter", "-m", "model", *_MODEL, "-p", "mine.jsonl", "--held-out", "2",
            "--anchored-store", "store", "--benchmarks", "piqa,hhh", "--limit", "8", "--records", OUT,
        ),
        ("anchor", "train"),
        _evaluated,
    ),
    "personalize": Stage(
        (
            "personalize", "mine.jsonl", "-m", "model", *_MODEL, *_TRAINING, "--set", "generations.max_new_tokens=4",
            "--anchored-store", "store", "-o", OUT,
        ),
        (),
        _personalized,
    ),
}  # fmt: skip


def prepare(place: Path, environment: dict[str, str]) -> None:
    """A folder with a model, preferences, questions, and what the stages before leave."""
    place.mkdir()
    tiny_model("llama", num_hidden_layers=2).save_pretrained(place / "model")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(place / "model")
    pairs = [{"prompt": f"Add {i}", "chosen": f"{2 * i}, yes", "rejected": f"no {i}"} for i in range(10)]
    (place / "mine.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    for name, file in (("piqa", "knowledge/piqa.jsonl"), ("hhh", "alignment/hhh.jsonl")):
        path = place / "data" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows(name, "test")))
    for stage, kept in (("anchor", "store"), ("train", "adapter")):
        bapo(*STAGES[stage].arguments, cwd=place, environment=environment)
        (place / OUT).rename(place / kept)


def copy(place: Path, target: Path, stage: Stage) -> None:
    """The folder as it is before a stage."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(place, target, symlinks=True)
    for name, made_by in (("store", "anchor"), ("adapter", "train")):
        if made_by not in stage.before:
            shutil.rmtree(target / name)


def _records(place: Path, pattern: str) -> dict[str, str]:
    """Records without times, and what follows from them."""
    paths = [path for path in place.glob(f"{OUT}/**/{pattern}") if "checkpoint" not in str(path)]
    return {
        _named(path, place): json.dumps(_timeless(json.loads(path.read_text())), sort_keys=True)
        for path in sorted(paths)
    }


def _rows(place: Path) -> dict[str, str]:
    """The rows of each folder's Parquet files, each row once: in how many files answers lie, a kill decides."""
    rows: dict[str, set[str]] = {}
    for path in place.glob(f"{OUT}/**/*.parquet"):
        kept = rows.setdefault(f"rows of {_named(path.parent, place)}", set())
        kept.update(json.dumps(_timeless(row), sort_keys=True) for row in parquet.read_table(path).to_pylist())
    return {folder: _digest("\n".join(sorted(kept)).encode()) for folder, kept in sorted(rows.items())}


def _named(path: Path, place: Path) -> str:
    return re.sub(r"\d{4,}", "N", str(path.relative_to(place)))


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        timed = ("checksum", "seconds", "made_on", "items", "today")
        return {
            k: _timeless(v) for k, v in value.items() if k not in timed and not re.search("time|runtime|_second", k)
        }
    return [_timeless(inner) for inner in value] if isinstance(value, list) else value


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
