"""The page of results for the small grids of `bapo personalize` and `bapo evaluate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from bapo.reporting.changes import (
    ACCURACY_HEADER,
    CHANGE_HEADER,
    LOGP_HEADER,
    accuracy_rows,
    change_rows,
    forgetting_in_words,
    learned_in_words,
    logp_rows,
    movement_in_words,
)
from bapo.reporting.curves import Log
from bapo.reporting.page import Page, PageTable, page_figures
from bapo.reporting.pictures import training_pictures
from bapo.reporting.tables import HEADER, WORDED_HEADER, held_out_rows, worded_rows

if TYPE_CHECKING:
    from bapo.results import Comparison, Personalization, Provenance, Record

_HOW = (
    "Reward accuracy: how often training raised the response that is preferred above the one that is not. Drift: how "
    "much likelier or less likely the model finds what it said itself before, in nats, natural logarithms of a ratio. "
    "Intervals are 95 % bootstrap intervals over prompts or questions."
)


def personalization_page(record: Record[Personalization], logs: Mapping[str, Log]) -> Page:
    """Of a personalization.

    Args:
        record: of it.
        logs: what the trainer logged, by run.
    """
    result = record.content
    first = next(iter(result.held_out.values()))
    rows = worded_rows(result.held_out, result.likelier, result.reference)
    note = f"{first.pairs} held-out pairs of {first.prompts} prompts."
    drawn = training_pictures({result.source: logs})
    return Page(
        title=f"Personalized to {result.source}",
        tables=[PageTable("What it learned, and what it kept", WORDED_HEADER, rows, note)],
        figures=page_figures(drawn),
        answers=result.answers,
        how=[_HOW],
        made=made(record.made_from),
    )


def comparison_page(record: Record[Comparison]) -> Page:
    """Of models that were evaluated together, with every question whose answer changed."""
    comparison = record.content
    flips = [{**item, "run": item["model"], "method": item["model"]} for item in record.items()]
    return Page(
        title=f"Evaluated against {comparison.against}",
        summary=list(_sentences(comparison)),
        tables=list(_tables(comparison)),
        flips=flips,
        filters=("outcome", "benchmark", "model"),
        questions={
            f"{item['task']} {item['document']}": {"question": item["question"], "choices": item["choices"]}
            for item in flips
        },
        how=[_HOW],
        made=made(record.made_from),
    )


def _tables(comparison: Comparison) -> Sequence[PageTable]:
    reports = {name: model.preferences for name, model in comparison.models.items() if model.preferences is not None}
    tables = []
    if reports:
        rows = held_out_rows(reports, comparison.reference)
        tables.append(PageTable("Held-out preferences", HEADER, rows, f"{comparison.source}"))
    scores = comparison.models[comparison.against].benchmarks
    if scores:
        tables.append(PageTable(f"Benchmarks: {comparison.against}", ACCURACY_HEADER, accuracy_rows(scores)))
    for name, changes in comparison.changes.items():
        if changes.benchmarks:
            tables.append(PageTable(f"Benchmarks: {name}", CHANGE_HEADER, change_rows(changes.benchmarks)))
            tables.append(PageTable(f"Right choices: {name}", LOGP_HEADER, logp_rows(changes.benchmarks)))
    return tables


def _sentences(comparison: Comparison) -> Sequence[str]:
    said = []
    for name, changes in comparison.changes.items():
        report = comparison.models[name].preferences
        if changes.forgetting is not None:
            said.append(forgetting_in_words(name, changes.forgetting, comparison.budget))
        if changes.learned is not None and report is not None:
            least = comparison.least_accuracy or 0
            said.append(learned_in_words(name, report.reward_accuracy, least, changes.learned))
    for model in comparison.models.values():
        said += movement_in_words(model.movement) if model.movement is not None else []
    return said


def made(provenance: Provenance) -> list[tuple[str, str]]:
    """What a record was made from, by name."""
    shown: dict[str, Any] = {name: value for name, value in asdict(provenance).items() if value}
    rows: list[tuple[str, str]] = []
    for name, value in shown.items():
        rows += _flat(name.replace("_", " "), value)
    return rows


def _flat(name: str, value: Any) -> list[tuple[str, str]]:
    if not isinstance(value, Mapping):
        return [(name, str(value))]
    return [row for key, inner in value.items() for row in _flat(f"{name}: {key}", inner)]
