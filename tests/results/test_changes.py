"""Before and after: changes by hand, intervals that cover, a p that is McNemar's, a gate that seldom cries wolf."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom

from bapo.errors import BapoError
from bapo.reporting import forgetting_in_words
from bapo.results import Answer, BenchmarkAnswers, Estimate, Forgetting, changed_items, compare, forgetting, spread
from bapo.results.changes import items_enough, mcnemar, mean_change


def answers(scores: Sequence[float], benchmark: str = "piqa", start: int = 0) -> BenchmarkAnswers:
    own = tuple(
        Answer("t", start + i, "", "q", ("a", "b"), (-1.0, -2.0), 0 if s else 1, float(s), None)
        for i, s in enumerate(scores)
    )
    kind = "alignment" if benchmark == "hhh" else "knowledge"
    return BenchmarkAnswers(benchmark, own, len(own), kind, benchmark.upper())


def test_a_change_is_worked_by_hand() -> None:
    before, after = answers([1, 1, 1, 0, 0, 1, 1, 1]), answers([1, 0, 0, 1, 0, 0, 1, 1])
    change = compare(before, after)
    assert change.before.value == 6 / 8
    assert change.after.value == 4 / 8
    assert change.change.value == -25.0
    assert (change.gained, change.lost) == (1, 3)
    assert change.p == pytest.approx(0.625)  # 2 (1 + 4) / 16: at most one of four fair coins
    assert change.verdict == "cannot tell"
    half_width = (change.change.high - change.change.low) / 2
    assert change.enough == math.ceil(8 * half_width**2)
    assert [(old.document, new.document) for old, new in changed_items(before, after, "lost")] == [
        (1, 1),
        (2, 2),
        (5, 5),
    ]
    assert [new.document for _, new in changed_items(before, after, "gained")] == [3]


def test_a_change_says_of_what_it_is_and_is_the_same_each_time() -> None:
    before, after = answers([1, 1, 0, 1, 0, 1, 0] * 29, "hhh"), answers([1, 0, 0, 1, 1, 1, 0] * 29, "hhh")
    named = [replace(answer, category="ab"[at % 2]) for at, answer in enumerate(after.answers)]
    before, after = (
        replace(
            of,
            answers=tuple(replace(a, category=b.category) for a, b in zip(of.answers, named, strict=True)),
            questions=500,
        )
        for of in (before, after)
    )
    change = compare(before, after, seed=3)
    assert (change.kind, change.title, change.items, change.questions) == ("alignment", "HHH", 203, 500)
    part = change.categories["b"]
    assert (part.kind, part.title, part.items, part.questions) == ("alignment", "HHH", 101, None)
    assert compare(before, after, seed=3) == change
    other = compare(before, after, seed=4)
    assert (other.before, other.after) != (change.before, change.after), "the seed draws the intervals"


def test_a_zero_adapter_has_changed_exactly_nothing() -> None:
    same, aligned = answers([1, 0, 1, 1]), answers([1, 0, 1, 1], "hhh")
    change = compare(same, same)
    assert (change.change.value, change.change.low, change.change.high) == (0, 0, 0)
    assert (change.p, change.verdict, change.enough) == (1.0, "kept", None)
    score = forgetting({"piqa": same, "hhh": aligned}, {"piqa": same, "hhh": aligned}, budget=0.0)
    assert score is not None
    assert (score.score.value, score.score.low, score.score.high, score.gate) == (0, 0, 0, "no")
    assert score.benchmarks == ("piqa",), "alignment is no knowledge"
    assert forgetting({"hhh": aligned}, {"hhh": aligned}) is None


def test_other_questions_are_not_compared() -> None:
    with pytest.raises(BapoError, match="the same"):
        compare(answers([1, 0]), answers([1, 0], start=5))


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (0, 5), (3, 3), (10, 25), (200, 150), (1, 0)])
def test_p_is_that_of_mcnemars_exact_test(gained: int, lost: int) -> None:
    few, n = min(gained, lost), gained + lost
    assert mcnemar(gained, lost) == pytest.approx(min(1.0, 2 * binom.cdf(few, n, 0.5)) if n else 1.0)


def _simulated(generator: np.random.Generator, items: int, lost: float, gained: float) -> tuple[list, list]:
    before = generator.random(items) < 0.5
    draw = generator.random(items)
    after = np.where(before, draw >= 2 * lost, draw < 2 * gained)
    return before.astype(float).tolist(), after.astype(float).tolist()


def test_intervals_of_a_change_cover_the_truth_about_as_often_as_they_say() -> None:
    """500 samples of 300 questions; the truth is -3 points. Three standard errors of 95 % in 500 are 2.9 points."""
    generator, covered = np.random.default_rng(0), 0
    for trial in range(500):
        before, after = _simulated(generator, 300, lost=0.06, gained=0.03)
        estimate = mean_change(before, after, seed=trial)
        covered += estimate.low <= -3.0 <= estimate.high
    assert 0.92 <= covered / 500 <= 0.98


def test_resampling_counts_is_resampling_items() -> None:
    """Where many items changed; half an item more on each side hardly matters then."""
    generator = np.random.default_rng(1)
    before, after = _simulated(generator, 200, lost=0.1, gained=0.05)
    difference = 100 * (np.asarray(after) - np.asarray(before))
    means = difference[generator.integers(0, 200, size=(10_000, 200))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    estimate = mean_change(before, after)
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=0.51)  # one item is half a point


def test_few_changed_questions_are_no_certainty() -> None:
    """No question of 20 changed, or one did: other questions could have; a model that is the same is another matter."""
    before = answers([1.0] * 10 + [0.0] * 10)
    unsure = replace(before, answers=tuple(replace(own, logps=(-1.5, -2.5)) for own in before.answers))
    assert compare(before, unsure).verdict == "cannot tell"
    assert compare(before, answers([1.0] * 9 + [0.0] * 11)).verdict == "cannot tell"
    assert compare(before, before).change == Estimate(0.0, 0.0, 0.0)


@pytest.mark.parametrize(("items", "lost", "gained"), [(100, 0.01, 0.01), (500, 0.004, 0.0), (50, 0.02, 0.0)])
def test_intervals_of_rare_changes_cover_the_truth(items: int, lost: float, gained: float) -> None:
    generator, covered = np.random.default_rng(3), 0
    for trial in range(400):
        change = mean_change(*_simulated(generator, items, lost=lost, gained=gained), seed=trial)
        covered += change.low <= 100 * (gained - lost) <= change.high
    assert covered >= 0.92 * 400  # three standard errors below 95 %


def test_without_a_budget_no_number_of_questions_is_enough() -> None:
    change = compare(answers([1, 0, 1, 0]), answers([1, 0, 0, 0]), budget=0.0)
    assert (change.verdict, change.enough) == ("cannot tell", None)


@pytest.mark.parametrize("budget", [0.0, 1.0])
def test_the_gate_seldom_fails_a_model_that_lost_no_more_than_the_budget(budget: float) -> None:
    """400 models that lost exactly the budget on each of six benchmarks of 400 questions: at most 5 % of them fail."""
    generator, failed = np.random.default_rng(2), 0
    names = ("piqa", "siqa", "arc_challenge", "scienceqa", "commonsense_qa", "mmlu")
    for trial in range(400):
        pairs = [_simulated(generator, 400, lost=0.04 + budget / 100, gained=0.04) for _ in names]
        before = {name: answers(old, name) for name, (old, _) in zip(names, pairs, strict=True)}
        after = {name: answers(new, name) for name, (_, new) in zip(names, pairs, strict=True)}
        score = forgetting(before, after, budget=budget, seed=trial)
        assert score is not None
        failed += score.gate == "yes"
    assert failed / 400 <= 0.05


def test_the_gate_fails_a_model_that_lost_much_and_cannot_tell_from_little() -> None:
    generator = np.random.default_rng(3)
    old, new = _simulated(generator, 1000, lost=0.15, gained=0.02)
    found = forgetting({"piqa": answers(old)}, {"piqa": answers(new)})
    assert found is not None
    assert found.gate == "yes"
    few = forgetting({"piqa": answers([1] * 30)}, {"piqa": answers([1] * 29 + [0])})
    assert few is not None
    assert few.gate == "unclear"
    assert few.enough > 1


def test_the_gate_sees_a_loss_that_the_mean_hides() -> None:
    """One benchmark is lost, and five, at chance before and after, only add noise to the mean."""
    generator = np.random.default_rng(5)
    chance = ("siqa", "arc_challenge", "scienceqa", "commonsense_qa", "mmlu")
    pairs = {name: _simulated(generator, 200, lost=0.1, gained=0.1) for name in chance}
    pairs["piqa"] = _simulated(generator, 500, lost=0.15, gained=0.05)
    before = {name: answers(old, name) for name, (old, _) in pairs.items()}
    after = {name: answers(new, name) for name, (_, new) in pairs.items()}
    found = forgetting(before, after)
    assert found is not None
    assert found.score.high > -1, "of the mean it cannot be told"
    assert (found.gate, found.lost) == ("yes", ("piqa",))
    assert "more than 1 point was lost on PIQA" in forgetting_in_words("mine", found, 1.0)


def test_the_size_that_could_tell_has_an_interval_within_the_budget() -> None:
    assert items_enough(100, half_width=4.0, budget=1.0) == 1600
    assert items_enough(100, half_width=0.5, budget=1.0) is None
    generator = np.random.default_rng(4)
    old, new = _simulated(generator, 200, lost=0.05, gained=0.05)
    first = compare(answers(old), answers(new))
    assert first.enough is not None
    old, new = _simulated(generator, first.enough, lost=0.05, gained=0.05)
    second = mean_change(old, new)
    assert (second.high - second.low) / 2 == pytest.approx(1.0, rel=0.25)


def test_the_spread_is_the_standard_deviation_of_the_scores() -> None:
    def scored(value: float) -> Forgetting:
        return Forgetting(type(mean_change([0], [0]))(value, value, value), ("piqa",), (), "no", 1.0)

    assert spread([scored(-1.0), scored(-3.0)]) == pytest.approx(math.sqrt(2))
    assert math.isnan(spread([scored(1.0)]))
