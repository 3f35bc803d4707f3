"""Independent passes side by side: on a CPU, several with a few threads each get more done than one with all of them.

A forward pass is a chain of operations, of which only the large products keep many threads busy. Passes that know
nothing of each other fill the gaps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST_AT_ONCE = 4
"""Passes at once at the most, since each holds its own memory."""

UNEVEN = 1.15
"""By how much the work of one of them may exceed its share; beyond that all threads are better put to one pass."""

_CHANGING_POSITIONS = ("dynamic", "longrope")  # rotary embeddings that rewrite their frequencies from pass to pass


def passes_at_once(model: torch.nn.Module) -> int:
    """How many passes of a model may run side by side: 1 on an accelerator, or where they could disturb each other."""
    config = getattr(model, "config", None)
    alone = (
        next(model.parameters()).device.type != "cpu"
        or torch.is_autocast_enabled("cpu")
        or getattr(model, "is_loaded_in_4bit", False)
        or any(kind in str(getattr(config, "rope_parameters", "")) for kind in _CHANGING_POSITIONS)
    )
    return 1 if alone else min(MOST_AT_ONCE, torch.get_num_threads())


def worth_it(costs: Sequence[float], at_once: int, whole: float | None = None) -> bool:
    """Whether ``at_once`` workers that take up work of these costs in order are about evenly busy.

    Args:
        costs: of each piece of work.
        at_once: how many workers there are.
        whole: what all of it costs in one piece, if that is less than the sum of the pieces.

    >>> worth_it([3, 3, 2, 2], 2), worth_it([5, 3], 2), worth_it([5, 5], 2, whole=7)
    (True, False, False)
    """
    loads = [0.0] * at_once
    for cost in costs:
        loads[loads.index(min(loads))] += cost
    return max(loads) * at_once <= UNEVEN * (sum(costs) if whole is None else whole)


def side_by_side(work: Callable[[Item], Result], items: Sequence[Item], at_once: int) -> Iterator[Result]:
    """The results of the work on each item, in order; ``at_once`` are worked on at the same time.

    Each gets its share of torch's threads, and the caller's gradient mode and context. Work must not share state, and
    its results must not depend on the number of threads.
    """
    at_once = min(at_once, len(items))
    if at_once <= 1:
        yield from map(work, items)
        return
    threads, with_gradient = torch.get_num_threads(), torch.is_grad_enabled()

    def one(item: Item) -> Result:
        with torch.set_grad_enabled(with_gradient):
            return work(item)

    pool = ThreadPoolExecutor(at_once, initializer=torch.set_num_threads, initargs=(threads // at_once,))
    try:
        for future in [pool.submit(copy_context().run, one, item) for item in items]:
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # some of torch's libraries know one number for all threads
