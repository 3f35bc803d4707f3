"""Benchmarks by name: what each is, and how questions in local files become rows of its data set on the hub."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from bapo.registry import Registry

Row = dict[str, Any]
LETTERS = "ABCDEFGH"

Declared = TypeVar("Declared", bound="type[Benchmark]")


class Benchmark:
    """One benchmark: a task, or a group of tasks, of `lm-eval`.

    Attributes:
        name: what users call it.
        title: how it stands in tables.
        kind: knowledge counts in the forgetting score, alignment does not.
        task: its `lm-eval` task or group.
        task_folder: where the task's YAML file lies, if `lm-eval` does not have it.
        native: how that task asks, by the choices' text or by a letter.
        variants: what is changed in the task to ask in another way, by that way.
        text_task: another task that asks by the choices' text, where there is one.
        chat: whether it is asked in the chat format in any case.
        shots: questions that are answered in front of each.
        files: of local question files (`bapo.evaluation.local_data`), by the split; none reads the hub always.
        keys: what each line of these needs.
        choices: how many each question has there; None for any number.
        size: how many questions it has, and the mean tokens of one that are computed, choices and examples too, for
            plans; None where that is not known.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    kind: ClassVar[Literal["knowledge", "alignment"]] = "knowledge"
    task: ClassVar[str]
    task_folder: ClassVar[Path | None] = None
    native: ClassVar[Literal["text", "letter"]] = "text"
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    text_task: ClassVar[str | None] = None
    chat: ClassVar[bool] = False
    shots: ClassVar[int] = 0
    files: ClassVar[Mapping[str, str]] = {}
    keys: ClassVar[Sequence[str]] = ("question", "choices", "answer")
    choices: ClassVar[int | None] = None
    size: ClassVar[tuple[int, float] | None] = None

    def tasks(self, group: str, index: Mapping[str, Any]) -> dict[str, str]:
        """Its tasks and what they count under, "" where a document says so itself; ``index`` is `lm-eval`'s."""
        return {group: ""}

    def of_task(self, row: Row, task: str) -> bool:
        """Whether a row of the hub belongs to one of its tasks."""
        return True

    def to_hub(self, row: Row) -> Row:
        """A line of a local file as a row of the hub."""
        raise NotImplementedError

    def from_hub(self, row: Row) -> Row:
        """A row of the hub as a line of a local file."""
        raise NotImplementedError


BENCHMARKS: Registry[Benchmark] = Registry("benchmarks")


def benchmark(name: str) -> Callable[[Declared], Declared]:
    """Register a `Benchmark`."""

    def register(declared: Declared) -> Declared:
        declared.name = name
        BENCHMARKS.add(name, declared(), declared)
        return declared

    return register


TEXT_METRICS = [{"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in ("acc", "acc_norm")]

RIGHT_LABEL = "{{choices.label.index(answerKey)}}"

_LETTER_ORDER = "Answer with the letter of the right choice only."


def by_letter(question: str, texts: str, target: str) -> dict[str, Any]:
    """What makes a task ask for a letter; ``texts`` is a Jinja expression for the list of choices."""
    listed = f"{{% for choice in {texts} %}}{{{{'{LETTERS}'[loop.index0]}}}}. {{{{choice}}}}\n{{% endfor %}}"
    return {
        "doc_to_text": f"{question}\n{listed}{_LETTER_ORDER}",
        "doc_to_choice": f"{{{{'{LETTERS}'[:{texts}|length] | list}}}}",
        "doc_to_target": target,
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }


def labelled(row: Row) -> Row:
    """The choices of a local row as texts with their letters."""
    return {"text": row["choices"], "label": list(LETTERS[: len(row["choices"])])}
