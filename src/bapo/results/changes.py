"""Before and after: what changed between two models that answered the same questions, and how sure that is.

Changes are in points (hundredths of accuracy). Both models answered the same items, so everything here is paired.
Intervals are percentile bootstraps over items, with half a gained and half a lost item added (after Agresti and Min,
"Simple improved confidence intervals for comparing matched proportions", 2005): where few items changed, the plain
bootstrap knows nothing of the changes that the sample happens not to have. Only models with the same log-likelihoods
throughout have changed by exactly nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from bapo.errors import BapoError
from bapo.results.answers import Answer, BenchmarkAnswers, BenchmarkKind
from bapo.results.estimates import Estimate, bootstrap_share

RESAMPLES = 10_000

BUDGET = 1.0
"""Points that a model may lose and still count as having kept what it knew."""

Verdict = Literal["kept", "lost", "gained", "cannot tell"]
Gate = Literal["no", "yes", "unclear"]
Outcome = Literal["lost", "gained"]


@dataclass(frozen=True, slots=True)
class Change:
    """How a benchmark's accuracy changed.

    Attributes:
        benchmark: its name.
        before, after: accuracies with 95 % bootstrap intervals.
        change: after minus before in points, with its paired 95 % bootstrap interval.
        p: McNemar's exact p: how likely so uneven gains and losses are if neither model is better.
        gained, lost: questions that only the model after, or only the model before, has right.
        items: questions asked.
        questions: questions that there are; None of a category.
        verdict: lost and gained where the interval lies on one side of zero, kept where it lies within the budget, else
            cannot tell.
        enough: questions with which the interval would be as narrow as the budget; None where it is.
        kind, title: of the benchmark.
        categories: the same for each of the benchmark's categories, where it has some.
        right_choice: change of the right choice's log-probability among the choices, nats; ``tempered`` once more after
            each model's own temperature (`bapo.results.right_choice`). None of a category.
        floor: what rounding alone makes of ``right_choice``, nats; None where that was not measured.
    """

    benchmark: str
    before: Estimate
    after: Estimate
    change: Estimate
    p: float
    gained: int
    lost: int
    items: int
    questions: int | None
    verdict: Verdict
    enough: int | None
    kind: BenchmarkKind = "knowledge"
    title: str = ""
    categories: Mapping[str, Change] = field(default_factory=dict)
    right_choice: Estimate | None = None
    tempered: Estimate | None = None
    floor: float | None = None


def compare(before: BenchmarkAnswers, after: BenchmarkAnswers, *, budget: float = BUDGET, seed: int = 0) -> Change:
    """Compare two models' answers to one benchmark.

    Args:
        before: of the model that is compared with.
        after: of the model in question.
        budget: points within which a change counts as none.
        seed: seed of the resampling.

    Raises:
        BapoError: they did not answer the same questions.
    """
    if [(a.task, a.document) for a in before.answers] != [(a.task, a.document) for a in after.answers]:
        raise BapoError(
            f"The two models did not answer the same questions of {before.benchmark}: evaluate both with the same "
            "--limit, --question-seed and --ask."
        )
    after_by_category = after.by_category()
    categories = {
        name: _compare(before, answers, after_by_category[name], budget, seed)
        for name, answers in before.by_category().items()
    }
    return replace(_compare(before, before.answers, after.answers, budget, seed), categories=categories)


def _compare(
    benchmark: BenchmarkAnswers, before: Sequence[Answer], after: Sequence[Answer], budget: float, seed: int
) -> Change:
    old, new = [answer.score for answer in before], [answer.score for answer in after]
    change = mean_change(old, new, same=tuple(before) == tuple(after), seed=seed)
    gained, lost = (len(_changed(before, after, which)) for which in ("gained", "lost"))
    ones = [1.0] * len(old)
    return Change(
        benchmark=benchmark.benchmark,
        before=bootstrap_share(old, ones, seed=seed),
        after=bootstrap_share(new, ones, seed=seed),
        change=change,
        p=mcnemar(gained, lost),
        gained=gained,
        lost=lost,
        items=len(old),
        questions=benchmark.questions if len(old) == len(benchmark.answers) else None,
        verdict=_verdict(change.low, change.high, budget),
        enough=items_enough(len(old), (change.high - change.low) / 2, budget),
        kind=benchmark.kind,
        title=benchmark.title,
    )


def _changed(before: Sequence[Answer], after: Sequence[Answer], which: Outcome) -> list[tuple[Answer, Answer]]:
    sign = 1 if which == "gained" else -1
    return [(a, b) for a, b in zip(before, after, strict=True) if sign * (b.score - a.score) > 0]


def mean_change(before: Sequence[float], after: Sequence[float], *, same: bool = False, seed: int = 0) -> Estimate:
    """Mean of after - before in points, with its 95 % bootstrap interval over items.

    Args:
        before: 1.0 for each item that was right, else 0.0.
        after: the same of the other model.
        same: whether the models are known to be the same, so that the interval is a point.
        seed: seed of the resampling.
    """
    difference = _differences(before, after)
    means = _resampled_means(difference, np.random.default_rng(seed), same)
    low, high = np.percentile(means, [2.5, 97.5])
    return Estimate(float(difference.mean()), float(low), float(high))


def _differences(before: Sequence[float], after: Sequence[float]) -> np.ndarray:
    points: np.ndarray = 100 * (np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64))
    return points


def _resampled_means(differences: np.ndarray, generator: np.random.Generator, same: bool) -> np.ndarray:
    """Means of `RESAMPLES` resamples; drawn as counts of lost, unchanged and gained items, which is much faster."""
    if same:
        return np.zeros(RESAMPLES)
    values = np.array([-100.0, 0.0, 100.0])
    counts = np.array([(differences == value).sum() for value in values]) + np.array([0.5, 0.0, 0.5])
    drawn = generator.multinomial(len(differences), counts / counts.sum(), size=RESAMPLES)
    means: np.ndarray = drawn @ values / len(differences)
    return means


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided exact p of McNemar's test (1947): gains and losses are a fair coin's heads and tails."""
    from scipy.stats import binomtest

    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def items_enough(items: int, half_width: float, budget: float) -> int | None:
    """Questions with which an interval of this half-width would shrink to the budget.

    None where it already has, and where the budget is nothing at all, to which no interval shrinks.
    """
    return None if half_width <= budget or not budget else math.ceil(items * (half_width / budget) ** 2)


def _verdict(low: float, high: float, budget: float) -> Verdict:
    if high < 0:
        return "lost"
    if low > 0:
        return "gained"
    return "kept" if -budget <= low and high <= budget else "cannot tell"


def gate(figure: Estimate, least: float) -> Gate:
    """Whether a figure is below the least allowed: yes, if all of its interval is; no, if nothing of it is."""
    return "yes" if figure.high < least else "no" if figure.low >= least else "unclear"


@dataclass(frozen=True, slots=True)
class Forgetting:
    """The forgetting score: mean change over the knowledge benchmarks, each weighing the same.

    Attributes:
        score: points with a 95 % interval (items resampled within each benchmark); negative is forgetting.
        benchmarks: what it is the mean of.
        lost: benchmarks that alone lost more than the budget beyond doubt. A mean hides a loss among benchmarks whose
            questions the model never could answer, so each is judged by itself too, all of them together at the
            level of the score (Bonferroni).
        gate: whether more than the budget was lost: yes (the score, or one of ``lost``, beyond doubt; of models that
            lost just the budget everywhere at most 5 % are told so), no, or unclear at this sample size.
        enough: times as many questions with which the interval would be as narrow as the budget; 1 where it is.
        titles: what the benchmarks are called in tables.
    """

    score: Estimate
    benchmarks: tuple[str, ...]
    lost: tuple[str, ...]
    gate: Gate
    enough: float
    titles: Mapping[str, str] = field(default_factory=dict)


def forgetting(
    before: Mapping[str, BenchmarkAnswers],
    after: Mapping[str, BenchmarkAnswers],
    *,
    budget: float = BUDGET,
    seed: int = 0,
) -> Forgetting | None:
    """The forgetting score of a model against another; None where no knowledge benchmark was asked."""
    names = tuple(name for name in before if before[name].kind == "knowledge")
    if not names:
        return None
    generator = np.random.default_rng(seed)
    means, values, lost = np.zeros(RESAMPLES), [], []
    for name in names:
        difference = _differences(before[name].scores, after[name].scores)
        values.append(float(difference.mean()))
        resampled = _resampled_means(difference, generator, before[name].answers == after[name].answers)
        means += resampled / len(names)
        if np.percentile(resampled, 100 - 2.5 / len(names)) < -budget:
            lost.append(name)
    low, high = (float(x) for x in np.percentile(means, [2.5, 97.5]))
    score = Estimate(float(np.mean(values)), low, high)
    half_width = (high - low) / 2
    verdict = "yes" if lost else gate(score, -budget)
    enough = max(1.0, (half_width / budget) ** 2 if budget else 1)
    return Forgetting(score, names, tuple(lost), verdict, enough, {name: before[name].title for name in names})


def spread(scores: Sequence[Forgetting]) -> float:
    """Standard deviation of the forgetting scores of several adapters, points (paper, Table 2, in parentheses)."""
    return float(np.std([change.score.value for change in scores], ddof=1)) if len(scores) > 1 else float("nan")


def changed_items(before: BenchmarkAnswers, after: BenchmarkAnswers, which: Outcome) -> list[tuple[Answer, Answer]]:
    """The questions behind a change, as the model before and the model after answered them."""
    return _changed(before.answers, after.answers, which)
