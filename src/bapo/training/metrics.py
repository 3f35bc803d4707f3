"""Metrics as sums and counts, merged over micro-batches and processes before anything is divided."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from bapo.objectives import BaseLogps, LossParts, PairLogps

PAIR_METRICS = (
    "loss/pair",
    "logps/chosen",
    "logps/rejected",
    "logratios/chosen",
    "logratios/rejected",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
)
BASE_METRICS = ("logps/base", "logratios/base", "drift/per_token")
ANCHOR_METRICS = ("loss/anchor", "anchor/active", "anchor/strength")
EVALUATION_METRICS = ("loss", "runtime", "samples_per_second", "steps_per_second")
"""What `transformers` adds to each evaluation by itself."""


class MetricSums:
    """Named sums with their counts."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, float]] = {}

    def add(self, name: str, total: float | Tensor, count: float) -> None:
        """Add a sum over ``count`` things."""
        before = self._sums.get(name, (0.0, 0.0))
        self._sums[name] = (before[0] + float(total), before[1] + count)

    def merged(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Means over everything that was added in all processes; ``reduce`` sums a tensor over processes."""
        names = sorted(self._sums)
        if not names:
            return {}
        table = reduce(torch.tensor([self._sums[name] for name in names], dtype=torch.float64))
        return {name: total / count for name, (total, count) in zip(names, table.tolist(), strict=True) if count}

    def clear(self) -> None:
        """Start anew."""
        self._sums.clear()


class Throughput:
    """Pairs and tokens trained on since the last log, by the clock."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Count from now on."""
        self.pairs = self.tokens = 0
        self.since = time.perf_counter()

    def add(self, pairs: int, tokens: int) -> None:
        """Count one micro-batch of this process."""
        self.pairs += pairs
        self.tokens += tokens

    def rates(self, processes: int) -> dict[str, float]:
        """Rates of all processes together, and a new start."""
        seconds = max(time.perf_counter() - self.since, 1e-9)
        rates = {
            "pairs_per_second": processes * self.pairs / seconds,
            "tokens_per_second": processes * self.tokens / seconds,
        }
        self.restart()
        return rates


class PartGradients:
    """The gradient of each part of the loss on its own, summed up over the batches of a step; of this process's share.

    Args:
        every: steps from one such look to the next; 0 for none.
    """

    def __init__(self, every: int) -> None:
        self._every, self._step = every, -1
        self._gradients: dict[str, list[Tensor]] = {}

    def add(self, step: int, losses: Mapping[str, Tensor], weights: Sequence[Tensor], sums: MetricSums) -> None:
        """Look at one batch, if it is the step's turn; norms of an earlier step go to ``sums`` first."""
        if not self._every or step % self._every:
            return
        if step != self._step:
            self.finish(sums)
            self._step = step
        for name, loss in losses.items():
            gradients = torch.autograd.grad(loss, weights, retain_graph=True, materialize_grads=True)
            before = self._gradients.setdefault(name, [torch.zeros_like(gradient) for gradient in gradients])
            for total, gradient in zip(before, gradients, strict=True):
                total += gradient

    def finish(self, sums: MetricSums) -> None:
        """Add the norms of what was summed up."""
        for name, gradients in self._gradients.items():
            norm = math.sqrt(sum(float(gradient.float().pow(2).sum()) for gradient in gradients))
            sums.add(f"grad_norm/{name}", norm, 1)
        self._gradients.clear()


@torch.no_grad()
def add_pair_metrics(sums: MetricSums, pairs: PairLogps, parts: LossParts, beta: float) -> None:
    """Chosen and rejected: log-probs, log-ratios, rewards (beta times the log-ratio), accuracy (a tie counts half)."""
    chosen, rejected = pairs.chosen_logratio, pairs.rejected_logratio
    of_pairs = (
        parts.pair,
        pairs.chosen,
        pairs.rejected,
        chosen,
        rejected,
        beta * chosen,
        beta * rejected,
        beta * (chosen - rejected),
        right(pairs),
    )
    for name, values in zip(PAIR_METRICS, of_pairs, strict=True):
        sums.add(name, values.sum(), len(values))


@torch.no_grad()
def add_base_metrics(sums: MetricSums, base: BaseLogps, parts: LossParts, strength: float = 0.0) -> None:
    """Base responses, weighted by the pairs they stand for: log-probs, drift, share of active hinges, anchor strength.

    Those that a pair rejects stand for none.
    """
    weight = base.weight
    count = float(weight.sum())
    drift = (weight * base.drift).sum()
    of_base = (
        ((weight * base.logps).sum(), count),
        (drift, count),
        (drift, float((weight * base.lengths).sum())),
    )
    for name, (total, things) in zip(BASE_METRICS, of_base, strict=True):
        sums.add(name, total, things)
    if parts.anchor is not None:
        active = (weight * (parts.anchor > 0)).sum()
        of_anchor: tuple[float | Tensor, ...] = ((weight * parts.anchor).sum(), active, strength * count)
        for name, metric in zip(ANCHOR_METRICS, of_anchor, strict=True):
            sums.add(name, metric, count)


@torch.no_grad()
def right(pairs: PairLogps) -> Tensor:
    """(B,) 1 where the chosen log-ratio exceeds the rejected one, 0 where it falls short, a half for a tie."""
    chosen, rejected = pairs.chosen_logratio, pairs.rejected_logratio
    return (chosen > rejected).float() + 0.5 * (chosen == rejected).float()
