"""Readers of what bapo itself kept: runs, checkpoints, records, answers, the anchored store."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from bapo.errors import BapoError
from bapo.files import write_record
from tests.fuzz.target import Target
from tests.tiny import tiny_model, tiny_tokenizer


def _written(write: Callable[[Path], Any]) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder)
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"]
        return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


LOG = [{"step": 1, "loss": 0.7, "pairs_per_second": 2.0}, {"step": 2, "loss": 0.6, "pairs_per_second": 2.5}]
RECIPE = {"model": {"name": "m", "reference_adapter": None}, "lora": {"enabled": True}, "preferences": {"source": "x"}}
RUN = {
    "recipe": RECIPE,
    "objective": "bapo",
    "reference": "f" * 64,
    "log": LOG,
    "today": "2026-01-02T03:04:05",
    "pairs": 5,
    "steps": 2,
    "precision": "float32",
    "identity": "i",
    "settings": {"training.beta": 0.1},
    "data": "d",
    "counts": {"cut": 1},
}


def _run() -> Target:
    from bapo.jobs.run_folder import finish

    def write(folder: Path) -> None:
        (folder / "adapter_model.safetensors").write_bytes(b"weights" * 10)
        finish(folder, RUN)

    def read(folder: Path) -> str | None:
        from bapo.jobs.run_folder import Asked, check_asked
        from bapo.results import day_of, read_run, record_of

        day_of(folder)
        record = record_of(folder)
        if record is not None:
            _ = record["recipe"]["model"]["name"], str(record["reference"])
        check_asked(folder, Asked({"training.beta": 0.1}, "d"))
        run = read_run(folder)
        if not isinstance(run.name, str):
            return "the objective is no text"
        if not run.log or not all(
            isinstance(e["loss"], float | int) and isinstance(e["step"], float | int) for e in run.log
        ):
            return "the log holds no numbers"
        return (
            None if math.isfinite(sum(entry["pairs_per_second"] for entry in run.log)) else "the log holds no numbers"
        )

    return Target("run", _written(write), read)


def _started() -> Target:
    """A run that was killed: what it was asked for, and its checkpoints."""
    from bapo.jobs.run_folder import STARTED
    from bapo.training.checkpoints import mark_complete

    def write(folder: Path) -> None:
        write_record(
            folder / STARTED,
            {"identity": "i", "settings": {"training.beta": 0.1}, "data": "d", "today": "2026-01-02T03:04:05"},
        )
        for step in (1, 2):
            checkpoint = folder / "checkpoints" / f"checkpoint-{step}"
            checkpoint.mkdir(parents=True)
            (checkpoint / "adapter_model.safetensors").write_bytes(b"weights %d" % step)
            (checkpoint / "anchor_control.json").write_text(json.dumps({"strength": 5.0}))
            mark_complete(checkpoint, "f" * 64)

    def read(folder: Path) -> str | None:
        from bapo.jobs.run_folder import Asked, check_asked, start
        from bapo.results import day_of
        from bapo.training.checkpoints import check_checkpoint, last_complete

        last = last_complete(folder / "checkpoints")
        if last is not None:
            check_checkpoint(last, "f" * 64)
            weights = (last / "adapter_model.safetensors").read_bytes()
            if weights != b"weights " + last.name[-1].encode():
                return "a checkpoint is taken that is not what was written"
        day = day_of(folder)
        check_asked(folder, Asked({"training.beta": 0.1}, "d"))
        start(folder, "i", Asked({"training.beta": 0.1}, "d"), day)
        return None

    return Target("started", _written(write), read)


def _records() -> Target:
    from bapo.results import ANCHORED, FINISHED_JOB, GENERATIONS, AnchoredSummary, FinishedJob, Generations, Provenance

    made_from = Provenance("model", "f" * 64, data={"preferences": "abc"}, made_on={"threads": 2})
    contents: dict[str, tuple[Any, Any]] = {
        "anchored.json": (
            ANCHORED,
            AnchoredSummary("x", {"a.jsonl": 1}, 1, 2, 3, 3, 2.5, {"cut": 1}, {}, "2026-01-02"),
        ),
        "job.json": (FINISHED_JOB, FinishedJob("k", "base", "train", 1.5, 10, {"steps": 2}, tuple(LOG))),
        "generations.json": (GENERATIONS, Generations("m", ("a",), ("b",))),
    }

    def write(folder: Path) -> None:
        for name, (kind, content) in contents.items():
            kind.write(
                folder / name, content, identity="i", made_from=made_from, items=[{"score": 0.5, "text": "é"}] * 3
            )

    def read(folder: Path) -> str | None:
        for name, (kind, _) in contents.items():
            record = kind.read(folder / name)
            kind.find(folder / name, "i")
            record.items()
            json.dumps(_numbers(record.content), allow_nan=False)
        return None

    return Target("records", _written(write), read)


def _numbers(content: Any) -> Any:
    from dataclasses import asdict

    return asdict(content)


def _answers() -> Target:
    from bapo.results import Answer, AnswerStore

    kept = [Answer("t", n, "", f"q {n}", ("a", "b"), (-1.0, -2.0), 0, 1.0, None) for n in range(3)]
    files = _written(lambda folder: (AnswerStore(folder).add(kept[:2], {}), AnswerStore(folder).add(kept[2:], {})))

    def read(folder: Path) -> str | None:
        try:
            as_it_is = AnswerStore(folder).read()
        except BapoError:
            for path in folder.glob("answers-*"):
                _reseal(path)
            _usable(AnswerStore(folder).read())
            raise
        return None if set(as_it_is.items()) <= set(enumerate(kept)) else "kept answers differ, silently"

    return Target("answers", files, read)


def _reseal(path: Path) -> None:
    """The name that fits the content: somebody may have written such a file."""
    from bapo.files import checksum

    if path.is_file() and os.access(path, os.R_OK):
        path.rename(path.with_name(f"answers-{checksum(path.read_bytes())}.parquet"))


def _usable(answers: Any) -> None:
    for answer in answers.values():
        _ = answer.probabilities, answer.score, answer.choices[answer.right]


@cache
def _reference() -> Any:
    from bapo.models import LoadedModel, chat_format

    model = tiny_model("llama", num_hidden_layers=1, hidden_size=16, intermediate_size=16)
    return LoadedModel("m", model, chat_format(model, tiny_tokenizer()), "float32", "off")


def _store() -> Target:
    from bapo.anchoring import AnchorStore, GenerationSettings, anchor
    from bapo.preferences import Pair, group_pairs

    preferences = group_pairs("x", [Pair("a", "b", "c"), Pair("d", "e", "f")])
    settings = GenerationSettings(max_new_tokens=3)
    model = _reference()

    def anchored(folder: Path) -> Any:
        return anchor(preferences, model, AnchorStore(folder, model), generation=settings)

    good: list[Any] = []
    files = _written(lambda folder: good.append(anchored(folder)))
    right = SimpleNamespace(groups=repr(good[0].groups))

    def read(folder: Path) -> str | None:
        return None if repr(anchored(folder).groups) == right.groups else "other anchored data, silently"

    return Target("store", files, read)


MAKERS: dict[str, Callable[[], Target]] = {
    "run": _run,
    "started": _started,
    "records": _records,
    "answers": _answers,
    "store": _store,
}
