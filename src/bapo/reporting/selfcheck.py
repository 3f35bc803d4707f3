"""The page of `bapo selfcheck`, as rows and sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bapo.results import Check, Selfcheck

SELFCHECK_HEADER = ("checked", "in", "largest", "mean", "floor", "limit", "verdict")

SELFCHECK_LEGEND = (
    "Deviations are of a token's log-probability, in nats (0.01 is one percent): the largest, and the mean. The floor "
    "is the mean by which rounding alone moves a token; the limit is what rounding explains of the mean, and what is "
    "above it is wrong."
)


def selfcheck_rows(checked: Selfcheck) -> list[tuple[str, ...]]:
    """Two rows for each check: its name with the verdict, and what it means; the numbers of a precision in each."""
    return [row for check in checked.checks for row in _rows(check)]


def _rows(check: Check) -> list[tuple[str, ...]]:
    numbers = [
        (each.precision, *map(_short, (each.largest, each.mean, each.floor, each.limit))) for each in check.deviations
    ]
    numbers += [("",) * 5] * (2 - len(numbers))
    said = [(check.name, check.verdict), (f"  {check.meaning}", "")]
    return [(left, *between, right) for (left, right), between in zip(said, numbers, strict=True)]


def _short(nats: float) -> str:
    return "0" if nats == 0 else f"{nats:.2g}"


def selfcheck_outcome(checked: Selfcheck) -> str:
    """The last line of the page."""
    wrong = [check.name for check in checked.checks if not check.right]
    if not wrong:
        return (
            f"All right: {checked.model} is scored and trained as its own code computes it ({checked.seconds:.0f} s)."
        )
    return (
        f"Not all right: {len(wrong)} of {len(checked.checks)} checks ({', '.join(wrong)}); see their verdicts "
        f"({checked.seconds:.0f} s)."
    )
