"""How work says how far it is: one type of callback for all rooms."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol, TypeVar

Item = TypeVar("Item")


class OnProgress(Protocol):
    """Told the stage, how many of it are done, of how many, and a note to show beside it."""

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Take note."""


def silent(stage: str, done: int, total: int, note: str = "") -> None:
    """Progress that nobody watches."""


@contextmanager
def watched_by(on_progress: OnProgress) -> Iterator[None]:
    """Inside, `tell` tells this: for work that is asked for by code of others, as readers of preferences are."""
    before = _WATCHING.set(on_progress)
    try:
        yield
    finally:
        _WATCHING.reset(before)


def tell(stage: str, done: int, total: int, note: str = "") -> None:
    """Say to whoever watches how far a stage is."""
    _WATCHING.get()(stage, done, total, note)


def counted(items: Iterable[Item], stage: str, total: int, *, at_once: int = 1000) -> Iterator[Item]:
    """The items; meanwhile, and at the end, it is told how many have been taken."""
    tell(stage, 0, total)
    for number, item in enumerate(items, start=1):
        yield item
        if number % at_once == 0 and number < total:
            tell(stage, number, total)
    tell(stage, total, total)


_WATCHING: ContextVar[OnProgress] = ContextVar("watching", default=silent)
