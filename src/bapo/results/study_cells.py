"""What the runs of a study found, item by item, and resamples of it: preferences, seeds within them, and items.

Means are over preferences, of the mean over their seeds. Intervals resample what the means are over: preferences,
seeds within a preference, and questions (the same ones for all models) or held-out prompts (of each preference its
own). With few preferences they are wide: that is what few preferences say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bapo.errors import BapoError
from bapo.results.estimates import Estimate
from bapo.results.preferences import PromptScores, from_rows
from bapo.results.records import Record
from bapo.results.right_choice import Choices, right_choice_logp, tempered_logps
from bapo.results.study import FinishedJob

Array = NDArray[np.float64]

RESAMPLES, LEVEL = 2000, 0.05

ACCURACY, RIGHT_CHOICE, TEMPERED = "accuracy", "right choice", "right choice, tempered"
QUESTION_MEASURES = {ACCURACY: "points", RIGHT_CHOICE: "nats", TEMPERED: "nats"}
"""What is known of each question, and the unit of its changes."""

FORGETTING = RIGHT_CHOICE
"""The measure by which forgetting is judged, fixed from controls (docs/measures.md); the others stand beside it."""

REWARD_ACCURACY, DRIFT = "reward accuracy", "drift"
PROMPT_MEASURES = {
    REWARD_ACCURACY: "%",
    DRIFT: "nats a token",
    "divergence, held-out": "nats a token",
    "divergence, other": "nats a token",
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

SHARES = (REWARD_ACCURACY, "chosen-like answers", "repeated runs of words")

Question = tuple[str, int]


@dataclass(frozen=True)
class EvaluatedCell:
    """One evaluated run of a study, item by item.

    Attributes:
        model, preference, method, varied, seed: where it is in the grid; the base has no preference.
        prompts: by measure of prompts, a row a prompt: what is summed, and what the sum is divided by.
        questions: by measure of questions and column of the tables, the value of each question.
        settings: recipe keys that are varied anywhere in the study, and their values here.
        varied_keys: those that are varied here.
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

    @property
    def row(self) -> tuple[str, str, str]:
        """The row of a table that it belongs to."""
        return (self.model, self.method, self.varied)

    @property
    def columns(self) -> tuple[str, ...]:
        """Of the tables."""
        return tuple(self.questions.get(ACCURACY, {}))

    def minus(self, other: EvaluatedCell, measure: str, column: str) -> EvaluatedCell:
        """The cell with its questions' values less another's.

        Raises:
            BapoError: they were not asked the same questions.
        """
        ours, theirs = (cell.questions.get(measure, {}).get(column, {}) for cell in (self, other))
        if list(ours) != list(theirs):
            raise BapoError(f"Models were not asked the same questions of {column}: evaluate them again.")
        return replace(self, questions={measure: {column: {key: ours[key] - theirs[key] for key in ours}}})


def evaluated_cell(
    record: Record[FinishedJob],
    *,
    model: str,
    preference: str,
    method: str,
    seed: int,
    varied: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> EvaluatedCell:
    """What a finished evaluation found; MMLU counts by its categories, as in the paper, others whole.

    Args:
        record: of the evaluation.
        model, preference, method, seed: where it is in the grid.
        varied: recipe keys that are varied here.
        settings: those that are varied anywhere in the study, and their values here.
    """
    rows = record.items()
    named = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in varied.items())
    return EvaluatedCell(
        model, preference, method, named, seed, _prompts(rows), _questions(rows), settings, tuple(varied)
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
        column = row["benchmark"] if row["benchmark"] != "mmlu" else f"mmlu: {row['category']}"
        asked.setdefault(column, {})[row["task"], row["document"]] = row
    choices: dict[str, list[Choices]] = {
        column: [(row["logps"], row["right"]) for row in part.values()] for column, part in asked.items()
    }
    values: dict[str, dict[str, list[float]]] = {
        ACCURACY: {column: [float(row["score"]) for row in part.values()] for column, part in asked.items()},
        RIGHT_CHOICE: {column: [right_choice_logp(each) for each in part] for column, part in choices.items()},
        TEMPERED: {column: tempered_logps(part) for column, part in choices.items()},
    }
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


class Draws:
    """Resamples of preferences and of seeds within them, the same for all that is computed of some cells.

    Args:
        cells: of one row.
        seed: of the resampling.
    """

    def __init__(self, cells: Sequence[EvaluatedCell], seed: int = 0) -> None:
        self.generator = np.random.default_rng(seed)
        ordered = sorted(cells, key=lambda cell: (cell.preference, cell.seed))
        self.cells = [list(group) for _, group in groupby(ordered, key=lambda cell: cell.preference)]
        count = len(self.cells)
        picked = self.generator.multinomial(count, np.full(count, 1 / count), RESAMPLES)
        seeds = [
            self.generator.multinomial(times * len(runs), np.full(len(runs), 1 / len(runs))) / len(runs)
            for times, runs in zip(picked.T, self.cells, strict=True)
        ]
        self.weights = np.concatenate(seeds, axis=1) / count
        self.flat = [cell for runs in self.cells for cell in runs]

    def of_questions(self, measure: str, column: str, least: float = 0.0) -> tuple[list[list[float]], Array]:
        """Mean value by preference and seed; and the resampled mean over preferences, questions resampled together.

        As in `bootstrap_share`, half a question of the least score and half a one of the most are resampled with those
        of an accuracy.

        Raises:
            BapoError: the cells were not asked the same questions.
        """
        asked = [cell.questions[measure][column] for cell in self.flat]
        questions = list(asked[0])
        if any(list(values) != questions for values in asked):
            raise BapoError(f"Models were not asked the same questions of {column}: evaluate them again.")
        scores = np.array([[values[question] for question in questions] for values in asked])
        number, is_share = len(questions), measure == ACCURACY
        counts = _counts(np.random.default_rng(number), number, pseudo=is_share)
        ends = np.broadcast_to([least, 1.0] if is_share else [], (len(scores), 2 if is_share else 0))
        by_cell = counts @ np.concatenate([scores, ends], axis=1).T / number  # (resamples, cells)
        means = iter(scores.mean(axis=1))
        return [[float(next(means)) for _ in runs] for runs in self.cells], (self.weights * by_cell).sum(axis=1)

    def of_prompts(self, measure: str) -> tuple[list[list[float]], Array]:
        """The same of a measure of held-out prompts, which are resampled for each preference."""
        by_cell, means = [], []
        is_share = measure in SHARES
        for runs in self.cells:
            counts = _counts(self.generator, len(runs[0].prompts[measure]), pseudo=is_share)
            row = []
            for cell in runs:
                above, below = cell.prompts[measure].T
                row.append(float(above.sum() / below.sum()))
                if is_share:
                    above = np.concatenate([above, np.multiply((0.0, 100.0), below.mean())])
                    below = np.concatenate([below, [below.mean()] * 2])
                by_cell.append(counts @ above / np.maximum(counts @ below, 1e-12))
            means.append(row)
        return means, (self.weights * np.stack(by_cell, axis=1)).sum(axis=1)


def _counts(generator: np.random.Generator, number: int, *, pseudo: bool) -> Array:
    """How often each of so many units is in a resample, and behind them half a unit of each end."""
    weights = np.concatenate([np.ones(number), [0.5, 0.5] if pseudo else []])
    return generator.multinomial(number, weights / weights.sum(), RESAMPLES).astype(np.float64)


def scale_of(measure: str) -> float:
    """By which values of questions are multiplied to be shown."""
    return 100.0 if measure == ACCURACY else 1.0


def mean_of(means: Sequence[Sequence[float]]) -> float:
    """Mean over preferences of means over seeds."""
    return float(np.mean([np.mean(row) for row in means]))


def estimate_of(value: float, draws: Array) -> Estimate:
    """A value with the interval of its draws."""
    low, high = np.quantile(draws, (LEVEL / 2, 1 - LEVEL / 2))
    return Estimate(value, float(low), float(high))


def change_between(
    pairs: Sequence[tuple[EvaluatedCell, EvaluatedCell]], measure: str, seed: int = 0
) -> tuple[float, Array]:
    """Mean over columns of how much the first cells' questions exceed the second ones', and its draws."""
    kept = [
        Draws([a.minus(b, measure, column) for a, b in pairs], seed).of_questions(measure, column, -1.0)
        for column in pairs[0][0].columns
    ]
    scale = scale_of(measure)
    value = scale * float(np.mean([mean_of(means) for means, _ in kept]))
    return value, scale * np.mean([draws for _, draws in kept], axis=0)


Pairing = Callable[[EvaluatedCell], Any]


def paired(
    ours: Sequence[EvaluatedCell],
    theirs: Sequence[EvaluatedCell],
    by: Pairing = lambda cell: (cell.preference, cell.seed),
) -> list[tuple[EvaluatedCell, EvaluatedCell]]:
    """Runs that belong together, by default those on the same preference with the same seed."""
    others = {by(cell): cell for cell in theirs}
    return [(cell, others[by(cell)]) for cell in ours if by(cell) in others]
