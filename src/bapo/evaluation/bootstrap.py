"""Intervals by resampling prompts: the pairs of a prompt are not independent, prompts are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its 95 % percentile-bootstrap interval."""

    value: float
    low: float
    high: float


def bootstrap_ratio(
    totals: Sequence[float], counts: Sequence[float], *, resamples: int = 2000, seed: int = 0
) -> Estimate:
    """Sum of totals over sum of counts, resampling the units (prompts) that they belong to.

    Args:
        totals: per unit, the sum of what is averaged.
        counts: per unit, how many things were summed.
        resamples: bootstrap samples.
        seed: seed of the resampling.

    Returns:
        The ratio and its 2.5 % and 97.5 % percentiles; not-a-number where nothing was counted.
    """
    total, count = np.asarray(totals, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    if not len(total) or count.sum() == 0:
        return Estimate(float("nan"), float("nan"), float("nan"))
    draws = np.random.default_rng(seed).integers(0, len(total), size=(resamples, len(total)))
    sampled = count[draws].sum(axis=1)
    ratios = total[draws].sum(axis=1)[sampled > 0] / sampled[sampled > 0]
    low, high = np.percentile(ratios, [2.5, 97.5])
    return Estimate(float(total.sum() / count.sum()), float(low), float(high))
