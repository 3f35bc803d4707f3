"""Comparisons under a linear Bradley-Terry model (assumptions 1 and 2 of the paper), and the estimate of its parameter.

Shapes: N comparisons, d features, of which the last k carry the personal reward.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

FEATURE_BOUND = math.sqrt(1.5)
"""Features are uniform between minus this and this, so that a difference of two has variance 1."""

_LEAST_PENALTY, _MOST_PENALTY = 1e-9, 1e3


@dataclass(frozen=True, slots=True)
class Comparisons:
    """Drawn comparisons.

    Attributes:
        differences: phi(x, chosen) - phi(x, rejected), (N, d).
        parameter: theta_G and theta_L in one, (d,): the first d - k are general, the last k personal.
        personal: k.
    """

    differences: Array
    parameter: Array
    personal: int

    @property
    def general_reward(self) -> Array:
        """Of each comparison the difference that theta_G explains, (N,)."""
        general = len(self.parameter) - self.personal
        return self.differences[:, :general] @ self.parameter[:general]


def draw(d: int, k: int, n: int, generator: np.random.Generator, *, correlation: float = 0.0) -> Comparisons:
    """Draw comparisons of two responses each; theta_G and theta_L have norm 1 and random directions.

    Args:
        d: features.
        k: how many of them, the last ones, carry the personal reward.
        n: comparisons.
        generator: of the draws.
        correlation: of each personal feature with a general one of its own, from 0 to below 1.

    Raises:
        ValueError: k is not from 1 to d - 1, or there are not enough general features to correlate with.
    """
    if not 0 < k < d or (correlation and 2 * k > d):
        raise ValueError(f"k={k} personal features of d={d} leave too few general ones.")
    parameter = np.concatenate([_direction(d - k, generator), _direction(k, generator)])
    first, second = (_features(d, k, n, generator, correlation) for _ in range(2))
    differences = first - second
    first_wins = generator.random(n) < 1 / (1 + np.exp(-differences @ parameter))
    return Comparisons(np.where(first_wins[:, None], differences, -differences), parameter, k)


def _direction(size: int, generator: np.random.Generator) -> Array:
    vector = generator.standard_normal(size)
    direction: Array = vector / np.linalg.norm(vector)
    return direction


def _features(d: int, k: int, n: int, generator: np.random.Generator, correlation: float) -> Array:
    features = generator.uniform(-FEATURE_BOUND, FEATURE_BOUND, (n, d))
    mixed = correlation * features[:, :k] + math.sqrt(1 - correlation**2) * features[:, d - k :]
    return np.concatenate([features[:, : d - k], mixed], axis=1) if correlation else features


def maximum_likelihood(differences: Array, radius: float, known: Array | None = None) -> Array:
    """The maximum-likelihood parameter in a ball (equation 7; equation 9 where only some features are handed over).

    Where the maximum lies outside of the ball, the best point on its sphere is the maximum under a quadratic penalty
    whose weight makes the norm the radius.

    Args:
        differences: (N, d), chosen less rejected.
        radius: B, of the ball.
        known: of each comparison the reward difference that is known already, (N,).

    Returns:
        (d,).
    """
    from scipy.optimize import brentq

    known = np.zeros(len(differences)) if known is None else known

    def excess(log_penalty: float) -> float:
        return float(np.linalg.norm(_penalized(differences, known, math.exp(log_penalty))) - radius)

    least = math.log(_LEAST_PENALTY)
    if excess(least) <= 0:
        return _penalized(differences, known, _LEAST_PENALTY)
    log_penalty = brentq(excess, least, math.log(_MOST_PENALTY), xtol=1e-6)
    return _penalized(differences, known, math.exp(log_penalty))


def _penalized(differences: Array, known: Array, penalty: float) -> Array:
    """The minimum of the mean Bradley-Terry loss and penalty / 2 times the squared norm."""
    from scipy.optimize import minimize

    n, d = differences.shape

    def loss(theta: Array) -> tuple[float, Array]:
        margins = differences @ theta + known
        wrong = 1 / (1 + np.exp(np.clip(margins, -500, 500)))
        gradient = -(differences.T @ wrong) / n + penalty * theta
        return float(np.logaddexp(0, -margins).mean() + penalty / 2 * theta @ theta), gradient

    def curvature(theta: Array) -> Array:
        wrong = 1 / (1 + np.exp(np.clip(differences @ theta + known, -500, 500)))
        weighted = differences * (wrong * (1 - wrong))[:, None]
        matrix: Array = differences.T @ weighted / n + penalty * np.eye(d)
        return matrix

    solved: Any = minimize(loss, np.zeros(d), jac=True, hess=curvature, method="trust-exact", options={"gtol": 1e-9})
    theta: Array = solved.x
    return theta
