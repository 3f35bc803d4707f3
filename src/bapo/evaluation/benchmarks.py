"""The benchmarks of what a model knew and how it was aligned, as tasks of `lm-eval`.

What `lm-eval` has is used by its name; ScienceQA and HHH are task files of this package (``tasks/``). Each question can
be asked in two ways: by the log-likelihood of each choice's text, or by the letter after a question in the model's chat
format. By default each benchmark is asked as `lm-eval` itself asks it, so that a score means what published ones mean.
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
from bapo.evaluation.local_data import FILES, hub_rows

Asked = Literal["harness", "text", "letter"]
"""How questions are asked: as `lm-eval` does, by the choices' text, by a letter in the chat format."""

MMLU_SHOTS = 5

_LETTERS_OF = "{{{{'ABCDEFGH'[:{count}] | list}}}}"
_LETTER_ORDER = "Answer with the letter of the right choice only."


def _by_letter(question: str, texts: str, target: str) -> dict[str, Any]:
    """What makes a task ask for a letter; ``texts`` is a Jinja expression for the list of choices."""
    listed = f"{{% for choice in {texts} %}}{{{{'ABCDEFGH'[loop.index0]}}}}. {{{{choice}}}}\n{{% endfor %}}"
    return {
        "doc_to_text": f"{question}\n{listed}{_LETTER_ORDER}",
        "doc_to_choice": _LETTERS_OF.format(count=f"{texts}|length"),
        "doc_to_target": target,
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
        name: what users call it.
        title: how it stands in tables.
        kind: knowledge counts in the forgetting score, alignment does not.
        task: its `lm-eval` task or group.
        native: how that task asks.
        variants: what is changed in the task to ask in another way.
        text_task: another task that asks by the choices' text, where there is one.
    """

    name: str
    title: str
    kind: Literal["knowledge", "alignment"]
    task: str
    native: Literal["text", "letter"]
    variants: Mapping[str, Mapping[str, Any]]
    text_task: str | None = None


_TEXT_METRICS = [{"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in ("acc", "acc_norm")]
_LABELLED = "choices.text"
_RIGHT_LABEL = "{{choices.label.index(answerKey)}}"

BENCHMARKS: Mapping[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            "piqa", "PIQA", "knowledge", "piqa", "text",
            {"letter": _by_letter("{{goal}}", "[sol1, sol2]", "{{label}}")},
        ),
        Benchmark(
            "siqa", "SIQA", "knowledge", "social_iqa", "text",
            {"letter": _by_letter("{{context}} {{question}}", "[answerA, answerB, answerC]", "{{(label|int) - 1}}")},
        ),
        Benchmark(
            "arc_challenge", "ARC-Challenge", "knowledge", "arc_challenge", "text",
            {"letter": _by_letter("{{question}}", _LABELLED, _RIGHT_LABEL)},
        ),
        Benchmark(
            "scienceqa", "ScienceQA", "knowledge", "scienceqa", "text",
            {"letter": _by_letter("{% if hint %}{{hint}}\n{% endif %}{{question}}", "choices", "{{answer}}")},
        ),
        Benchmark(
            "commonsense_qa", "CommonsenseQA", "knowledge", "commonsense_qa", "letter",
            {
                "text": {
                    "doc_to_text": "Question: {{question}}\nAnswer:",
                    "doc_to_choice": "{{choices.text}}",
                    "doc_to_target": _RIGHT_LABEL,
                    "metric_list": _TEXT_METRICS,
                }
            },
        ),
        Benchmark("mmlu", "MMLU (5-shot)", "knowledge", "mmlu", "letter", {}, text_task="mmlu_continuation"),
        Benchmark("hhh", "HHH", "alignment", "hhh", "text", {}),
    )
}  # fmt: skip


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
            f"Unknown benchmark {', '.join(unknown) or wanted!r}: use all, or some of {', '.join(BENCHMARKS)}."
        )
    return tuple(dict.fromkeys(names))


@cache
def load_tasks(name: str, *, asked: Asked = "harness", data_folder: Path | None = None) -> tuple[LoadedTask, ...]:
    """The tasks of a benchmark: one, or MMLU's 57.

    Args:
        name: a benchmark.
        asked: how its questions are asked.
        data_folder: local files (`bapo.evaluation.local_data`); None reads the hub.

    Raises:
        BapoError: unknown benchmark or way of asking, or data that cannot be read.
    """
    if name not in BENCHMARKS:
        raise BapoError(f"Unknown benchmark {name!r}: use some of {', '.join(BENCHMARKS)}.")
    if asked not in get_args(Asked):
        raise BapoError(f"Unknown way of asking {asked!r}: use {', '.join(get_args(Asked))}.")
    benchmark = BENCHMARKS[name]
    way = benchmark.native if asked == "harness" or name == "hhh" else asked
    chat = name == "hhh" or (way == "letter" and asked != "harness")
    changes = dict(benchmark.variants.get(way, {})) if way != benchmark.native else {}
    by_text = way == "text" and benchmark.native == "letter"
    group = benchmark.text_task if by_text and benchmark.text_task else benchmark.task
    tasks = _mmlu_subjects(group) if name == "mmlu" else {group: ""}
    return tuple(_load(name, own, category, chat, changes, data_folder) for own, category in tasks.items())


def _load(
    name: str, task_name: str, category: str, chat: bool, changes: Mapping[str, Any], data_folder: Path | None
) -> LoadedTask:
    subject = task_name.removeprefix("mmlu_").removesuffix("_continuation") if name == "mmlu" else None
    overrides: dict[str, Any] = {"task": task_name, **changes}
    if data_folder is not None:
        overrides["custom_dataset"] = partial(_local_dataset, name, subject, data_folder)
        absent = {"training", "validation", "test"} - FILES[name].keys()
        overrides |= {f"{split}_split": None for split in absent}
    try:
        task = _task_manager().load([{"group": "bapo", "task": [overrides]}])["tasks"][task_name]
    except BapoError:
        raise
    except Exception as error:  # the hub fails in many ways; all of them mean that there are no questions
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if data_folder is not None:
            raise BapoError(f"The questions of {task_name} in {data_folder} could not be read ({first}).") from error
        raise BapoError(
            f"The questions of {name} could not be read from the hub ({first}): check the connection, "
            "or name a folder of local files with --data or BAPO_DATA."
        ) from error
    shots = MMLU_SHOTS if name == "mmlu" else 0
    task.set_config("num_fewshot", shots)
    told = {
        key: value
        for key, value in task.dump_config().items()
        if isinstance(value, str | int | float | list) and key not in ("custom_dataset", "process_docs")
    }
    versions = [version("lm_eval"), (task.config.metadata or {}).get("version")]
    content = json.dumps([name, told, shots, chat, versions], sort_keys=True, default=str)
    return LoadedTask(task_name, task, category, chat, hashlib.sha256(content.encode()).hexdigest())


def hub_documents(name: str) -> dict[str, list[dict[str, Any]]]:
    """The hub's rows of each split that a benchmark's local files hold (`FILES`), for `write_files`.

    Raises:
        BapoError: the hub cannot be read.
    """
    rows: dict[str, list[dict[str, Any]]] = {split: [] for split in FILES[name]}
    for own in load_tasks(name):
        for split, found in rows.items():
            found += own.task.fewshot_docs() if split == "dev" else own.task.eval_docs
    return rows


def _local_dataset(name: str, subject: str | None, folder: Path, **_: Any) -> dict[str, Any]:
    from datasets import Dataset

    return {
        split: Dataset.from_list(
            [row for row in hub_rows(name, split, folder) if subject is None or row["subject"] == subject]
        )
        for split in FILES[name]
    }


@cache
def _task_manager() -> Any:
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(Path(__file__).parent / "tasks"))


def _mmlu_subjects(group: str) -> dict[str, str]:
    """The tasks of MMLU and their categories by the official assignment, in which anatomy is in other."""
    index = _task_manager().task_index
    found: dict[str, str] = {}
    for category in ("stem", "social_sciences", "humanities", "other"):
        for task in sorted(index[f"mmlu_{category}_tasks"].tags):
            found[task] = category
    found["mmlu_anatomy"] = "other"
    suffix = "_continuation" if group == "mmlu_continuation" else ""
    return {task + suffix: category for task, category in sorted(found.items())}


def sample_documents(tasks: Sequence[LoadedTask], limit: int | None, seed: int) -> dict[str, list[int]]:
    """Which documents of each task are asked: all, or ``limit`` spread over the tasks by their sizes.

    The sample depends on the seed and the tasks alone, so every model is asked the same, and a smaller limit asks a
    part of what a larger one asks of each task.
    """
    sizes = {own.name: len(own.task.eval_docs) for own in tasks}
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
