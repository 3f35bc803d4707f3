"""A study's tables and verdicts, from the records of its jobs alone: computed once, stored, and only read elsewhere.

Means are over preferences, of the mean over their seeds. Intervals resample what the means are over: preferences,
seeds within a preference, and questions (the same ones for all models) or held-out prompts (of each preference its
own). With few preferences they are wide: that is what few preferences say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bapo.errors import BapoError
from bapo.results.changes import BUDGET
from bapo.results.estimates import Estimate
from bapo.results.preferences import PromptScores, from_rows
from bapo.results.records import Kind, Record
from bapo.results.study import FinishedJob

Array = NDArray[np.float64]

RESAMPLES, LEVEL = 2000, 0.05
DRIFT_HELD = -0.01
"""Nats a token that base responses may lose and still count as held: 1 % of their probability."""

Holds = Literal["holds", "does not hold", "cannot tell"]


@dataclass(frozen=True)
class EvaluatedCell:
    """One evaluated run of a study, item by item.

    Attributes:
        model, preference, method, varied, seed: where it is in the grid; the base has no preference.
        prompts: scores of held-out prompts.
        questions: by column of the tables, the score of each question by its task and number.
    """

    model: str
    preference: str
    method: str
    varied: str
    seed: int
    prompts: tuple[PromptScores, ...]
    questions: Mapping[str, Mapping[tuple[str, int], float]]

    @property
    def row(self) -> tuple[str, str, str]:
        """The row of a table that it belongs to."""
        return (self.model, self.method, self.varied)


@dataclass(frozen=True, slots=True)
class TableCell:
    """A mean over preferences.

    Attributes:
        mean: with its interval.
        deviation: standard deviation over preferences; None of fewer than two.
        change: against the base on the same questions, where there are such.
    """

    mean: Estimate
    deviation: float | None
    change: Estimate | None = None


@dataclass(frozen=True, slots=True)
class TableRow:
    """One method on one model.

    Attributes:
        model, method, varied: what it is.
        preferences, runs: how many the means are over.
        accuracy: by benchmark or category of one, percent.
        reward_accuracy, drift_per_token: on held-out prompts, percent and nats; None of the base.
    """

    model: str
    method: str
    varied: str
    preferences: int
    runs: int
    accuracy: Mapping[str, TableCell]
    reward_accuracy: TableCell | None
    drift_per_token: TableCell | None


@dataclass(frozen=True, slots=True)
class Claim:
    """One of the paper's claims, on one model.

    Attributes:
        name: C1 to C4.
        model: on which.
        says: in words.
        estimate: of what decides it, and ``threshold`` what it is compared with.
        p: of the verdict, corrected for all claims of the study (Holm); 1 where there is none.
        verdict: whether it holds.
    """

    name: str
    model: str
    says: str
    estimate: Estimate
    threshold: float
    p: float
    verdict: Holds


@dataclass(frozen=True, slots=True)
class StudyReport:
    """All that a report of a study shows.

    Attributes:
        rows: of the tables, the base of each model first.
        columns: benchmarks and categories, in order.
        claims: verdicts.
        jobs, done: how many there are, and how many are done.
    """

    rows: tuple[TableRow, ...]
    columns: tuple[str, ...]
    claims: tuple[Claim, ...]
    jobs: int
    done: int


STUDY_REPORT = Kind("a study's report", 1, StudyReport)


def evaluated_cell(
    record: Record[FinishedJob], model: str, preference: str, method: str, varied: str, seed: int
) -> EvaluatedCell:
    """What a finished evaluation found; MMLU counts by its categories, as in the paper, others whole."""
    rows = record.items()
    questions: dict[str, dict[tuple[str, int], float]] = {}
    for row in (row["question"] for row in rows if row["question"] is not None):
        column = row["benchmark"] if row["benchmark"] != "mmlu" else f"mmlu: {row['category']}"
        questions.setdefault(column, {})[row["task"], row["document"]] = float(row["score"])
    prompts = from_rows([row["prompt"] for row in rows if row["prompt"] is not None])
    return EvaluatedCell(model, preference, method, varied, seed, prompts, questions)


def study_report(
    bases: Mapping[str, EvaluatedCell], cells: Sequence[EvaluatedCell], *, jobs: int, done: int, seed: int = 0
) -> StudyReport:
    """Tables and verdicts.

    Args:
        bases: by model, the model without training, where benchmarks were asked.
        cells: evaluated runs, and rivals without training.
        jobs, done: of the study.
        seed: of the resampling.

    Raises:
        BapoError: models were not asked the same questions.
    """
    columns = tuple(dict.fromkeys(name for cell in (*bases.values(), *cells) for name in cell.questions))
    rows = [_row([base], base, columns, seed) for base in bases.values()]
    by_row = {
        key: list(group) for key, group in groupby(sorted(cells, key=lambda cell: cell.row), lambda cell: cell.row)
    }
    rows += [_row(by_row[key], bases.get(key[0]), columns, seed) for key in dict.fromkeys(cell.row for cell in cells)]
    claims = [claim for model in dict.fromkeys(cell.model for cell in cells) for claim in _claims(by_row, model, seed)]
    return StudyReport(tuple(rows), columns, _holm(claims), jobs, done)


# ---- means and their draws ------------------------------------------------------------------------------------------


class _Draws:
    """Resamples of preferences and of seeds within them, the same for all that is computed of some cells.

    Args:
        cells: of one row.
        seed: of the resampling.
    """

    def __init__(self, cells: Sequence[EvaluatedCell], seed: int) -> None:
        self.generator = np.random.default_rng(seed)
        ordered = sorted(cells, key=lambda cell: (cell.preference, cell.seed))
        self.cells = [list(group) for _, group in groupby(ordered, key=lambda cell: cell.preference)]
        count = len(self.cells)
        self.weights = np.zeros((RESAMPLES, len(ordered)))
        starts = np.cumsum([0, *map(len, self.cells)])
        for _ in range(count):
            picked = self.generator.integers(0, count, RESAMPLES)  # one of the count places of a resample
            for preference, runs in enumerate(self.cells):
                drawn = self.generator.integers(0, len(runs), (RESAMPLES, len(runs)))
                share = np.stack([(drawn == at).mean(axis=1) for at in range(len(runs))], axis=1)
                here = (picked == preference)[:, None] * share / count
                self.weights[:, starts[preference] : starts[preference + 1]] += here
        self.flat = [cell for runs in self.cells for cell in runs]

    def of_questions(self, column: str, least: float = 0.0) -> tuple[list[list[float]], Array]:
        """Mean score by preference and seed; and the resampled mean over preferences, questions resampled together.

        As in `bootstrap_share`, half a question of the least score and half a one of the most are resampled with them.
        """
        questions = list(self.flat[0].questions[column])
        if any(list(cell.questions[column]) != questions for cell in self.flat):
            raise BapoError(f"Models were not asked the same questions of {column}: evaluate them again.")
        scores = np.array([[cell.questions[column][question] for question in questions] for cell in self.flat])
        number = len(questions)
        counts = _counts(np.random.default_rng(number), number)
        pseudo = np.broadcast_to([least, 1.0], (len(scores), 2))
        by_cell = counts @ np.concatenate([scores, pseudo], axis=1).T / number  # (resamples, cells)
        means = iter(scores.mean(axis=1))
        return [[float(next(means)) for _ in runs] for runs in self.cells], (self.weights * by_cell).sum(axis=1)

    def of_prompts(
        self, of: Callable[[PromptScores], tuple[float, float]], ends: tuple[float, float] | None = None
    ) -> tuple[list[list[float]], Array]:
        """The same of a ratio of sums over held-out prompts, which are resampled for each preference.

        ``ends`` are the least and the most that the ratio of a prompt can be, of a share.
        """
        by_cell, means = [], []
        for runs in self.cells:
            prompts = len(runs[0].prompts)
            counts = _counts(self.generator, prompts, pseudo=ends is not None)
            row = []
            for cell in runs:
                above, below = np.array([of(prompt) for prompt in cell.prompts]).T
                row.append(float(above.sum() / below.sum()))
                if ends is not None:
                    above = np.concatenate([above, np.multiply(ends, below.mean())])
                    below = np.concatenate([below, [below.mean()] * 2])
                by_cell.append(counts @ above / np.maximum(counts @ below, 1e-12))
            means.append(row)
        return means, (self.weights * np.stack(by_cell, axis=1)).sum(axis=1)


def _counts(generator: np.random.Generator, number: int, *, pseudo: bool = True) -> Array:
    """How often each of so many units is in a resample, and behind them half a unit of each end."""
    weights = np.concatenate([np.ones(number), [0.5, 0.5] if pseudo else []])
    return generator.multinomial(number, weights / weights.sum(), RESAMPLES).astype(np.float64)


_SHARE = (0.0, 100.0)


def _right(prompt: PromptScores) -> tuple[float, float]:
    won = sum(1.0 if c > r else 0.5 if c == r else 0.0 for c, r in prompt.pairs)
    return 100 * won, float(len(prompt.pairs))


def _drift(prompt: PromptScores) -> tuple[float, float]:
    return prompt.drift, float(prompt.base_tokens)


def _table_cell(means: Sequence[Sequence[float]], draws: Array, scale: float = 1.0) -> TableCell:
    by_preference = [scale * float(np.mean(row)) for row in means]
    deviation = float(np.std(by_preference, ddof=1)) if len(by_preference) > 1 else None
    return TableCell(_estimate(float(np.mean(by_preference)), scale * draws), deviation)


def _estimate(value: float, draws: Array) -> Estimate:
    low, high = np.quantile(draws, (LEVEL / 2, 1 - LEVEL / 2))
    return Estimate(value, float(low), float(high))


def _row(cells: Sequence[EvaluatedCell], base: EvaluatedCell | None, columns: Sequence[str], seed: int) -> TableRow:
    draws = _Draws(cells, seed)
    accuracy = {}
    for column in columns:
        if any(column not in cell.questions for cell in cells):
            continue
        means_and_draws = draws.of_questions(column)
        change = None
        if base is not None and cells[0] is not base:
            changed = _Draws([_minus(cell, base, column) for cell in cells], seed).of_questions(column, -1.0)
            change = _table_cell(*changed, scale=100).mean
        accuracy[column] = replace(_table_cell(*means_and_draws, scale=100), change=change)
    asked = all(cell.prompts for cell in cells)
    model, method, varied = cells[0].row
    return TableRow(
        model,
        method,
        varied,
        preferences=len(draws.cells),
        runs=len(draws.flat),
        accuracy=accuracy,
        reward_accuracy=_table_cell(*draws.of_prompts(_right, _SHARE)) if asked else None,
        drift_per_token=_table_cell(*draws.of_prompts(_drift)) if asked else None,
    )


def _minus(cell: EvaluatedCell, other: EvaluatedCell, column: str) -> EvaluatedCell:
    """The cell with its scores less another's, question by question."""
    scores, others = cell.questions[column], other.questions.get(column, {})
    if list(scores) != list(others):
        raise BapoError(f"Models were not asked the same questions of {column}: evaluate them again.")
    return replace(cell, questions={column: {question: scores[question] - others[question] for question in scores}})


# ---- the paper's claims ---------------------------------------------------------------------------------------------


def _claims(
    by_row: Mapping[tuple[str, str, str], list[EvaluatedCell]], model: str, seed: int
) -> list[tuple[Claim, Array]]:
    """C1 to C4 of one model, each with the draws that decide it."""
    bapo, dpo = by_row.get((model, "bapo", "")), by_row.get((model, "dpo", ""))
    if bapo is None:
        return []
    claims: list[tuple[Claim, Array]] = []

    def add(name: str, says: str, value: float, draws: Array, threshold: float) -> None:
        claims.append((Claim(name, model, says, _estimate(value, draws), threshold, 1.0, "cannot tell"), draws))

    means, draws = _Draws(bapo, seed).of_prompts(_drift)
    says = f"BAPO holds base responses: their drift is above {DRIFT_HELD:g} nats a token"
    add("C1", says, float(np.mean([np.mean(row) for row in means])), draws, DRIFT_HELD)
    pairs = _paired(bapo, dpo or [])
    if not pairs:
        return claims
    ours, theirs = _Draws([a for a, _ in pairs], seed), _Draws([b for _, b in pairs], seed)
    (right, draws), (their_right, their_draws) = ours.of_prompts(_right, _SHARE), theirs.of_prompts(_right, _SHARE)
    says = f"BAPO's reward accuracy is at least DPO's, less {BUDGET:g} points at most"
    add("C2", says, _mean(right) - _mean(their_right), draws - their_draws, -BUDGET)
    columns = list(pairs[0][0].questions)
    if not columns:
        return claims
    kept = [_Draws([_minus(a, b, column) for a, b in pairs], seed).of_questions(column, -1.0) for column in columns]
    value = 100 * float(np.mean([_mean(means) for means, _ in kept]))
    says = "BAPO keeps knowledge and alignment better than DPO: mean over benchmarks, points"
    add("C3", says, value, 100 * np.mean([draws for _, draws in kept], axis=0), 0.0)
    if len(ours.cells) > 2:
        add(
            "C4",
            "BAPO's accuracies differ less between preferences than DPO's: log ratio of deviations",
            *_spread(ours, theirs, columns),
            0.0,
        )
    return claims


def _mean(means: Sequence[Sequence[float]]) -> float:
    return float(np.mean([np.mean(row) for row in means]))


def _paired(
    ours: Sequence[EvaluatedCell], theirs: Sequence[EvaluatedCell]
) -> list[tuple[EvaluatedCell, EvaluatedCell]]:
    """Runs of two methods on the same preference with the same seed."""
    others = {(cell.preference, cell.seed): cell for cell in theirs}
    return [(cell, others[cell.preference, cell.seed]) for cell in ours if (cell.preference, cell.seed) in others]


def _spread(ours: _Draws, theirs: _Draws, columns: Sequence[str]) -> tuple[float, Array]:
    """Log of DPO's standard deviation over preferences over BAPO's, mean over benchmarks; preferences are resampled."""

    def table(draws: _Draws) -> Array:
        return np.array([[np.mean(row) for row in draws.of_questions(column)[0]] for column in columns])

    def log_ratio(mine: Array, other: Array) -> float:
        least = 1e-3  # a tenth of a point
        return float(np.mean(np.log(np.maximum(other.std(axis=1), least) / np.maximum(mine.std(axis=1), least))))

    our_means, their_means = table(ours), table(theirs)
    generator = np.random.default_rng(0)
    picks = generator.integers(0, our_means.shape[1], (RESAMPLES, our_means.shape[1]))
    return log_ratio(our_means, their_means), np.array(
        [log_ratio(our_means[:, pick], their_means[:, pick]) for pick in picks]
    )


def _holm(claims: Sequence[tuple[Claim, Array]]) -> tuple[Claim, ...]:
    """Verdicts: a claim holds, or not, if so few draws say otherwise that it stays so after Holm's correction."""
    sides = []
    for claim, draws in claims:
        below = (1 + float(np.sum(draws <= claim.threshold))) / (1 + len(draws))
        above = (1 + float(np.sum(draws >= claim.threshold))) / (1 + len(draws))
        sides.append((min(1.0, 2 * min(below, above)), "holds" if below < above else "does not hold"))
    order = sorted(range(len(sides)), key=lambda at: sides[at][0])
    corrected, most = [1.0] * len(sides), 0.0
    for rank, at in enumerate(order):
        most = max(most, min(1.0, (len(sides) - rank) * sides[at][0]))
        corrected[at] = most
    verdicts: list[Any] = [side if p < LEVEL else "cannot tell" for (_, side), p in zip(sides, corrected, strict=True)]
    return tuple(
        replace(claim, p=p, verdict=verdict) for (claim, _), p, verdict in zip(claims, corrected, verdicts, strict=True)
    )
