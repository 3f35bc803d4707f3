"""A study's tables and verdicts, from the records of its jobs alone: computed once, stored, and only read elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np

from bapo.results.behaviour import Behaviour
from bapo.results.estimates import Estimate
from bapo.results.records import Kind
from bapo.results.right_choice import floor_of_change
from bapo.results.study_cells import (
    ACCURACY,
    CHOSEN_LIKE,
    FORGETTING,
    PROMPT_MEASURES,
    QUESTION_MEASURES,
    RIGHT_CHOICE,
    SHARES,
    SPOKEN,
    TEMPERED,
    Array,
    EvaluatedCell,
    benchmark_of,
    source_of,
)
from bapo.results.study_claims import RANK, STRENGTH, Claim, by_kind, by_setting, judge_claims
from bapo.results.study_draws import LEVEL, Draws, change_between, estimate_of, mean_of, scale_of, weights_of


@dataclass(frozen=True, slots=True)
class TableCell:
    """A mean over preferences.

    Attributes:
        mean: with its interval.
        deviation: standard deviation over preferences; None of fewer than two.
        change: against the base on the same questions, where there are such.
        by_preference: the means that it is the mean of.
        floor: what rounding alone makes of it: of a divergence, nats a token; of a change of the right choice's
            log-probability, nats (`floor_of_change`).
        judge: of what a classifier says, the share of held-out pairs that it has right, percent.
    """

    mean: Estimate
    deviation: float | None
    change: Estimate | None = None
    by_preference: Mapping[str, float] | None = None
    floor: float | None = None
    judge: float | None = None


@dataclass(frozen=True, slots=True)
class TableRow:
    """One method on one model and the preferences of one source.

    Attributes:
        model, source, method, varied: what it is.
        plain: whether nothing is varied but the data.
        settings: recipe keys that are varied, and their values.
        preferences, runs: how many the means are over.
        accuracy: by benchmark or category of one, percent.
        logps: by measure of the right choice's log-probability, and benchmark: the change against the base, nats.
        overall: by measure of questions, the mean change against the base over all benchmarks; of that by which
            forgetting is judged also over those of each kind.
        prompts: by measure of prompts; none of the base.
        by_preference: of each preference the mean change over all benchmarks by which forgetting is judged.
    """

    model: str
    source: str
    method: str
    varied: str
    plain: bool
    settings: Mapping[str, float | str]
    preferences: int
    runs: int
    accuracy: Mapping[str, TableCell]
    logps: Mapping[str, Mapping[str, TableCell]]
    overall: Mapping[str, Estimate]
    prompts: Mapping[str, TableCell]
    by_preference: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class StudyReport:
    """All that a report of a study shows.

    Attributes:
        rows: of the tables, the base of each model and source first.
        columns: benchmarks and categories, in order.
        claims: verdicts.
        jobs, done: how many there are, and how many are done.
        common: where methods were run on different preferences or seeds, a row of each over what all of them have.
        along: by a setting that methods were run with at several values, rows of each method and value, over those
            preferences and seeds that the method has at all of them.
    """

    rows: tuple[TableRow, ...]
    columns: tuple[str, ...]
    claims: tuple[Claim, ...]
    jobs: int
    done: int
    common: tuple[TableRow, ...]
    along: Mapping[str, tuple[TableRow, ...]]


STUDY_REPORT = Kind("a study's report", 8, StudyReport)
"""Its version counts up also where the same records make other numbers."""


def study_report(
    bases: Mapping[str, EvaluatedCell],
    cells: Sequence[EvaluatedCell],
    *,
    jobs: int,
    done: int,
    spoken: Mapping[str, Mapping[str, Behaviour]] | None = None,
) -> StudyReport:
    """Tables and verdicts.

    Args:
        bases: by model, the model without training, where benchmarks were asked.
        cells: evaluated runs, and rivals without training.
        jobs, done: of the study.
        spoken: by model and preference, what the untrained model's own answers are like.

    Raises:
        BapoError: models were not asked the same questions.
    """
    columns = tuple(dict.fromkeys(name for cell in (*bases.values(), *cells) for name in cell.columns))
    by_row = {
        key: list(group) for key, group in groupby(sorted(cells, key=lambda cell: cell.row), lambda cell: cell.row)
    }
    rows = [
        replace(_row([base], None, columns), source=source, prompts=_spoken(said), preferences=max(1, len(said)))
        for model, base in bases.items()
        for source in dict.fromkeys(cell.source for cell in cells if cell.model == model) or [""]
        for said in [{of: each for of, each in (spoken or {}).get(model, {}).items() if source_of(of) == source}]
    ]
    rows += [_row(by_row[key], bases.get(key[0]), columns) for key in dict.fromkeys(cell.row for cell in cells)]
    along = {key: tuple(_along(cells, key, bases, columns)) for key in (STRENGTH, RANK)}
    common = tuple(_common(cells, bases, columns))
    return StudyReport(tuple(rows), columns, judge_claims(cells), jobs, done, common, along)


def _common(
    cells: Sequence[EvaluatedCell], bases: Mapping[str, EvaluatedCell], columns: Sequence[str]
) -> Iterator[TableRow]:
    """Rivals without training, which have no seeds, are left out."""
    trained = [cell for cell in cells if cell.trained and not cell.varied]
    for place in dict.fromkeys((cell.model, cell.source) for cell in trained):
        runs: dict[str, dict[tuple[str, int], EvaluatedCell]] = {}
        for cell in (cell for cell in trained if (cell.model, cell.source) == place):
            runs.setdefault(cell.method, {})[cell.preference, cell.seed] = cell
        shared = set.intersection(*(set(of) for of in runs.values()))
        if shared and any(set(of) != shared for of in runs.values()):
            yield from (
                _row([of[where] for where in sorted(shared)], bases.get(place[0]), columns) for of in runs.values()
            )


def _along(
    cells: Sequence[EvaluatedCell], key: str, bases: Mapping[str, EvaluatedCell], columns: Sequence[str]
) -> Iterator[TableRow]:
    for place in dict.fromkeys((cell.model, cell.source, cell.method) for cell in cells):
        model, *_ = place
        by_value = by_setting([cell for cell in cells if (cell.model, cell.source, cell.method) == place], key)
        runs = [{(cell.preference, cell.seed): cell for cell in of} for _, of in sorted(by_value.items())]
        common = [where for where in runs[0] if all(where in of for of in runs)] if len(runs) > 1 else []
        yield from (_row([of[where] for where in common], bases.get(model), columns) for of in runs if common)


def _row(cells: Sequence[EvaluatedCell], base: EvaluatedCell | None, columns: Sequence[str]) -> TableRow:
    draws = Draws(cells)
    asked = [column for column in columns if all(column in cell.columns for cell in cells)]
    accuracy = {
        column: _as_share(_table_cell(draws, *draws.of_questions(ACCURACY, column), scale=100)) for column in asked
    }
    logps: dict[str, dict[str, TableCell]] = {}
    overall: dict[str, Estimate] = {}
    if base is not None and asked:
        for column in asked:
            change = _change(cells, base, ACCURACY, column)
            accuracy[column] = replace(accuracy[column], change=change.mean)
        for measure in (RIGHT_CHOICE, TEMPERED):
            logps[measure] = {column: _change(cells, base, measure, column) for column in asked}
        pairs = [(cell, base) for cell in cells]
        overall = {measure: estimate_of(*change_between(pairs, measure)) for measure in QUESTION_MEASURES}
        for kind, of_kind in by_kind(cells[0]).items():
            overall[f"{FORGETTING}, {kind}"] = estimate_of(*change_between(pairs, FORGETTING, columns=of_kind))
    judged = [cell.by_preference or {} for cell in logps.get(FORGETTING, {}).values()]
    names = judged[0] if judged else ()
    model, source, method, varied = cells[0].row
    return TableRow(
        model,
        source,
        method,
        varied,
        all(cell.plain for cell in cells),
        settings={key: value for key, value in cells[0].settings.items() if isinstance(value, int | float | str)},
        preferences=len(draws.cells),
        runs=len(draws.flat),
        accuracy=accuracy,
        logps=logps,
        overall=overall,
        prompts={
            measure: _prompt_cell(cells, draws, measure)
            for measure in PROMPT_MEASURES
            if all(measure in cell.prompts for cell in cells)
        },
        by_preference={name: float(weights_of(asked) @ [of_column[name] for of_column in judged]) for name in names},
    )


def _spoken(of_preferences: Mapping[str, Behaviour]) -> dict[str, TableCell]:
    """What the base's answers are like: between preferences as Student's t says, and within them as if all had the same
    prompts, so that their intervals are no narrower for being several."""
    from scipy.stats import t

    if not of_preferences:
        return {}
    cells, count = {}, len(of_preferences)
    for measure, (name, scale) in SPOKEN.items():
        parts = {preference: getattr(of, name) for preference, of in of_preferences.items()}
        values = {preference: scale * part.value for preference, part in parts.items()}
        mean = float(np.mean(list(values.values())))
        within = scale * float(np.mean([(part.high - part.low) / 2 for part in parts.values()]))
        deviation = float(np.std(list(values.values()), ddof=1)) if count > 1 else None
        between = 0.0 if deviation is None else float(t.ppf(1 - LEVEL / 2, count - 1)) * deviation / count**0.5
        half = (within**2 + between**2) ** 0.5
        cells[measure] = TableCell(Estimate(mean, mean - half, mean + half), deviation, by_preference=values)
    return cells


def _prompt_cell(cells: Sequence[EvaluatedCell], draws: Draws, measure: str) -> TableCell:
    found = _table_cell(draws, *draws.of_prompts(measure))
    floor = max((cell.floors[measure] for cell in cells if measure in cell.floors), default=None)
    judges = [cell.judge for cell in cells if cell.judge is not None] if measure == CHOSEN_LIKE else []
    judge = float(np.mean(judges)) if judges else None
    return replace(_as_share(found) if measure in SHARES else found, floor=floor, judge=judge)


def _as_share(cell: TableCell) -> TableCell:
    """No share is below 0 or above 100 percent, whatever Student's t says."""
    mean = cell.mean
    return replace(cell, mean=Estimate(mean.value, max(0.0, mean.low), min(100.0, mean.high)))


def _change(cells: Sequence[EvaluatedCell], base: EvaluatedCell, measure: str, column: str) -> TableCell:
    draws = Draws([cell.minus(base, measure, column) for cell in cells])
    found = _table_cell(draws, *draws.of_questions(measure, column, -1.0), scale=scale_of(measure))
    if measure != RIGHT_CHOICE:
        return found
    rounding, questions = base.rounding.get(benchmark_of(column)), len(base.questions[measure][column])
    return replace(found, floor=floor_of_change(rounding, questions))


def _table_cell(draws: Draws, means: Sequence[Sequence[float]], resampled: Array, scale: float = 1.0) -> TableCell:
    by_preference = {
        runs[0].preference: scale * float(np.mean(row)) for runs, row in zip(draws.cells, means, strict=True)
    }
    deviation = float(np.std(list(by_preference.values()), ddof=1)) if len(by_preference) > 1 else None
    estimate = estimate_of(scale * mean_of(means), scale * resampled)
    return TableCell(estimate, deviation, by_preference=by_preference)
