"""Proposition 1 of the paper as a simulation: what knowing the general reward is worth for the personal one."""

from bapo.theory.bradley_terry import FEATURE_BOUND, Comparisons, draw, maximum_likelihood
from bapo.theory.proposition import (
    ESTIMATORS,
    PROPOSITION,
    Point,
    Proposition,
    Slope,
    Sweep,
    simulate,
)

__all__ = [
    "ESTIMATORS",
    "FEATURE_BOUND",
    "PROPOSITION",
    "Comparisons",
    "Point",
    "Proposition",
    "Slope",
    "Sweep",
    "draw",
    "maximum_likelihood",
    "simulate",
]
