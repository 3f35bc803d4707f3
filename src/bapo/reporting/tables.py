"""Tables and texts for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bapo.results import Estimate, PreferenceReport

HEADER = ("", "reward accuracy", "margin (nats)", "drift (nats/response)", "drift (% per token)")

# The reference is what log-ratios are counted from: all of its own are zero, and a tie counts a half.
_REFERENCE = ("50.0 %", "0", "0", "0")


def held_out_rows(reports: Mapping[str, PreferenceReport], reference: str = "base") -> list[tuple[str, ...]]:
    """One row a model, the reference first; every figure with its 95 % bootstrap interval over prompts."""
    rows: list[tuple[str, ...]] = [(reference, *_REFERENCE)]
    for name, report in reports.items():
        rows.append(
            (
                name.upper() if name.isalpha() else name,  # an objective is written as its acronym
                interval(report.reward_accuracy, 100, 1, " %"),
                interval(report.margin, 1, 1),
                interval(report.drift, 1, 1),
                interval(report.base_change, 1, 1),
            )
        )
    return rows


def interval(estimate: Estimate, scale: float = 1.0, digits: int = 2, unit: str = "") -> str:
    """``value [low, high]`` with so many digits; an interval that is not known is called so."""
    value, low, high = (f"{scale * x:.{digits}f}" for x in (estimate.value, estimate.low, estimate.high))
    known = estimate.low == estimate.low
    return f"{value}{unit} [{low}, {high}]" if known else f"{value}{unit} [unknown]"


def drift_in_words(name: str, report: PreferenceReport) -> str:
    """What became of the model's own earlier responses, for somebody who has never heard of a nat."""
    change = report.base_change
    which = "likelier" if change.value > 0 else "less likely"
    much = f"{abs(change.value):.1f} % {which} per token"
    told = f"{name.upper() if name.isalpha() else name} finds the model's own earlier answers {much}"
    if change.high < 0:
        return f"{told}: it has begun to forget them."
    return f"{told}: they are kept." if change.low > 0 else f"{told}, which may be chance."


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)
