"""The right choice's log-probability among the choices: it moves long before an answer flips.

An accuracy of a few hundred questions sees only answers that cross a border. What a model gives the right choice, as
the logarithm of its share among the choices, is another number for each question. It also moves where a model merely
becomes surer or less sure of everything, so it is given once more at the sharpness that fits each model best: with one
temperature for each benchmark, fitted on the other half of its questions (Guo et al. 2017, "On calibration of modern
neural networks"). docs/measures.md says what each of them can see.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bapo.results.answers import Answer, BenchmarkAnswers
from bapo.results.estimates import Estimate, bootstrap_ratio

Array = NDArray[np.float64]
Choices = tuple[Sequence[float], int]
"""Of one question the log-likelihoods of its choices, nats, and the index of the right one."""

_SHARPEST, _FLATTEST = 0.05, 1000.0


def right_choice_logp(choices: Choices, temperature: float = 1.0) -> float:
    """Log-probability of the right choice among the choices, nats; at a higher temperature all are more alike.

    >>> round(right_choice_logp(([-10.0, -10.0, -10.0], 0)), 3)
    -1.099
    """
    logps, right = choices
    scores = np.asarray(logps, dtype=np.float64) / temperature
    return float(scores[right] - scores.max() - np.log(np.exp(scores - scores.max()).sum()))


def fit_temperature(questions: Sequence[Choices]) -> float:
    """The temperature at which the right choices are likeliest: above 1 for a model that is too sure.

    It lies between 0.05 and 1,000; a model that knows nothing has none that is best.
    """
    from scipy.optimize import minimize_scalar

    if not questions:
        return 1.0
    scores = np.full((len(questions), max(len(logps) for logps, _ in questions)), -np.inf)
    for row, (logps, _) in zip(scores, questions, strict=True):
        row[: len(logps)] = logps
    scores -= scores.max(axis=1, keepdims=True)
    right = scores[np.arange(len(questions)), [right for _, right in questions]]

    def loss(log_temperature: float) -> float:
        flat = np.exp(-log_temperature)
        return float((np.log(np.exp(scores * flat).sum(axis=1)) - right * flat).mean())

    bounds = (np.log(_SHARPEST), np.log(_FLATTEST))
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x))


def tempered_logps(questions: Sequence[Choices]) -> list[float]:
    """`right_choice_logp` of each question of a benchmark, at a temperature that is fitted on other ones.

    Every other question is one half; what one half says of the temperature, the other is given.
    """
    temperatures = [fit_temperature(questions[1::2]), fit_temperature(questions[0::2])]
    return [right_choice_logp(choices, temperatures[at % 2]) for at, choices in enumerate(questions)]


def logp_changes(before: BenchmarkAnswers, after: BenchmarkAnswers) -> tuple[Estimate, Estimate]:
    """The paired change of the right choice's log-probability between two models, as it is and tempered.

    Args:
        before, after: their answers to the same questions.

    Returns:
        Nats a question, with 95 % bootstrap intervals over questions.
    """
    was, now = ([(answer.logps, answer.right) for answer in model.answers] for model in (before, after))
    plain = _change([right_choice_logp(choices) for choices in was], [right_choice_logp(choices) for choices in now])
    return plain, _change(tempered_logps(was), tempered_logps(now))


def rounding_between(once: Sequence[Answer], again: Sequence[Answer]) -> float:
    """What moves a question's `right_choice_logp` between two passes of one model, nats, root mean square.

    Args:
        once, again: answers to the same questions, at least one, which differ by rounding alone.
    """
    was, now = ([right_choice_logp((answer.logps, answer.right)) for answer in answers] for answers in (once, again))
    return float(np.sqrt(np.mean(np.square(np.subtract(now, was)))))


def floor_of_change(rounding: float | None, questions: int) -> float | None:
    """What rounding alone makes of a mean change of so many questions, nats; None where it is not known.

    Questions are rounded independently of each other, so a mean is moved by the square root of their number less. The
    floor is twice that, which rounding alone exceeds once in twenty times (if its size is known from eight questions,
    once in twelve: Student's t).

    Args:
        rounding: of a question of one model, `rounding_between`.
        questions: that the mean is over.
    """
    return None if rounding is None else 2 * rounding / questions**0.5


def _change(before: Sequence[float], after: Sequence[float]) -> Estimate:
    return bootstrap_ratio([b - a for a, b in zip(before, after, strict=True)], [1.0] * len(before))
