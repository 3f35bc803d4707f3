"""Intervals by resampling prompts: the pairs of a prompt are not independent, prompts are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its 95 % bootstrap interval; ends that are not numbers say that no interval can be known."""

    value: float
    low: float
    high: float


NOTHING = Estimate(float("nan"), float("nan"), float("nan"))
"""The mean of nothing."""


def bootstrap_ratio(
    totals: Sequence[float], counts: Sequence[float], *, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """Sum of totals over sum of counts, resampling the units (prompts) that they belong to.

    Args:
        totals: per unit, the sum of what is averaged.
        counts: per unit, how many things were summed.
        resamples: bootstrap samples.
        seed: seed of the resampling.

    Returns:
        The ratio and its 2.5 % and 97.5 % percentiles; not-a-number where nothing was counted. One unit that is not
        zero has a ratio and no interval: it says nothing of others.
    """
    total, count = np.asarray(totals, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    if not len(total) or count.sum() == 0:
        return NOTHING
    ratio = float(total.sum() / count.sum())
    if len(total) == 1 and ratio:
        return Estimate(ratio, float("nan"), float("nan"))
    draws = np.random.default_rng(seed).integers(0, len(total), size=(resamples, len(total)))
    return _estimate(ratio, total[draws].sum(axis=1), count[draws].sum(axis=1))


def bootstrap_share(
    totals: Sequence[float],
    counts: Sequence[float],
    *,
    same: bool = False,
    least: float = 0.0,
    most: float = 1.0,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """`bootstrap_ratio` of a share, such as an accuracy, whose interval does not collapse where all units agree.

    Half a unit in which everything is right and half a unit in which everything is wrong are added to those that are
    resampled, each with as many things as the mean unit (after Agresti and Min, "Simple improved confidence intervals
    for comparing matched proportions", 2005, as for changes): where four of four prompts are right, the plain bootstrap
    knows nothing of the wrong ones that the sample happens not to have, and its interval would be a point. The share
    itself is that of the sample.

    Args:
        totals: per unit, how many things are right; a half counts.
        counts: per unit, how many things there are.
        same: whether it is known that every unit has this share, so that the interval is a point.
        least, most: what a thing counts at least and at most; a change of a share is from -1 to 1.
        resamples: bootstrap samples.
        seed: seed of the resampling.
    """
    total, count = np.asarray(totals, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    if not len(total) or count.sum() == 0:
        return NOTHING
    share = float(total.sum() / count.sum())
    if same:
        return Estimate(share, share, share)
    units, times = np.unique(np.stack([total, count], axis=1), axis=0, return_counts=True)
    pseudo = np.array([[most, 1.0], [least, 1.0]]) * count.mean()
    weights = np.concatenate([times, [0.5, 0.5]])
    drawn = np.random.default_rng(seed).multinomial(len(total), weights / weights.sum(), size=resamples)
    sums = drawn @ np.concatenate([units, pseudo])
    return _estimate(share, sums[:, 0], sums[:, 1])


def _estimate(value: float, totals: np.ndarray, counts: np.ndarray) -> Estimate:
    low, high = np.percentile(totals[counts > 0] / counts[counts > 0], [2.5, 97.5])
    return Estimate(value, float(low), float(high))
