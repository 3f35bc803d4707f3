"""What the runs of a study found, item by item."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bapo.errors import BapoError
from bapo.results.answers import BenchmarkKind
from bapo.results.preferences import PromptScores, from_rows
from bapo.results.records import Record
from bapo.results.right_choice import Choices, right_choice_logp, tempered_logps
from bapo.results.study import FinishedJob

Array = NDArray[np.float64]

ACCURACY, RIGHT_CHOICE, TEMPERED = "accuracy", "right choice", "right choice, tempered"
QUESTION_MEASURES = {ACCURACY: "points", RIGHT_CHOICE: "nats", TEMPERED: "nats"}
"""What is known of each question, and the unit of its changes."""

FORGETTING = RIGHT_CHOICE
"""The measure by which forgetting is judged, fixed from controls (docs/measures.md); the others stand beside it."""

REWARD_ACCURACY, DRIFT = "reward accuracy", "drift"
OTHER_TOPICS = "divergence, other"

PROMPT_MEASURES = {
    REWARD_ACCURACY: "%",
    DRIFT: "nats a token",
    "divergence, held-out": "nats a token",
    OTHER_TOPICS: "nats a token",
    "chosen-like answers": "%",
    "words an answer": "",
    "repeated runs of words": "%",
}
"""What is known of each prompt, and its unit."""

SPOKEN = {
    "chosen-like answers": ("chosen_like", 100.0),
    "words an answer": ("words", 1.0),
    "repeated runs of words": ("repeated", 100.0),
}
"""Those of a model's own answers: which field of `Behaviour` they are, and by what it is multiplied."""

CHOSEN_LIKE = "chosen-like answers"

SHARES = (REWARD_ACCURACY, CHOSEN_LIKE, "repeated runs of words")

BY_CATEGORY = ("mmlu", "hhh")
"""Benchmarks that stand in tables by their categories, as in the paper."""

OF_DATA = ("preferences.", "anchoring.")
"""Sections of a recipe whose settings change what is asked, of models without training too."""

Question = tuple[str, int, int, int]
"""Task, number, the right choice and how many there are: of questions that were changed, the last two give a sign."""


@dataclass(frozen=True)
class EvaluatedCell:
    """One evaluated run of a study, item by item.

    Attributes:
        model, preference, method, varied, seed: where it is in the grid; the base has no preference.
        prompts: by measure of prompts, a row a prompt: what is summed, and what the sum is divided by.
        questions: by measure of questions and column of the tables, the value of each question.
        settings: recipe keys that are varied anywhere in the study, and their values here.
        varied_keys: those that are varied here.
        floors: by measure, what rounding makes of a divergence at most, nats a token.
        judge: share of held-out pairs that the classifier of answers has right, percent.
        trained: whether it is a run, and no rival without training.
        kinds: of benchmarks, by name.
        rounding: by benchmark, what that alone moves the right choice's log-probability by, nats a question.
    """

    model: str
    preference: str
    method: str
    varied: str
    seed: int
    prompts: Mapping[str, Array]
    questions: Mapping[str, Mapping[str, Mapping[Question, float]]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    varied_keys: tuple[str, ...] = ()
    floors: Mapping[str, float] = field(default_factory=dict)
    judge: float | None = None
    trained: bool = True
    kinds: Mapping[str, BenchmarkKind] = field(default_factory=dict)
    rounding: Mapping[str, float] = field(default_factory=dict)

    @property
    def source(self) -> str:
        """Of its preference, such as ``dsp``, over whose preferences means are; those of files have none."""
        return source_of(self.preference)

    @property
    def row(self) -> tuple[str, str, str, str]:
        """The row of a table that it belongs to."""
        return (self.model, self.source, self.method, self.varied)

    @property
    def plain(self) -> bool:
        """Whether nothing is varied but the data."""
        return all(key.startswith(OF_DATA) for key in self.varied_keys)

    @property
    def columns(self) -> tuple[str, ...]:
        """Of the tables."""
        return tuple(self.questions.get(ACCURACY, {}))

    def columns_of(self, kind: BenchmarkKind) -> tuple[str, ...]:
        """Of the tables, those of benchmarks of one kind."""
        return tuple(name for name in self.columns if self.kinds.get(benchmark_of(name)) == kind)

    def minus(self, other: EvaluatedCell, measure: str, column: str) -> EvaluatedCell:
        """The cell with its questions' values less another's.

        Raises:
            BapoError: they were not asked the same questions.
        """
        ours, theirs = (cell.questions.get(measure, {}).get(column, {}) for cell in (self, other))
        if list(ours) != list(theirs):
            raise BapoError(f"Models were not asked the same questions of {column}: evaluate them again.")
        return replace(self, questions={measure: {column: {key: ours[key] - theirs[key] for key in ours}}})

    def minus_prompts(self, other: EvaluatedCell, measure: str) -> EvaluatedCell:
        """The cell with what a measure sums over each prompt less another's.

        Raises:
            BapoError: they were not evaluated on the same prompts.
        """
        ours, theirs = self.prompts[measure], other.prompts[measure]
        if ours.shape != theirs.shape or not np.array_equal(ours[:, 1], theirs[:, 1]):
            raise BapoError(f"Runs on {self.preference} were not evaluated on the same prompts: evaluate them again.")
        difference = np.stack([ours[:, 0] - theirs[:, 0], ours[:, 1]], axis=1)
        return replace(self, prompts={**self.prompts, measure: difference})

    def prompts_key(self, measure: str) -> tuple[Any, ...]:
        """The same for cells whose prompts are: the base responses of held-out ones have the same lengths then, and
        prompts of other topics are the study's."""
        if measure == OTHER_TOPICS:
            return (len(self.prompts[measure]),)
        known = self.prompts.get(DRIFT)
        mark = self.preference if known is None else known[:, 1].tobytes()
        return mark, len(self.prompts[measure])


def benchmark_of(column: str) -> str:
    """The benchmark that a column of the tables is, or is a category of."""
    return column.partition(": ")[0]


def source_of(preference: str) -> str:
    """Which source a preference is of, such as ``dsp``; "" of files."""
    name, colon, _ = preference.partition(":")
    return name if colon else ""


def evaluated_cell(
    record: Record[FinishedJob],
    *,
    model: str,
    preference: str,
    method: str,
    seed: int,
    varied: Mapping[str, Any],
    settings: Mapping[str, Any],
    trained: bool = True,
) -> EvaluatedCell:
    """What a finished evaluation found; `BY_CATEGORY` count by their categories, others whole.

    Args:
        record: of the evaluation.
        model, preference, method, seed: where it is in the grid.
        varied: recipe keys that are varied here.
        settings: those that are varied anywhere in the study, and their values here.
        trained: whether it is a run, and no rival without training.
    """
    rows = record.items()
    named = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in varied.items())
    moved = record.content.movement
    floors = {} if moved is None else {f"divergence, {topic}": of.floor for topic, of in moved.divergence.items()}
    return EvaluatedCell(
        model,
        preference,
        method,
        named,
        seed,
        _prompts(rows),
        _questions(rows),
        settings,
        tuple(varied),
        floors,
        None if record.content.judge is None else 100 * record.content.judge.value,
        trained,
        {name: asked.kind for name, asked in record.content.benchmarks.items()},
        {name: asked.rounding for name, asked in record.content.benchmarks.items() if asked.rounding is not None},
    )


def flipped_questions(
    cell: EvaluatedCell, before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Questions that only one of a model and its base has right, by number, with the probabilities of both.

    Args:
        cell: of the model, which says where it is in the grid.
        before, after: items of the records of the base and of the model.
    """
    was, now = (
        {(row["benchmark"], row["task"], row["document"]): row for row in map(_question, rows) if row is not None}
        for rows in (before, after)
    )
    where = {name: getattr(cell, name) for name in ("model", "preference", "method", "varied", "seed")}
    return [
        {
            **where,
            "benchmark": key[0],
            "task": key[1],
            "document": key[2],
            "outcome": "gained" if row["score"] > was[key]["score"] else "lost",
            "right": row["right"],
            "before": list(was[key]["probabilities"]),
            "after": list(row["probabilities"]),
        }
        for key, row in now.items()
        if key in was and row["score"] != was[key]["score"]
    ]


def _question(row: Mapping[str, Any]) -> Mapping[str, Any] | None:
    question: Mapping[str, Any] | None = row.get("question")
    return question


def _questions(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[Question, float]]]:
    asked: dict[str, dict[Question, Mapping[str, Any]]] = {}
    for row in (row for row in map(_question, rows) if row is not None):
        name, category = row["benchmark"], row["category"]
        column = f"{name}: {category}" if name in BY_CATEGORY and category else name
        asked.setdefault(column, {})[row["task"], row["document"], row["right"], len(row["logps"])] = row
    choices: dict[str, list[Choices]] = {
        column: [(row["logps"], row["right"]) for row in part.values()] for column, part in asked.items()
    }
    values: dict[str, dict[str, list[float]]] = {
        ACCURACY: {column: [float(row["score"]) for row in part.values()] for column, part in asked.items()},
        RIGHT_CHOICE: {column: [right_choice_logp(each) for each in part] for column, part in choices.items()},
        TEMPERED: {},
    }
    for benchmark in dict.fromkeys(map(benchmark_of, choices)):  # one temperature for all its categories
        columns = [column for column in choices if benchmark_of(column) == benchmark]
        tempered = iter(tempered_logps([each for column in columns for each in choices[column]]))
        values[TEMPERED] |= {column: list(islice(tempered, len(choices[column]))) for column in columns}
    return {
        measure: {column: dict(zip(asked[column], part, strict=True)) for column, part in by_column.items()}
        for measure, by_column in values.items()
    }


def _prompts(rows: Sequence[Mapping[str, Any]]) -> dict[str, Array]:
    scores = from_rows([row["prompt"] for row in rows if row.get("prompt") is not None])
    moved = [row["moved"] for row in rows if row.get("moved") is not None]
    answers = [row["answer"] for row in rows if row.get("answer") is not None]
    ratios: dict[str, list[tuple[float, float]]] = {
        REWARD_ACCURACY: [right_of(prompt) for prompt in scores],
        DRIFT: [(prompt.drift, float(prompt.base_tokens)) for prompt in scores],
        **{name: [(scale * answer[field], 1.0) for answer in answers] for name, (field, scale) in SPOKEN.items()},
    }
    for topic in ("held-out", "other"):
        ratios[f"divergence, {topic}"] = [
            (row["divergence"], float(row["tokens"])) for row in moved if row["topic"] == topic
        ]
    return {measure: np.array(ratios[measure]) for measure in PROMPT_MEASURES if ratios[measure]}


def right_of(prompt: PromptScores) -> tuple[float, float]:
    """How many of a prompt's pairs are right, times 100, and how many there are; a tie counts a half."""
    won = sum(1.0 if c > r else 0.5 if c == r else 0.0 for c, r in prompt.pairs)
    return 100 * won, float(len(prompt.pairs))
