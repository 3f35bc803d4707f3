"""The right choice's log-probability among the choices: it moves long before an answer flips.

An accuracy of a few hundred questions sees only answers that cross a border. What a model gives the right choice, as
the logarithm of its share among the choices, is another number for each question, and its paired change has a many
times narrower interval. It also moves where a model merely becomes surer or less sure of everything, so it is given
once more after each model's probabilities were brought to the sharpness that fits them best, by one temperature that is
fitted on the other half of the questions (Guo et al. 2017, "On calibration of modern neural networks").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from bapo.results.answers import BenchmarkAnswers
from bapo.results.estimates import Estimate, bootstrap_ratio

Array = NDArray[np.float64]
Choices = tuple[Sequence[float], int]
"""Of one question the probabilities of its choices, which sum to 1, and the index of the right one."""

_LEAST = 1e-300
_SHARPEST, _FLATTEST = 0.05, 20.0


def right_choice_logp(choices: Choices, temperature: float = 1.0) -> float:
    """Log-probability of the right choice among the choices, nats; at a temperature the probabilities are flatter.

    >>> round(right_choice_logp(([0.5, 0.25, 0.25], 0)), 3)
    -0.693
    """
    probabilities, right = choices
    scores = np.log(np.maximum(np.asarray(probabilities, dtype=np.float64), _LEAST)) / temperature
    return float(scores[right] - scores.max() - np.log(np.exp(scores - scores.max()).sum()))


def fit_temperature(questions: Sequence[Choices]) -> float:
    """The temperature at which the right choices are likeliest: above 1 for a model that is too sure.

    It lies between 0.05 and 20; a model that is always right, or never, has none that is best.
    """
    from scipy.optimize import minimize_scalar

    if not questions:
        return 1.0
    widest = max(len(probabilities) for probabilities, _ in questions)
    scores = np.full((len(questions), widest), -np.inf)
    for row, (probabilities, _) in zip(scores, questions, strict=True):
        row[: len(probabilities)] = np.log(np.maximum(np.asarray(probabilities, dtype=np.float64), _LEAST))
    scores -= scores.max(axis=1, keepdims=True)
    right = scores[np.arange(len(questions)), [right for _, right in questions]]

    def loss(log_temperature: float) -> float:
        flat = np.exp(-log_temperature)
        return float((np.log(np.exp(scores * flat).sum(axis=1)) - right * flat).mean())

    bounds = (np.log(_SHARPEST), np.log(_FLATTEST))
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x))


def tempered_logps(questions: Mapping[str, Sequence[Choices]]) -> dict[str, list[float]]:
    """`right_choice_logp` of each question by benchmark, at one temperature for the model, fitted on other questions.

    Every other question of each benchmark is one half; what one half says of the temperature, the other is given.
    """
    halves = [[choices for part in questions.values() for choices in part[half::2]] for half in (0, 1)]
    temperatures = [fit_temperature(halves[1]), fit_temperature(halves[0])]
    return {
        name: [right_choice_logp(choices, temperatures[at % 2]) for at, choices in enumerate(part)]
        for name, part in questions.items()
    }


def choices_of(answers: BenchmarkAnswers) -> list[Choices]:
    """The choices of each question, in order."""
    return [(answer.probabilities, answer.right) for answer in answers.answers]


def logp_changes(
    before: Mapping[str, BenchmarkAnswers], after: Mapping[str, BenchmarkAnswers]
) -> dict[str, tuple[Estimate, Estimate]]:
    """By benchmark, the paired change of the right choice's log-probability, as it is and tempered.

    Args:
        before, after: two models' answers to the same questions.

    Returns:
        Nats a question, with 95 % bootstrap intervals over questions.
    """
    chosen = [{name: choices_of(model[name]) for name in after} for model in (before, after)]
    tempered = [tempered_logps(of_model) for of_model in chosen]
    plain = [
        {name: [right_choice_logp(choices) for choices in part] for name, part in of_model.items()}
        for of_model in chosen
    ]
    return {
        name: (_change(*(model[name] for model in plain)), _change(*(model[name] for model in tempered)))
        for name in after
    }


def _change(before: Sequence[float], after: Sequence[float]) -> Estimate:
    return bootstrap_ratio([b - a for a, b in zip(before, after, strict=True)], [1.0] * len(before))
