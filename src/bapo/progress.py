"""How work says how far it is: one type of callback for all rooms."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
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


@contextmanager
def meanwhile(work: Callable[[], None], seconds: float) -> Iterator[None]:
    """Inside, some work is done again and again in a thread of its own, after so many seconds each time."""
    over = threading.Event()

    def run() -> None:
        while not over.wait(seconds):
            work()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=5.0)  # what hangs on a network keeps nobody from stopping


def counted(items: Iterable[Item], stage: str, total: int, *, at_once: int = 1000) -> Iterator[Item]:
    """The items; meanwhile, and at the end, it is told how many have been taken."""
    tell(stage, 0, total)
    for number, item in enumerate(items, start=1):
        yield item
        if number % at_once == 0 and number < total:
            tell(stage, number, total)
    tell(stage, total, total)


_WATCHING: ContextVar[OnProgress] = ContextVar("watching", default=silent)
