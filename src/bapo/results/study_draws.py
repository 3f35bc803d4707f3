"""Draws of what another study like it would find.

Means are over preferences, of the mean over their seeds. Runs differ by preference and by seed; what that makes of a
mean of few is Student's t, with one degree of freedom less than there are preferences (of one preference, seeds), so
with few preferences intervals are wide. Questions are resampled for all models together, and held-out prompts for all
preferences that have the same ones. Of one run alone nothing is known but its items.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from bapo.errors import BapoError
from bapo.results.estimates import Estimate
from bapo.results.study_cells import ACCURACY, SHARES, Array, EvaluatedCell, benchmark_of

RESAMPLES, LEVEL = 2000, 0.05


def deviations(generator: np.random.Generator, count: int) -> Array:
    """How much more or less than its share each of so many independent values weighs in a draw of their mean.

    Draws of a mean are then distributed as Student's t says of it: the mean, and s / sqrt(n) times a t with n - 1
    degrees of freedom. Of one value nothing is known.

    Args:
        generator: of the draws.
        count: of values.

    Returns:
        One row a draw, one column a value.
    """
    if count == 1:
        return np.zeros((RESAMPLES, 1))
    normal = generator.standard_normal((RESAMPLES, count))
    scale = np.sqrt(count / generator.chisquare(count - 1, RESAMPLES))
    deviation: Array = scale[:, None] * (normal - normal.mean(axis=1, keepdims=True))
    return deviation


def units_of(cells: Sequence[EvaluatedCell]) -> int:
    """Independent runs of what some cells are: their preferences, or the seeds of one."""
    preferences = {cell.preference for cell in cells}
    return len(preferences) if len(preferences) > 1 else len({cell.seed for cell in cells})


class Draws:
    """Draws of what another study like it would find, the same for all that is computed of some cells.

    Args:
        cells: of one row.
        seed: of the draws.
    """

    def __init__(self, cells: Sequence[EvaluatedCell], seed: int = 0) -> None:
        self.generator = np.random.default_rng(seed)
        ordered = sorted(cells, key=lambda cell: (cell.preference, cell.seed))
        self.cells = [list(group) for _, group in groupby(ordered, key=lambda cell: cell.preference)]
        count = len(self.cells)
        self.shares = np.concatenate([np.full(len(runs), 1 / len(runs) / count) for runs in self.cells])
        unit = np.repeat(np.arange(count), [len(runs) for runs in self.cells])
        if count == 1:
            count, unit = len(self.cells[0]), np.arange(len(self.cells[0]))
        self.deviations = self.shares * deviations(self.generator, count)[:, unit]
        self.flat = [cell for runs in self.cells for cell in runs]

    def mean(self, values: Array, resampled: Array) -> Array:
        """Draws of a mean: of its items, which are resampled, and of its runs.

        Args:
            values: of each run.
            resampled: a row a resample of items, a column a run.
        """
        drawn: Array = resampled @ self.shares + self.deviations @ values
        return drawn

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
        counts = _counts(np.random.default_rng([number, *column.encode()]), number, pseudo=is_share)
        ends = np.broadcast_to([least, 1.0] if is_share else [], (len(scores), 2 if is_share else 0))
        by_cell = counts @ np.concatenate([scores, ends], axis=1).T / number  # (resamples, cells)
        means = iter(scores.mean(axis=1))
        drawn = self.mean(scores.mean(axis=1), by_cell)
        return [[float(next(means)) for _ in runs] for runs in self.cells], drawn

    def of_prompts(self, measure: str, least: float = 0.0) -> tuple[list[list[float]], Array]:
        """The same of a measure of held-out prompts; ``least`` and 100 are the ends of a share, in percent."""
        by_cell, means = [], []
        is_share = measure in SHARES
        resampled: dict[tuple[Any, ...], Array] = {}
        for runs in self.cells:
            key = runs[0].prompts_key(measure)
            if key not in resampled:
                resampled[key] = _counts(self.generator, len(runs[0].prompts[measure]), pseudo=is_share)
            counts, row = resampled[key], []
            for cell in runs:
                above, below = cell.prompts[measure].T
                row.append(float(above.sum() / below.sum()))
                if is_share:
                    above = np.concatenate([above, np.multiply((least, 100.0), below.mean())])
                    below = np.concatenate([below, [below.mean()] * 2])
                by_cell.append(counts @ above / np.maximum(counts @ below, 1e-12))
            means.append(row)
        return means, self.mean(np.concatenate(means), np.stack(by_cell, axis=1))


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
    pairs: Sequence[tuple[EvaluatedCell, EvaluatedCell]],
    measure: str,
    seed: int = 0,
    columns: Sequence[str] | None = None,
) -> tuple[float, Array]:
    """Mean over benchmarks of how much the first cells' questions exceed the second ones', and its draws.

    Args:
        pairs: of cells.
        measure: of questions.
        seed: of the draws.
        columns: of the tables; all by default.
    """
    columns = pairs[0][0].columns if columns is None else columns
    kept = [
        Draws([a.minus(b, measure, column) for a, b in pairs], seed).of_questions(measure, column, -1.0)
        for column in columns
    ]
    scale, weights = scale_of(measure), weights_of(columns)
    value = scale * float(weights @ [mean_of(means) for means, _ in kept])
    return value, scale * (weights @ np.stack([draws for _, draws in kept]))


def weights_of(columns: Sequence[str]) -> Array:
    """By which columns count in a mean over benchmarks: each benchmark once, its categories equally."""
    benchmarks = [benchmark_of(column) for column in columns]
    return np.array([1 / benchmarks.count(name) / len(set(benchmarks)) for name in benchmarks])


Pairing = Callable[[EvaluatedCell], Any]


def paired(
    ours: Sequence[EvaluatedCell],
    theirs: Sequence[EvaluatedCell],
    by: Pairing = lambda cell: (cell.preference, cell.seed),
) -> list[tuple[EvaluatedCell, EvaluatedCell]]:
    """Runs that belong together, by default those on the same preference with the same seed."""
    others = {by(cell): cell for cell in theirs}
    return [(cell, others[by(cell)]) for cell in ours if by(cell) in others]
