"""The noise floor: what rounding alone moves a log-prob by, of one model, in its precision, on its device; measured.

In bf16 a product whose terms are added in another order rounds some of its results differently, every later layer
rounds what comes of that differently again, and after a few layers two layouts of the same tokens have rounding errors
that know nothing of each other. How large they are depends on the model; how products are ordered, on the number of
rows, the processor and its libraries. So nothing here is a constant in nats: two sets of log-probs agree if they differ
by no more than layouts of the same model do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

FALSE_ALARMS = 1e-3
"""Share of comparisons that rounding alone lets exceed the limit."""

RESAMPLES = 10_000

FLOORS_IN_FLOAT32 = 10.0
"""Floors that float32 numbers may differ by. Machines order float32 sums differently, which layouts on one of them do
not show; ten floors are still dozens of times less than what one wrong layer does."""


@dataclass(frozen=True, slots=True)
class NoiseFloor:
    """What rounding moves a token's log-prob by between two layouts; of the two that differ most.

    Attributes:
        mean: mean absolute difference of a token, nats.
        largest: largest difference of a token, nats.
        tokens: tokens that it was measured on.
        limit: mean absolute difference, nats, that rounding alone exceeds once in a thousand comparisons of so many
            tokens; in float32 `FLOORS_IN_FLOAT32` floors.
    """

    mean: float
    largest: float
    tokens: int
    limit: float


def noise_floor(passes: Mapping[str, Tensor], *, float32: bool, seed: int = 0) -> NoiseFloor:
    """The floor of passes over the same tokens.

    Args:
        passes: (P,) token log-probs by layout, nats; at least two.
        float32: whether they were computed in float32.
        seed: of the resampling.
    """
    pairs = [(a.double() - b.double()).abs() for a, b in combinations(passes.values(), 2)]
    widest = max(pairs, key=lambda gap: float(gap.mean()))
    mean = float(widest.mean())
    limit = FLOORS_IN_FLOAT32 * mean if float32 else _limit(pairs, widest, seed)
    return NoiseFloor(mean, float(widest.max()), len(widest), limit)


def _limit(pairs: list[Tensor], floor: Tensor, seed: int) -> float:
    """What a gap exceeds once in a thousand, if it is rounding alone: the floor times a quantile of gap / floor.

    Both are means over the tokens, so both are drawn anew, each by itself, from the pairs that differ; and neighbours
    are drawn together, because they share what stands before them.
    """
    runs = min(len(floor), _MOST_RUNS)
    drawn_gap, drawn_floor = _draws(runs, seed)

    def redrawn(gap: Tensor, shares: Tensor) -> Tensor:
        return shares @ torch.stack([part.mean() for part in gap.tensor_split(runs)])

    tiny = torch.finfo(torch.float64).tiny
    differing = [gap for gap in pairs if 2 * float(gap.mean()) > float(floor.mean())]
    ratios = [
        float((redrawn(gap, drawn_gap) / (redrawn(floor, drawn_floor) + tiny)).quantile(1 - FALSE_ALARMS))
        for gap in differing
    ]
    return float(floor.mean()) * max(ratios, default=1.0)


_MOST_RUNS = 256
"""Runs of neighbouring tokens that are drawn together; as many as there are tokens, where there are fewer."""


@lru_cache(maxsize=4)
def _draws(runs: int, seed: int) -> tuple[Tensor, Tensor]:
    """Twice (RESAMPLES, runs): the share of each run in a mean over as many that are drawn with replacement."""
    rng = np.random.default_rng(seed)
    even = np.full(runs, 1 / runs)
    first, second = (torch.from_numpy(rng.multinomial(runs, even, size=RESAMPLES) / runs) for _ in range(2))
    return first, second


def gap_of(these: Tensor, those: Tensor) -> float:
    """Mean absolute difference of two passes over the same tokens, nats."""
    return float((these.double() - those.double()).abs().mean()) if len(these) else 0.0


def largest_gap_of(these: Tensor, those: Tensor) -> float:
    """Largest absolute difference of two passes over the same tokens, nats."""
    return float((these.double() - those.double()).abs().max()) if len(these) else 0.0


def nudged(embedded: Tensor) -> Tensor:
    """Embeddings of which one number in 64 is moved by one rounding, up or down, the same ones every time."""
    generator = torch.Generator().manual_seed(0)
    moves = torch.randint(128, embedded.shape, generator=generator, dtype=torch.uint8).to(embedded.device)
    step = torch.finfo(embedded.dtype).eps
    return embedded + embedded * ((moves == 0).to(embedded.dtype) - (moves == 1).to(embedded.dtype)) * step
