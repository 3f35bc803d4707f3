"""The right choice's log-probability: its values, its temperature, and that it sees what accuracy does not."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bapo.results.answers import Answer, BenchmarkAnswers
from bapo.results.changes import compare
from bapo.results.right_choice import (
    fit_temperature,
    floor_of_change,
    logp_changes,
    right_choice_logp,
    rounding_between,
    tempered_logps,
)


def benchmark(scores: np.ndarray, right: np.ndarray, name: str = "piqa") -> BenchmarkAnswers:
    answers = [
        Answer("task", at, "", "q", ("a", "b", "c"), tuple(row), int(index), float(row.argmax() == index), None)
        for at, (row, index) in enumerate(zip(scores, right, strict=True))
    ]
    return BenchmarkAnswers(name, answers, len(answers), "knowledge", name)


def drawn(number: int, *, seed: int = 0, knows: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Log-likelihoods of three choices, of which the right one is by ``knows`` better in the mean."""
    generator = np.random.default_rng(seed)
    right = generator.integers(0, 3, number)
    scores = generator.normal(size=(number, 3)) - 40
    scores[np.arange(number), right] += knows
    return scores, right


def test_it_is_the_log_of_the_share_among_the_choices() -> None:
    logps = [math.log(p) - 7 for p in (0.2, 0.3, 0.5)]
    assert right_choice_logp((logps, 1)) == pytest.approx(math.log(0.3))
    odds = np.array([0.2, 0.3, 0.5]) ** 0.5
    assert right_choice_logp((logps, 1), 2.0) == pytest.approx(math.log(odds[1] / odds.sum()))
    assert right_choice_logp(([0.0, -2000.0], 1)) == -2000


def test_the_fitted_temperature_is_the_one_by_which_scores_were_sharpened() -> None:
    generator = np.random.default_rng(1)
    scores = generator.normal(size=(20_000, 4))
    odds = np.exp(scores)
    right = [int(generator.choice(4, p=row / row.sum())) for row in odds]
    for sharper in (1.0, 30.0, 0.4):
        questions = [(row * sharper, index) for row, index in zip(scores, right, strict=True)]
        assert fit_temperature(questions) == pytest.approx(sharper, rel=0.05)


def test_each_half_of_the_questions_is_tempered_by_the_other() -> None:
    sure, unsure = ([-1.0, -5.0, -5.0], 0), ([-1.0, -5.0, -5.0], 1)
    tempered = tempered_logps([sure, unsure] * 50)
    assert tempered[0] == pytest.approx(right_choice_logp(sure, fit_temperature([unsure] * 50)))
    assert tempered[1] == pytest.approx(right_choice_logp(unsure, fit_temperature([sure] * 50)))


def test_a_model_that_only_got_sharper_has_changed_but_not_tempered() -> None:
    scores, right = drawn(2000)
    plain, tempered = logp_changes(benchmark(scores, right), benchmark(3 * scores, right))
    assert plain.high < -0.1
    assert abs(tempered.value) < 0.001


def test_it_sees_a_small_loss_more_often_than_accuracy_does() -> None:
    """Of fifty models whose scores all moved a little, and those of 300 right choices down by a tenth of a nat."""
    seen = {"accuracy": 0, "plain": 0, "tempered": 0}
    for seed in range(50):
        scores, right = drawn(300, seed=seed)
        worse = scores + 0.2 * np.random.default_rng(1000 + seed).normal(size=scores.shape)
        worse[np.arange(300), right] -= 0.1
        before, after = benchmark(scores, right), benchmark(worse, right)
        plain, tempered = logp_changes(before, after)
        seen["accuracy"] += compare(before, after).change.high < 0
        seen["plain"] += plain.high < 0
        seen["tempered"] += tempered.high < 0
    assert seen["plain"] > seen["accuracy"]
    assert seen["tempered"] > seen["accuracy"]


def test_the_same_answers_have_changed_by_exactly_nothing() -> None:
    scores, right = drawn(50)
    for change in logp_changes(benchmark(scores, right), benchmark(scores, right)):
        assert (change.value, change.low, change.high) == (0.0, 0.0, 0.0)


def test_rounding_is_the_root_mean_square_of_what_moves_and_the_floor_falls_with_the_questions() -> None:
    once = benchmark(np.log([[0.2, 0.3, 0.5], [0.6, 0.2, 0.2]]), np.array([0, 1])).answers
    again = benchmark(np.log([[0.1, 0.4, 0.5], [0.6, 0.2, 0.2]]) - 7, np.array([0, 1])).answers
    rounding = rounding_between(once, again)
    assert rounding == pytest.approx(math.log(2) / math.sqrt(2))
    assert floor_of_change(rounding, 16) == pytest.approx(2 * rounding / 4)
    assert floor_of_change(None, 16) is None
    assert rounding_between(once, once) == 0


def test_rounding_alone_exceeds_a_floor_of_eight_questions_once_in_twelve_times() -> None:
    """Passes of one model that differ by noise in each choice."""
    generator, exceeded, asked = np.random.default_rng(0), 0, 100
    for seed in range(400):
        scores, right = drawn(asked, seed=seed)
        first, second = (benchmark(scores + 0.05 * generator.normal(size=(asked, 3)), right) for _ in ("once", "again"))
        floor = floor_of_change(rounding_between(first.answers[:8], second.answers[:8]), asked)
        was, now = (
            [right_choice_logp((answer.logps, answer.right)) for answer in answers.answers]
            for answers in (first, second)
        )
        assert floor is not None
        exceeded += abs(np.mean(now) - np.mean(was)) > floor
    assert 16 <= exceeded <= 48  # 32 are expected; so few or so many come once in 300
