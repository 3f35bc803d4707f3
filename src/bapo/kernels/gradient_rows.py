"""Rows of a forward pass that a gradient reaches; the backward pass leaves the others out.

A base response whose hinge is not active has a gradient of exactly zero, and so has everything that was computed for
its tokens alone. Which responses those are is known when the backward pass begins. Whoever runs a forward pass notes
its `GradientRows`; operations that are ours keep them, and multiply only the rows that they name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor


class GradientRows:
    """The runs of rows, in order, that a gradient reaches: all, until it is known better.

    Args:
        tokens: rows of the forward pass.
    """

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.runs: tuple[slice, ...] = (slice(0, tokens),)

    def leave_out(self, places: Sequence[slice]) -> None:
        """Say which places, in order, no gradient reaches; all others are taken to have one.

        >>> rows = GradientRows(9)
        >>> rows.leave_out([slice(2, 4), slice(4, 5), slice(8, 9)])
        >>> rows.runs
        (slice(0, 2, None), slice(5, 8, None))
        """
        starts = [0, *(place.stop for place in places)]
        stops = [*(place.start for place in places), self.tokens]
        self.runs = tuple(slice(a, b) for a, b in zip(starts, stops, strict=True) if a < b)

    def reach(self, place: slice) -> bool:
        """Whether a gradient reaches the place, which lies within one run or outside of all."""
        return any(run.start <= place.start and place.stop <= run.stop for run in self.runs)


_noted: ContextVar[GradientRows | None] = ContextVar("noted", default=None)


@contextmanager
def noting(rows: GradientRows) -> Iterator[None]:
    """Operations inside belong to a forward pass of these rows."""
    token = _noted.set(rows)
    try:
        yield
    finally:
        _noted.reset(token)


def rows_of(tensor_1TD: Tensor) -> GradientRows:
    """The noted rows, if the tensor is shaped as they are; otherwise all of its rows.

    A flat (T, D) may hold as many rows in another order, as what a router sends to an expert does.
    """
    rows = _noted.get()
    if rows is not None and tensor_1TD.shape[:-1] == (1, rows.tokens):
        return rows
    return GradientRows(tensor_1TD.numel() // tensor_1TD.shape[-1])
