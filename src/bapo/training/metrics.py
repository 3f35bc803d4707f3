"""Metrics as sums and counts, merged over micro-batches and processes before anything is divided."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from bapo.objectives import BaseLogps, LossParts, PairLogps


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


@torch.no_grad()
def add_pair_metrics(sums: MetricSums, pairs: PairLogps, parts: LossParts, beta: float) -> None:
    """Chosen and rejected: log-probs, log-ratios, rewards (beta times the log-ratio), accuracy (a tie counts half)."""
    count = len(pairs.chosen)
    chosen, rejected = pairs.chosen - pairs.ref_chosen, pairs.rejected - pairs.ref_rejected
    sums.add("loss/pair", parts.pair.sum(), count)
    sums.add("logps/chosen", pairs.chosen.sum(), count)
    sums.add("logps/rejected", pairs.rejected.sum(), count)
    sums.add("logratios/chosen", chosen.sum(), count)
    sums.add("logratios/rejected", rejected.sum(), count)
    sums.add("rewards/chosen", beta * chosen.sum(), count)
    sums.add("rewards/rejected", beta * rejected.sum(), count)
    sums.add("rewards/margins", beta * (chosen - rejected).sum(), count)
    sums.add("rewards/accuracies", ((chosen > rejected).float() + 0.5 * (chosen == rejected).float()).sum(), count)


@torch.no_grad()
def add_base_metrics(sums: MetricSums, base: BaseLogps, parts: LossParts) -> None:
    """Base responses, weighted by the pairs they stand for: log-probs, drift, and the share of active hinges.

    Those that a pair rejects stand for none.
    """
    weight = base.weight
    count = float(weight.sum())
    drift = base.drift
    sums.add("logps/base", (weight * base.logps).sum(), count)
    sums.add("logratios/base", (weight * drift).sum(), count)
    sums.add("drift/per_token", (weight * drift).sum(), float((weight * base.lengths).sum()))
    if parts.anchor is not None:
        sums.add("loss/anchor", (weight * parts.anchor).sum(), count)
        held = weight > 0
        sums.add("anchor/active", ((parts.anchor > 0) & held).float().sum(), float(held.sum()))
