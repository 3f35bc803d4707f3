"""Reports and comparisons of held-out prompts: values worked by hand."""

from __future__ import annotations

import math

import pytest

from bapo.results import Estimate, PromptScores, compare_preferences, divergence_report, likelier, report, text_report


def prompt(*pairs: tuple[float, float], drift: float = 0.0, tokens: int = 10, bases: int = 1) -> PromptScores:
    return PromptScores(tuple(pairs), drift, tokens, bases)


def test_a_report_counts_pairs_and_a_tie_as_a_half() -> None:
    found = report([prompt((2.0, 1.0), (0.5, 0.5), drift=-4.0, bases=2), prompt((0.0, 3.0), drift=1.0, tokens=5)])
    assert found.reward_accuracy.value == pytest.approx(0.5)
    assert found.margin.value == pytest.approx((1.0 + 0.0 - 3.0) / 3)
    assert found.chosen.value == pytest.approx(2.5 / 3)
    assert found.rejected.value == pytest.approx(4.5 / 3)
    assert found.drift.value == pytest.approx(-3.0 / 3)
    assert found.drift_per_token.value == pytest.approx(-3.0 / 15)
    assert (found.prompts, found.pairs) == (2, 3)


def test_changes_are_between_the_same_pairs_and_bases() -> None:
    before = [prompt((1.0, 0.0), (0.0, 1.0), drift=-1.0), prompt((1.0, 1.0), drift=0.0, bases=2)]
    after = [prompt((1.0, 0.0), (2.0, 1.0), drift=-4.0), prompt((0.0, 1.0), drift=2.0, bases=2)]
    change = compare_preferences(before, after)
    assert change.reward_accuracy.value == pytest.approx(100 * (1.0 - 0.5) / 3)
    assert change.margin.value == pytest.approx((0.0 + 2.0 - 1.0) / 3)
    assert change.drift.value == pytest.approx((-3.0 + 2.0) / 3)
    assert change.reward_accuracy.low < change.reward_accuracy.value < change.reward_accuracy.high


def test_the_same_policy_has_changed_by_exactly_nothing() -> None:
    scores = [prompt((1.0, 0.0), drift=-1.0), prompt((0.0, 1.0), drift=2.0)]
    change = compare_preferences(scores, scores)
    for estimate in (change.reward_accuracy, change.margin, change.drift):
        assert (estimate.value, estimate.low, estimate.high) == (0.0, 0.0, 0.0)


def test_nats_a_token_as_percent() -> None:
    found = likelier(Estimate(-0.1, -0.2, 0.3))
    assert (found.value, found.low, found.high) == pytest.approx(
        (100 * (math.exp(-0.1) - 1), 100 * (math.exp(-0.2) - 1), 100 * (math.exp(0.3) - 1))
    )


def test_divergence_and_cross_entropy_are_per_token() -> None:
    moved = divergence_report([1.0, 3.0], [10, 30], floor=1e-4, precision="float32")
    assert (moved.per_token.value, moved.prompts, moved.tokens) == (pytest.approx(0.1), 2, 40)
    assert (moved.floor, moved.precision) == (1e-4, "float32")
    text = text_report([-20.0, -10.0], [-26.0, -13.0], [10, 5], again=[-20.3, -10.4])
    assert (text.before.value, text.after.value) == (pytest.approx(2.0), pytest.approx(2.6))
    assert (text.change.value, text.change.low, text.change.high) == pytest.approx((0.6, 0.6, 0.6))
    assert text.tokens == 15
    assert text.floor == pytest.approx(2 * 0.5 / 15)
