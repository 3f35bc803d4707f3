"""The benchmarks of what a model knew and how it was aligned, as tasks of `lm-eval`.

Each is a file of ``tasks/``. What `lm-eval` has is used by its name; ScienceQA and HHH have task files there. Each
question can be asked in two ways: by the log-likelihood of each choice's text, or by the letter after a question in the
model's chat format. By default each is asked as `lm-eval` itself asks it, so that scores mean what published ones mean.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

from bapo.errors import BapoError
from bapo.evaluation.local_data import hub_rows
from bapo.evaluation.registry import BENCHMARKS, Benchmark
from bapo.registry import nearest

Asked = Literal["harness", "text", "letter"]
"""How questions are asked: as `lm-eval` does, by the choices' text, by a letter in the chat format."""


@dataclass(frozen=True)
class LoadedTask:
    """One `lm-eval` task of a benchmark, ready to build its requests.

    Attributes:
        name: its name in `lm-eval`.
        task: the task.
        category: what it counts under in the benchmark's table, or "" where a document says so itself.
        chat: whether questions are put in the model's chat format.
        fingerprint: hash of all that determines its requests and its scoring.
    """

    name: str
    task: Any
    category: str
    chat: bool
    fingerprint: str

    def category_of(self, document: Mapping[str, Any]) -> str:
        """What a document counts under."""
        return self.category or str(document.get("category", ""))


def benchmark_names(wanted: str) -> tuple[str, ...]:
    """The benchmarks of a list with commas; ``all`` is every one.

    Raises:
        BapoError: one is unknown.
    """
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    if names == ["all"]:
        return tuple(BENCHMARKS)
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown or not names:
        raise BapoError(
            f"Unknown benchmark {', '.join(unknown) or wanted!r}{nearest(wanted, BENCHMARKS)}: use all, or some of "
            f"{', '.join(BENCHMARKS)}."
        )
    return tuple(dict.fromkeys(names))


def load_tasks(name: str, *, asked: Asked = "harness", data_folder: Path | None = None) -> tuple[LoadedTask, ...]:
    """The tasks of a benchmark: one, or MMLU's 57.

    Args:
        name: a benchmark.
        asked: how its questions are asked.
        data_folder: local files (`bapo.evaluation.local_data`); None reads the hub.

    Raises:
        BapoError: unknown benchmark or way of asking, or data that cannot be read.
    """
    benchmark = BENCHMARKS.find(name)
    folder = data_folder if benchmark.files else None
    paths = [] if folder is None else [folder / path for path in benchmark.files.values()]
    changed = tuple((path, path.stat().st_mtime_ns) for path in paths if path.is_file())
    return _loaded(name, asked, folder, changed)


@cache
def _loaded(
    name: str, asked: Asked, folder: Path | None, changed: tuple[tuple[Path, int], ...]
) -> tuple[LoadedTask, ...]:
    benchmark = BENCHMARKS.find(name)
    if asked not in get_args(Asked):
        raise BapoError(f"Unknown way of asking {asked!r}: use {', '.join(get_args(Asked))}.")
    way = benchmark.native if asked == "harness" or benchmark.chat else asked
    chat = benchmark.chat or (way == "letter" and asked != "harness")
    changes = dict(benchmark.variants.get(way, {})) if way != benchmark.native else {}
    by_text = way == "text" and benchmark.native == "letter"
    group = benchmark.text_task if by_text and benchmark.text_task else benchmark.task
    tasks = benchmark.tasks(group, _task_manager(benchmark.task_folder).task_index)
    return tuple(_load(benchmark, task, category, chat, changes, folder) for task, category in tasks.items())


def _load(
    benchmark: Benchmark,
    task_name: str,
    category: str,
    chat: bool,
    changes: Mapping[str, Any],
    data_folder: Path | None,
) -> LoadedTask:
    name, shots = benchmark.name, benchmark.shots
    overrides: dict[str, Any] = {"task": task_name, **changes}
    if data_folder is not None:
        overrides["custom_dataset"] = partial(_local_dataset, benchmark, task_name, data_folder)
        absent = {"training", "validation", "test"} - benchmark.files.keys()
        overrides |= {f"{split}_split": None for split in absent}
    try:
        task = _task_manager(benchmark.task_folder).load([{"group": "bapo", "task": [overrides]}])["tasks"][task_name]
    except BapoError:
        raise
    except Exception as error:  # the hub fails in many ways; all of them mean that there are no questions
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if data_folder is not None:
            raise BapoError(f"The questions of {task_name} in {data_folder} could not be read ({first}).") from error
        raise BapoError(
            f"The questions of {name} could not be read from the hub ({first}): check the connection, "
            "or name a folder of local files with --data-folder or BAPO_DATA."
        ) from error
    task.set_config("num_fewshot", shots)
    config = {
        key: value
        for key, value in task.dump_config().items()
        if isinstance(value, str | int | float | list) and key not in ("custom_dataset", "process_docs")
    }
    versions = [version("lm_eval"), (task.config.metadata or {}).get("version")]
    content = json.dumps([name, config, shots, chat, versions], sort_keys=True, default=str)
    return LoadedTask(task_name, task, category, chat, hashlib.sha256(content.encode()).hexdigest())


def hub_documents(name: str) -> dict[str, list[dict[str, Any]]]:
    """The hub's rows of each split that a benchmark's local files hold (`Benchmark.files`), for `write_files`.

    Raises:
        BapoError: the hub cannot be read.
    """
    rows: dict[str, list[dict[str, Any]]] = {split: [] for split in BENCHMARKS[name].files}
    for loaded in load_tasks(name):
        for split, documents in rows.items():
            documents += loaded.task.fewshot_docs() if split == "dev" else loaded.task.eval_docs
    return rows


def _local_dataset(benchmark: Benchmark, task: str, folder: Path, **_: Any) -> dict[str, Any]:
    from datasets import Dataset

    return {
        split: Dataset.from_list(
            [row for row in hub_rows(benchmark.name, split, folder) if benchmark.of_task(row, task)]
        )
        for split in benchmark.files
    }


@cache
def _task_manager(task_folder: Path | None) -> Any:
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(task_folder or Path(__file__).parent / "tasks"))


def sample_documents(tasks: Sequence[LoadedTask], limit: int | None, seed: int) -> dict[str, list[int]]:
    """Which documents of each task are asked: all, or ``limit`` spread over the tasks by their sizes.

    The sample depends on the seed and the tasks alone, so every model is asked the same, and a smaller limit asks a
    part of what a larger one asks of each task.
    """
    sizes = {loaded.name: len(loaded.task.eval_docs) for loaded in tasks}
    total = sum(sizes.values())
    if limit is None or limit >= total:
        return {name: list(range(size)) for name, size in sizes.items()}
    shares = {name: max(1, limit * size // total) for name, size in sizes.items()}
    by_remainder = sorted(sizes, key=lambda name: (-(limit * sizes[name] % total), name))
    for name in by_remainder:
        if sum(shares.values()) >= limit:
            break
        shares[name] += 1
    drawn = {}
    for name, size in sizes.items():
        order = list(range(size))
        random.Random(f"{seed} {name}").shuffle(order)
        drawn[name] = sorted(order[: shares[name]])
    return drawn
