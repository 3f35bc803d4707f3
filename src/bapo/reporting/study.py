"""A study's report as Markdown, CSV and LaTeX, and its curves: all of it is read from records."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bapo.reporting.escapes import in_csv, in_latex, in_markdown
from bapo.reporting.tables import interval, markdown_table
from bapo.results.study_cells import ACCURACY, FORGETTING, PROMPT_MEASURES

if TYPE_CHECKING:
    from bapo.results import EstimatedJob, StudyReport, TableCell, TableRow

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]

ROW_HEADER = ("model", "data", "method", "preferences", "runs")

CLAIM_HEADER = ("claim", "model", "data", "says", "estimate [95 %]", "against", "p (Holm)", "verdict")


def accuracy_table(report: StudyReport) -> Table:
    """Tables 2 to 4 of the paper: methods by benchmarks, mean over preferences, deviation in brackets, interval."""
    header = (*ROW_HEADER, *report.columns)
    return header, [
        (*_row(row), *(_accuracy(row.accuracy.get(name)) for name in report.columns)) for row in report.rows
    ]


def change_table(report: StudyReport) -> Table:
    """The same as changes against the base on the same questions, points."""
    header = (*ROW_HEADER, *report.columns)
    return header, [
        (*_row(row), *(_change(row.accuracy.get(name)) for name in report.columns))
        for row in report.rows
        if any(cell.change is not None for cell in row.accuracy.values())
    ]


def preference_table(report: StudyReport) -> Table:
    """What is known of held-out prompts: reward accuracy, drift, divergences, and the model's own answers."""
    names, titles = _prompt_measures(report.rows)
    return (*ROW_HEADER, *titles), [
        (*_row(row), *(_measured(row.prompts.get(name), PROMPT_MEASURES[name]) for name in names))
        for row in report.rows
        if row.prompts
    ]


def _prompt_measures(rows: Sequence[TableRow]) -> tuple[list[str], list[str]]:
    """What some row has, and its columns' titles."""
    names = [name for name in PROMPT_MEASURES if any(name in row.prompts for row in rows)]
    return names, [f"{name} ({PROMPT_MEASURES[name]})" if PROMPT_MEASURES[name] else name for name in names]


def _overall_measures(rows: Sequence[TableRow]) -> list[str]:
    """Means that some row has."""
    return list(dict.fromkeys(name for row in rows for name in row.overall))


def common_table(report: StudyReport) -> Table:
    """Methods over the preferences and seeds that all of them have: what is known of prompts, and of questions."""
    names, titles = _prompt_measures(report.common)
    measures = _overall_measures(report.common)
    return (*ROW_HEADER, *titles, *(f"mean, {name}" for name in measures)), [
        (
            *_row(row),
            *(_measured(row.prompts.get(name), PROMPT_MEASURES[name]) for name in names),
            *(_overall(row, name) for name in measures),
        )
        for row in report.common
    ]


def logp_table(report: StudyReport) -> Table:
    """How the right choice's log-probability changed, by benchmark; and the mean of each measure.

    Of each model a first row says what rounding alone makes of a change.
    """
    measures = _overall_measures(report.rows)
    header = (*ROW_HEADER, *report.columns, *(f"mean, {name}" for name in measures))
    floors = [
        (model, "", "rounding alone", "", "", *said, *("" for _ in measures))
        for model in dict.fromkeys(row.model for row in report.rows)
        if any(said := [_floor_of(model, name, report.rows) for name in report.columns])
    ]
    return header, floors + [
        (
            *_row(row),
            *(_nats(row.logps.get(FORGETTING, {}).get(name)) for name in report.columns),
            *(_overall(row, name) for name in measures),
        )
        for row in report.rows
        if row.logps
    ]


def claim_table(report: StudyReport) -> Table:
    """The paper's claims with their verdicts."""
    return CLAIM_HEADER, [
        (
            claim.name,
            claim.model,
            claim.source,
            claim.says,
            interval(claim.estimate, 1, 3),
            f"{claim.threshold:g}",
            f"{claim.p:.3f}",
            claim.verdict,
        )
        for claim in report.claims
    ]


def tables(report: StudyReport) -> dict[str, Table]:
    """All tables that have rows, by the names of their files."""
    named = {
        "claims": claim_table(report),
        "preferences": preference_table(report),
        "common": common_table(report),
        "accuracy": accuracy_table(report),
        "changes": change_table(report),
        "logps": logp_table(report),
    }
    return {name: table for name, table in named.items() if table[1] and len(table[0]) > len(ROW_HEADER)}


TITLES = {
    "claims": "The paper's claims",
    "preferences": "Held-out preferences",
    "common": "Methods on the same preferences and seeds",
    "accuracy": "Knowledge and alignment, percent right",
    "changes": "Change against the base, points",
    "logps": "Change of the right choice's log-probability, nats; and the means of all measures",
}


def as_markdown(report: StudyReport, title: str) -> str:
    """The whole report as a page."""
    parts = [f"# {in_markdown(title)}", f"{report.done} of {report.jobs} jobs are done.", HOW]
    parts += [f"## {TITLES[name]}\n\n{markdown_table(*table)}" for name, table in tables(report).items()]
    return "\n\n".join(parts) + "\n"


HOW = (
    "Means over preferences, of the mean over seeds; in brackets the standard deviation over preferences. 95 % "
    "intervals: between preferences (or seeds of one) as Student's t says, with questions or prompts resampled; of one "
    "run its questions or prompts alone. Verdicts need more than one run, and are corrected for all claims (Holm)."
)


def estimate_rows(estimates: Sequence[EstimatedJob]) -> Table:
    """What jobs take, by work and together; of done ones also the hours that they took, beside their estimates."""
    sizes = ("tokens (M)", "generated (M)", "PFLOP", "hours", "memory (GB)", "disk (GB)")
    header = ("work", "jobs", *sizes, "done", "took (hours)")
    works = dict.fromkeys(each.work for each in estimates)
    rows = [_estimated(work, [each for each in estimates if each.work == work]) for work in works]
    return header, [*rows, _estimated("all", estimates)]


def _estimated(kind: str, part: Sequence[EstimatedJob]) -> tuple[str, ...]:
    done = [each for each in part if each.took is not None]
    took, said = sum(each.took or 0.0 for each in done), sum(each.seconds for each in done)
    return (
        kind,
        str(len(part)),
        f"{sum(each.tokens for each in part) / 1e6:,.2f}",
        f"{sum(each.generated for each in part) / 1e6:,.2f}",
        f"{sum(each.flops for each in part) / 1e15:,.1f}",
        f"{sum(each.seconds for each in part) / 3600:,.2f}",
        f"{max(each.memory for each in part) / 1e9:,.1f}",
        f"{sum(each.disk for each in part) / 1e9:,.1f}",
        str(len(done)),
        f"{took / 3600:,.2f} of {said / 3600:,.2f} estimated" if done else "",
    )


def as_csv(table: Table) -> str:
    """A table as CSV, whose cells no spreadsheet takes for formulas."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([[*map(in_csv, row)] for row in (table[0], *table[1])])
    return text.getvalue()


def as_latex(table: Table) -> str:
    """A table as a LaTeX tabular."""
    header, rows = table
    lines = [rf"\begin{{tabular}}{{{'l' * len(header)}}}", r"\hline", _latex_row(header), r"\hline"]
    lines += [_latex_row(row) for row in rows]
    return "\n".join([*lines, r"\hline", r"\end{tabular}"]) + "\n"


def _latex_row(row: Sequence[str]) -> str:
    return " & ".join(map(in_latex, row)) + r" \\"


def _row(row: TableRow) -> tuple[str, ...]:
    method = f"{row.method}, {row.varied}" if row.varied else row.method
    return row.model, row.source, method, str(row.preferences), str(row.runs)


def _accuracy(cell: TableCell | None) -> str:
    if cell is None:
        return ""
    deviation = "" if cell.deviation is None else f" ({cell.deviation:.1f})"
    return f"{cell.mean.value:.1f}{deviation} [{cell.mean.low:.1f}, {cell.mean.high:.1f}]"


def _measured(cell: TableCell | None, unit: str) -> str:
    if cell is None:
        return ""
    floor = "" if cell.floor is None else f", floor {cell.floor:.0e}"
    judge = "" if cell.judge is None else f", judge {cell.judge:.0f} % right"
    return interval(cell.mean, 1, 4 if unit.startswith("nats") else 1) + floor + judge


def _floor_of(model: str, column: str, rows: Sequence[TableRow]) -> str:
    """It is measured on the base, so all rows of a model have the same."""
    cells = (row.logps.get(FORGETTING, {}).get(column) for row in rows if row.model == model)
    return next((f"{cell.floor:.2g}" for cell in cells if cell is not None and cell.floor is not None), "")


def _nats(cell: TableCell | None) -> str:
    return "" if cell is None else interval(cell.mean, 1, 3)


def _overall(row: TableRow, measure: str) -> str:
    estimate = row.overall.get(measure)
    return "" if estimate is None else interval(estimate, 1, 2 if measure == ACCURACY else 3)


def _change(cell: TableCell | None) -> str:
    return "" if cell is None or cell.change is None else interval(cell.change, 1, 1)
