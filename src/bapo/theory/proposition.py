"""Proposition 1: how the error of an estimate grows with d, k and n, with and without knowing theta_G.

The proposition says that knowing theta_G takes the estimate of theta_L from an error of order sqrt(d / n) to one of
order sqrt(k / n). Four estimates are compared, each in the norm of the lemma that bounds it:

* ``whole``: all of theta by equation 7, in the norm of Sigma_D (lemma 1);
* ``personal part``: the last k of that, in the norm of Sigma_D^L;
* ``general known``: theta_L, with the reward that theta_G explains handed over;
* ``equation 9``: theta_L as equation 9 is written, which leaves that reward out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bapo.results import Estimate, Kind
from bapo.theory.bradley_terry import FEATURE_BOUND, Array, Comparisons, draw, maximum_likelihood

ESTIMATORS = ("whole", "personal part", "general known", "equation 9")
RADIUS, PERSONAL_RADIUS = 2.0, 1.5
"""B and B': theta has norm sqrt(2), theta_L has norm 1."""

DELTA = 0.05
"""The bound should hold with probability 1 - delta."""

SETTINGS: dict[str, dict[str, Any]] = {
    "n": {"d": 64, "k": 4, "values": (500, 1000, 2000, 4000, 8000)},
    "d": {"k": 4, "n": 4000, "values": (8, 16, 32, 64, 128)},
    "k": {"d": 64, "n": 4000, "values": (2, 4, 8, 16, 32)},
    "correlation": {"d": 64, "k": 4, "n": 4000, "values": (0.0, 0.5, 0.9, 0.99)},
}
"""By what is varied: what stays, and the values."""


@dataclass(frozen=True, slots=True)
class Point:
    """One setting.

    Attributes:
        value: of what is varied.
        errors: by estimator, the mean error over the repeats, with its interval.
        covered: share of the repeats in which lemma 1's bound of ``whole`` holds with C' = 1 and lambda = 1 / n.
        bound: that bound over the mean error that it bounds.
        constant: the smallest constant with which sqrt((d + log(1 / delta)) / n) would hold in a share 1 - delta of
            the repeats: lemma 1 without gamma and lambda.
    """

    value: float
    errors: dict[str, Estimate]
    covered: float
    bound: float
    constant: float


@dataclass(frozen=True, slots=True)
class Slope:
    """Of log error over the log of what is varied, by least squares, with an interval over resampled repeats."""

    fitted: Estimate
    promised: float


@dataclass(frozen=True, slots=True)
class Sweep:
    """One thing varied.

    Attributes:
        varied: n, d, k, or correlation.
        fixed: the others.
        points: in order of the values.
        slopes: by estimator; none where a correlation is varied.
    """

    varied: str
    fixed: dict[str, float]
    points: tuple[Point, ...]
    slopes: dict[str, Slope]


@dataclass(frozen=True, slots=True)
class Proposition:
    """What the simulation found.

    Attributes:
        repeats: draws for each setting.
        seed: of the draws.
        sweeps: by what is varied.
        covered: the least share of draws of a setting in which lemma 1's bound holds.
        bounds: how far it is above the error, least and most over the settings.
        constants: as `Point.constant`, least and most.
    """

    repeats: int
    seed: int
    sweeps: tuple[Sweep, ...]
    covered: float
    bounds: tuple[float, float]
    constants: tuple[float, float]


PROPOSITION = Kind("proposition", 1, Proposition)


def simulate(
    repeats: int = 40,
    seed: int = 0,
    settings: dict[str, dict[str, Any]] | None = None,
    on_progress: Callable[..., None] = lambda *_: None,
) -> Proposition:
    """Draw, estimate and fit.

    Args:
        repeats: draws for each setting.
        seed: of the draws.
        settings: as `SETTINGS`.
        on_progress: told the stage, how many settings are done, and of how many.
    """
    settings = SETTINGS if settings is None else settings
    total, done = sum(len(fixed["values"]) for fixed in settings.values()), 0
    sweeps = []
    for number, (varied, fixed) in enumerate(settings.items()):
        rows = []
        for value in fixed["values"]:
            on_progress("simulating", done, total, f"{varied} = {value}")
            generator = np.random.default_rng([seed, number, int(1000 * value)])
            others = {name: other for name, other in fixed.items() if name != "values"}
            rows.append([_repeat(draw(**{**others, varied: value}, generator=generator)) for _ in range(repeats)])
            done += 1
        sweeps.append(_sweep(varied, fixed, rows, np.random.default_rng([seed, number])))
    on_progress("simulating", total, total)
    points = [point for sweep in sweeps for point in sweep.points]
    bounds, constants = [point.bound for point in points], [point.constant for point in points]
    return Proposition(
        repeats,
        seed,
        tuple(sweeps),
        covered=min(point.covered for point in points),
        bounds=(min(bounds), max(bounds)),
        constants=(min(constants), max(constants)),
    )


@dataclass(frozen=True, slots=True)
class _Repeat:
    errors: dict[str, float]
    bound: float
    rate: float


def _repeat(drawn: Comparisons) -> _Repeat:
    """The errors of all estimates on one draw."""
    n, d = drawn.differences.shape
    general = d - drawn.personal
    personal = drawn.differences[:, general:]
    sigma, sigma_personal = (z.T @ z / n for z in (drawn.differences, personal))
    whole = maximum_likelihood(drawn.differences, RADIUS)
    estimates = {
        "whole": (whole - drawn.parameter, sigma),
        "personal part": ((whole - drawn.parameter)[general:], sigma_personal),
        "general known": (
            maximum_likelihood(personal, PERSONAL_RADIUS, drawn.general_reward) - drawn.parameter[general:],
            sigma_personal,
        ),
        "equation 9": (maximum_likelihood(personal, PERSONAL_RADIUS) - drawn.parameter[general:], sigma_personal),
    }
    errors = {name: math.sqrt(miss @ norm @ miss) for name, (miss, norm) in estimates.items()}
    reach = FEATURE_BOUND * math.sqrt(d) * RADIUS  # L B
    gamma = 1 / (2 + math.exp(-reach) + math.exp(reach))
    log_terms = d + math.log(1 / DELTA)
    bound = math.sqrt(log_terms / (gamma**2 * n) + RADIUS**2 / n)
    return _Repeat(errors, bound, math.sqrt(log_terms / n))


def _sweep(
    varied: str, fixed: dict[str, Any], rows: Sequence[Sequence[_Repeat]], generator: np.random.Generator
) -> Sweep:
    values = fixed["values"]
    errors = {name: np.array([[repeat.errors[name] for repeat in row] for row in rows]) for name in ESTIMATORS}
    points = []
    for index, (value, row) in enumerate(zip(values, rows, strict=True)):
        ratios = sorted(repeat.errors["whole"] / repeat.rate for repeat in row)
        points.append(
            Point(
                float(value),
                {name: _mean(errors[name][index], generator) for name in ESTIMATORS},
                sum(repeat.errors["whole"] <= repeat.bound for repeat in row) / len(row),
                row[0].bound / float(errors["whole"][index].mean()),
                float(np.quantile(ratios, 1 - DELTA)),
            )
        )
    slopes = {}
    if varied != "correlation":
        promised = {"n": (-0.5, -0.5), "d": (0.5, 0.0), "k": (0.0, 0.5)}[varied]
        for name in ESTIMATORS:
            fitted = _fitted_slope(np.log(values), errors[name], generator)
            slopes[name] = Slope(fitted, promised[0 if name == "whole" else 1])
    return Sweep(varied, {k: float(v) for k, v in fixed.items() if k != "values"}, tuple(points), slopes)


_RESAMPLES = 1000


def _mean(errors: Array, generator: np.random.Generator) -> Estimate:
    drawn = generator.integers(0, len(errors), (_RESAMPLES, len(errors)))
    low, high = np.quantile(errors[drawn].mean(axis=1), (0.025, 0.975))
    return Estimate(float(errors.mean()), float(low), float(high))


def _fitted_slope(log_values: Array, errors: Array, generator: np.random.Generator) -> Estimate:
    """Of log mean error over log value; the interval is over resampled repeats of each value."""

    def slope(means: Array) -> Array:
        centred = log_values - log_values.mean()
        fitted: Array = centred @ np.log(means) / (centred @ centred)
        return fitted

    drawn = generator.integers(0, errors.shape[1], (_RESAMPLES, *errors.shape))
    means = np.take_along_axis(errors[None], drawn, axis=2).mean(axis=2)  # (resamples, values)
    low, high = np.quantile([slope(row) for row in means], (0.025, 0.975))
    return Estimate(float(slope(errors.mean(axis=1))), float(low), float(high))
