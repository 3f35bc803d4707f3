"""How work says how far it is: one type of callback for all rooms."""

from __future__ import annotations

from typing import Protocol


class OnProgress(Protocol):
    """Told the stage, how many of it are done, of how many, and a note to show beside it."""

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Take note."""


def silent(stage: str, done: int, total: int, note: str = "") -> None:
    """Progress that nobody watches."""
