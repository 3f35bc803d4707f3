"""One row computed in strands: parts of it side by side, each with its share of a CPU's threads.

A pass is a chain of operations, of which only the large products keep many threads busy; strands fill the gaps. A
segment needs nothing of the row but the keys and values of the segments above it, so these are all that strands tell
each other, layer by layer, and in the backward pass the gradients of these.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bapo.kernels.fused_lora import dropout_seeds, seeded_dropout
from bapo.likelihood.layout import Layout, Segments
from bapo.models import steady_length

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST_STRANDS = 4

UNEVEN = 1.03
"""By how much the tokens of a strand may exceed its share before prompts and their responses are parted."""

LOPSIDED = 1.3
"""By how much the tokens of a strand may exceed its share before all threads are better put to the row as a whole: on
two cores a whole row is computed 1.4 times as fast as on one of them, two even strands 1.9 times."""


def strands_for(model: Any) -> int:
    """In how many strands a model may compute a row: 1 on an accelerator, or where they could disturb each other."""
    alone = (
        next(model.parameters()).device.type != "cpu"
        or torch.is_autocast_enabled("cpu")
        or getattr(model, "is_loaded_in_4bit", False)
        or steady_length(model.config) is not None  # a pass may rewrite its frequencies
    )
    return 1 if alone else min(MOST_STRANDS, torch.get_num_threads())


@contextmanager
def noting_changes(model: torch.nn.Module) -> Iterator[list[str]]:
    """The attributes that modules of the model get inside; a forward pass that sets some disturbs another beside it.

    PEFT puts an adapter of experts on for the time of a layer's forward, for one.
    """
    modules = {id(module) for module in model.modules()}
    changes: list[str] = []
    original = torch.nn.Module.__setattr__

    def note(module: torch.nn.Module, name: str, value: Any) -> None:
        if id(module) in modules and name != "training":  # a mode, of which all strands have the same
            changes.append(f"{type(module).__name__}.{name}")
        original(module, name, value)

    torch.nn.Module.__setattr__ = note  # type: ignore[method-assign, assignment]
    try:
        yield changes
    finally:
        torch.nn.Module.__setattr__ = original  # type: ignore[method-assign]


class Exchange:
    """Where strands leave things for each other; whoever takes one that is not there yet waits for it."""

    def __init__(self) -> None:
        self._left: dict[Hashable, tuple[Any, int]] = {}
        self._changed = threading.Condition()
        self._error: BaseException | None = None

    def leave(self, name: Hashable, thing: Any, takers: int = 1) -> None:
        """Leave something that so many will take."""
        with self._changed:
            self._left[name] = thing, takers
            self._changed.notify_all()

    def take(self, name: Hashable) -> Any:
        """Take what has been left, or will be; raises the error of a strand that has broken off."""
        with self._changed:
            self._changed.wait_for(lambda: self._error is not None or name in self._left)
            if self._error is not None:
                raise self._error
            thing, takers = self._left.pop(name)
            if takers > 1:
                self._left[name] = thing, takers - 1
            return thing

    def break_off(self, error: BaseException) -> None:
        """Let everybody know that something will never come."""
        with self._changed:
            self._error = error
            self._changed.notify_all()


@dataclass(slots=True)
class Ties:
    """How a strand hangs together with others; segments of other strands are called by their numbers in the row.

    Attributes:
        exchange: where they meet.
        strand: which one this is.
        lent: own segments that other strands need: index, number, and the strands.
        borrowed: numbers of the segments of others that this one needs; they are the last of its `Segments`.
        layers: attention layers that its forward pass has been through.
    """

    exchange: Exchange
    strand: int
    lent: tuple[tuple[int, int, tuple[int, ...]], ...]
    borrowed: tuple[int, ...]
    layers: int = 0


@dataclass(frozen=True, slots=True)
class Strand:
    """A part of a row, laid out as a row of its own.

    Attributes:
        layout: its tokens.
        at_P: which of the whole row's predicted tokens it predicts.
    """

    layout: Layout
    at_P: Tensor


def cut(layout: Layout, most: int) -> list[Strand]:
    """Cut a row into at most so many strands of about the same number of tokens, or one; segments stay whole."""
    segments = layout.segments
    owner = _even_owners(segments, most)
    count = max(owner) + 1
    loads = [
        sum(length for length, strand in zip(segments.lengths, owner, strict=True) if strand == k) for k in range(count)
    ]
    if max(loads) * count > LOPSIDED * segments.tokens:
        owner, count = [0] * len(owner), 1
    lines, places = segments.lines(), segments.places()
    mine = [[at for at, strand in enumerate(owner) if strand == k] for k in range(count)]
    borrowed = [sorted({up for at in mine[k] for up in lines[at] if owner[up] != k}) for k in range(count)]
    exchange = Exchange()
    strands = []
    for k in range(count):
        index = {at: i for i, at in enumerate([*mine[k], *borrowed[k]])}
        lent = [(at, tuple(other for other in range(count) if at in borrowed[other])) for at in mine[k]]
        ties = Ties(exchange, k, tuple((index[at], at, to) for at, to in lent if to), tuple(borrowed[k]))
        strands.append(_strand(layout, mine[k], index, places, ties))
    return strands


def _strand(layout: Layout, mine: Sequence[int], index: dict[int, int], places: Sequence[slice], ties: Ties) -> Strand:
    segments, device = layout.segments, layout.input_ids.device
    parents = (segments.parents[at] for at in index)
    rows = list(chain.from_iterable(range(places[at].start, places[at].stop) for at in mine))
    rows_T = torch.tensor(rows, device=device)
    row_of = torch.full((layout.tokens,), -1, device=device)
    row_of[rows_T] = torch.arange(len(rows), device=device)
    at_P = (row_of[layout.source_P] >= 0).nonzero()[:, 0]
    first = {row: i for i, row in enumerate(rows)}
    return Strand(
        Layout(
            input_ids=layout.input_ids[:, rows_T],
            position_ids=layout.position_ids[:, rows_T],
            segments=Segments(
                lengths=tuple(segments.lengths[at] for at in index),
                parents=tuple(index[up] if up >= 0 else -1 for up in parents),
                backend=segments.backend,
                ties=ties if ties.lent or ties.borrowed else None,
            ),
            source_P=row_of[layout.source_P[at_P]],
            target_P=layout.target_P[at_P],
            places=tuple(
                slice(first[place.start], first[place.start] + place.stop - place.start)
                for place in layout.places
                if place.start < place.stop and place.start in first
            ),
        ),
        at_P,
    )


def _even_owners(segments: Segments, most: int) -> list[int]:
    """The strand of each segment.

    Trees stay whole as long as strands come out even: the largest first, each to the strand that has least so far.
    While they do not, the largest tree of the fullest strand is taken apart at its top.

    >>> _even_owners(Segments((2, 6, 4, 5, 7), (-1, 0, 0, -1, 3)), 2)
    [0, 0, 0, 1, 1]
    >>> _even_owners(Segments((2, 6, 5, 3, 0), (-1, 0, 0, 0, 0)), 2)
    [0, 0, 1, 1, 0]
    """
    lines = segments.lines()
    trees = [
        [at for at, line in enumerate(lines) if line[0] == top] for top, up in enumerate(segments.parents) if up < 0
    ]

    def size(tree: list[int]) -> int:
        return sum(segments.lengths[at] for at in tree)

    def branches(tree: list[int]) -> list[list[int]]:
        """The trees under its top, but for responses of one token, which take no place and stay."""
        under = ([at for at in tree if up in lines[at]] for up in tree[1:] if segments.parents[up] == tree[0])
        return [branch for branch in under if size(branch)]

    while True:
        shares: list[list[list[int]]] = [[] for _ in range(most)]
        loads = [0] * most
        for tree in sorted(trees, key=size, reverse=True):
            emptiest = loads.index(min(loads))
            shares[emptiest].append(tree)
            loads[emptiest] += size(tree)
        even = max(loads) * most <= UNEVEN * segments.tokens
        fullest = shares[loads.index(max(loads))]
        apart = None if even else next((tree for tree in fullest if branches(tree)), None)
        if apart is None:
            owner = {at: strand for strand, share in enumerate(filter(None, shares)) for tree in share for at in tree}
            return [owner[at] for at in range(segments.count)]
        parted = set(chain.from_iterable(branches(apart)))
        trees.remove(apart)
        trees += [[at for at in apart if at not in parted], *branches(apart)]


def in_strands(
    compute: Callable[[Layout], tuple[Tensor, Tensor]], strands: Sequence[Strand], weights: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """What ``compute`` gives for the predicted tokens of a row, (P,) twice, computed in strands.

    Args:
        compute: gives two numbers for each predicted token of a layout; the first is differentiable.
        strands: the row.
        weights: what the first may be differentiated with respect to.
    """
    if torch.is_grad_enabled() and weights:
        seeds = dropout_seeds(len(strands))
        first, second = _InStrands.apply(compute, strands, seeds, *weights)
        return first, second
    return _whole(strands, _side_by_side(lambda strand: compute(strand.layout), strands, strands))


class _InStrands(torch.autograd.Function):
    """Both passes of the strands, each of which has a graph of its own."""

    @staticmethod
    def forward(
        ctx: Any,
        compute: Callable[[Layout], tuple[Tensor, Tensor]],
        strands: Sequence[Strand],
        seeds: Sequence[int],
        *weights: Tensor,
    ) -> tuple[Tensor, Tensor]:
        def one(strand_and_seed: tuple[Strand, int]) -> tuple[Tensor, Tensor]:
            strand, seed = strand_and_seed
            with torch.enable_grad(), seeded_dropout(seed):
                return compute(strand.layout)

        computed = _side_by_side(one, list(zip(strands, seeds, strict=True)), strands)
        ctx.strands, ctx.weights, ctx.graphs = strands, weights, [first for first, _ in computed]
        first, second = _whole(strands, [(first.detach(), second) for first, second in computed])
        ctx.mark_non_differentiable(second)
        return first, second

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
        def one(strand_and_graph: tuple[Strand, Tensor]) -> tuple[Tensor, ...]:
            strand, graph = strand_and_graph
            return torch.autograd.grad(graph, ctx.weights, upstream[0][strand.at_P], materialize_grads=True)

        parts = _side_by_side(one, list(zip(ctx.strands, ctx.graphs, strict=True)), ctx.strands)
        return None, None, None, *_summed(parts)


def _summed(parts: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """The sum of each gradient over the strands, in their order, whichever was ready first.

    Taken where the first strand's gradient lies, unless that is the memory of several.
    """
    owners = Counter(gradient.untyped_storage().data_ptr() for gradient in parts[0])
    total = [
        gradient
        if owners[gradient.untyped_storage().data_ptr()] == 1 and gradient.is_contiguous()
        else gradient.clone()
        for gradient in parts[0]
    ]
    for part in parts[1:]:
        for gradient, more in zip(total, part, strict=True):
            gradient += more
    return total


def _whole(strands: Sequence[Strand], computed: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The strands' numbers in the order of the row."""
    order = torch.cat([strand.at_P for strand in strands]).argsort()
    first, second = zip(*computed, strict=True)
    return torch.cat(first)[order], torch.cat(second)[order]


def _side_by_side(work: Callable[[Item], Result], items: Sequence[Item], strands: Sequence[Strand]) -> list[Result]:
    """The results of the work on each strand's item; an error of one ends the waiting of the others."""

    def tied(item: Item) -> Result:
        try:
            return work(item)
        except BaseException as error:
            for strand in strands:
                if strand.layout.segments.ties is not None:
                    strand.layout.segments.ties.exchange.break_off(error)
            raise

    return list(side_by_side(tied, items))


def side_by_side(work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """The results of the work on each item, in order; all are worked on at the same time.

    Each gets its share of torch's threads, and the caller's gradient mode and context.
    """
    threads, with_gradient = torch.get_num_threads(), torch.is_grad_enabled()

    def one(item: Item) -> Result:
        with torch.set_grad_enabled(with_gradient):
            return work(item)

    share = max(1, threads // len(items))
    pool = ThreadPoolExecutor(len(items), initializer=torch.set_num_threads, initargs=(share,))
    try:
        for future in [pool.submit(copy_context().run, one, item) for item in items]:
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # some of torch's libraries know one number for all threads
