"""Metrics as sums and counts, merged over micro-batches and processes before anything is divided."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

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
        for name, own in zip(ANCHOR_METRICS, of_anchor, strict=True):
            sums.add(name, own, count)


@torch.no_grad()
def right(pairs: PairLogps) -> Tensor:
    """(B,) 1 where the chosen log-ratio exceeds the rejected one, 0 where it falls short, a half for a tie."""
    chosen, rejected = pairs.chosen_logratio, pairs.rejected_logratio
    return (chosen > rejected).float() + 0.5 * (chosen == rejected).float()


class Ending:
    """What the last steps of training say of the policy that they leave.

    A policy is called broken where it does worse than guessing on the very data that it was trained on: where chosen or
    base responses, which the reference finds likelier than tokens drawn blindly, have become less likely than that; or
    where a coin would be right so rarely only one time in a thousand.
    """

    PROMPTS = 64
    """Prompts of the last steps that are looked at."""

    CHANCE = 1e-3

    def __init__(self) -> None:
        self._steps: deque[_Step] = deque()

    @torch.no_grad()
    def note(self, pairs: PairLogps, base: BaseLogps | None, prompts: int) -> None:
        """Look at one batch of a training step, whose pairs belong to so many prompts."""
        chosen = (float(pairs.chosen.sum()), float(pairs.ref_chosen.sum()), float(pairs.chosen_tokens.sum()))
        bases = (0.0, 0.0, 0.0)
        if base is not None:
            bases = (float(base.logps.sum()), float(base.ref_logps.sum()), float(base.lengths.sum()))
        self._steps.append(_Step(prompts, float(right(pairs).mean()) * prompts, *chosen, *bases))
        while sum(step.prompts for step in self._steps) - self._steps[0].prompts >= self.PROMPTS:
            self._steps.popleft()

    def fault(self, vocabulary: int) -> str | None:
        """What is wrong with the policy, as a part of a sentence; None where nothing shows.

        Args:
            vocabulary: how many tokens there are to draw from.
        """
        if not self._steps:
            return None
        prompts, won, *nats = (sum(parts) for parts in zip(*self._steps, strict=True))
        blind = -math.log(vocabulary)
        for responses, (policy, reference, tokens) in (
            ("the chosen responses have", nats[:3]),
            ("the model's own earlier responses have", nats[3:]),
        ):
            if tokens and policy / tokens < blind <= reference / tokens:
                return (
                    f"{responses} {policy / tokens:.1f} nats per token, less than tokens drawn blindly "
                    f"({blind:.1f}), where they had {reference / tokens:.1f} before"
                )
        from scipy.stats import binom

        if binom.cdf(math.floor(won), prompts, 0.5) < self.CHANCE:
            return f"the policy prefers the chosen response on only {won / prompts:.0%} of what it was just trained on"
        return None


class _Step(NamedTuple):
    """Sums over one batch: prompts, those won (pairs of a prompt share one), nats and tokens of responses."""

    prompts: int
    won: float
    chosen_policy: float
    chosen_reference: float
    chosen_tokens: float
    base_policy: float
    base_reference: float
    base_tokens: float
