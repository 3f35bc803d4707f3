"""Tables and texts for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from bapo.reporting.escapes import in_markdown

if TYPE_CHECKING:
    from bapo.results import Estimate, PreferenceReport

HEADER = ("", "reward accuracy", "margin (nats)", "drift (nats/response)", "drift (nats/token)")

WORDED_HEADER = (*HEADER[:2], "its own earlier answers, per token", *HEADER[2:4])

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
                interval(report.drift_per_token, 1, 3),
            )
        )
    return rows


def worded_rows(
    reports: Mapping[str, PreferenceReport], likelier: Mapping[str, Estimate], reference: str = "base"
) -> list[tuple[str, ...]]:
    """`held_out_rows` with the drift per token as percent and in words, for `WORDED_HEADER`.

    Args:
        reports, reference: see `held_out_rows`.
        likelier: percent by which base responses became likelier per token, by the same names.
    """
    own = ["as likely as before", *(worded(likelier[name]) for name in reports)]
    rows = held_out_rows(reports, reference)
    return [(*row[:2], said, *row[2:4]) for row, said in zip(rows, own, strict=True)]


def worded(likelier: Estimate) -> str:
    """``3.1 % less likely [-4.0, -2.2]``."""
    value, _, ends = interval(likelier, 1, 1).partition(" ")
    return f"{value.lstrip('-')} % {'less likely' if likelier.value < 0 else 'likelier'} {ends}"


def interval(estimate: Estimate, scale: float = 1.0, digits: int = 2, unit: str = "") -> str:
    """``value [low, high]`` with so many digits; an interval that is not known is called so."""
    value, low, high = (f"{scale * x:.{digits}f}" for x in (estimate.value, estimate.low, estimate.high))
    known = estimate.low == estimate.low
    return f"{value}{unit} [{low}, {high}]" if known else f"{value}{unit} [unknown]"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, its cells as text."""
    lines = ["| " + " | ".join(map(in_markdown, row)) + " |" for row in (header, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(header), *lines[1:]])
