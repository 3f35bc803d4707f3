"""Several models on the same prompts and questions: what each scored, how each differs from one of them, verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from bapo.results.answers import Answer, BenchmarkAnswers, BenchmarkKind
from bapo.results.changes import BUDGET, Change, Forgetting, Gate, changed_items, compare, forgetting, gate, spread
from bapo.results.estimates import Estimate, bootstrap_share
from bapo.results.movement import Movement
from bapo.results.places import shared_name
from bapo.results.preferences import PreferenceChange, PreferenceReport, PromptScores, compare_preferences
from bapo.results.records import Kind
from bapo.results.right_choice import floor_of_change, logp_changes

BASE = "base"
PROMPT_ONLY = "prompt-only"


@dataclass(frozen=True)
class Findings:
    """What one model made of the questions and prompts, item by item.

    Attributes:
        name: what the model is called.
        adapter: the adapter that it wears, and ``system`` the system prompt that it is told, if there are such.
        benchmarks: its answers by benchmark.
        prompts: its scores of held-out prompts; none of the base, whose log-ratios are all zero.
        seconds: how long each benchmark took; next to nothing where answers were kept from before.
        movement: how far its distributions have moved, where that was measured.
    """

    name: str
    adapter: str | None = None
    system: str | None = None
    benchmarks: Mapping[str, BenchmarkAnswers] = field(default_factory=dict)
    preferences: PreferenceReport | None = None
    prompts: tuple[PromptScores, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    movement: Movement | None = None


@dataclass(frozen=True, slots=True)
class BenchmarkScore:
    """A model's score on a benchmark, or on a category of one.

    Attributes:
        accuracy: of the score that counts, length-normalized where the task has it, with its 95 % interval.
        acc: share of questions whose likeliest choice is right, not normalized.
        items: questions asked.
        questions: questions that there are; None of a category.
        kind, title: of the benchmark.
        seconds: that they took.
        categories: the same for each category.
    """

    accuracy: Estimate
    acc: float
    items: int
    questions: int | None = None
    kind: BenchmarkKind = "knowledge"
    title: str = ""
    seconds: float = 0.0
    categories: Mapping[str, BenchmarkScore] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelScores:
    """What one model scored: see `Findings`."""

    adapter: str | None
    system: str | None
    benchmarks: Mapping[str, BenchmarkScore]
    preferences: PreferenceReport | None
    movement: Movement | None = None


@dataclass(frozen=True, slots=True)
class ModelChanges:
    """How one model differs from the one that changes are counted from.

    Attributes:
        benchmarks: by benchmark.
        preferences: on held-out prompts; None where there were none, and against the base, where a report says it.
        forgetting: its forgetting score; None where no knowledge benchmark was asked.
        learned: yes if it gets fewer held-out pairs right than is asked for, no if not; None where nothing is asked.
    """

    benchmarks: Mapping[str, Change]
    preferences: PreferenceChange | None
    forgetting: Forgetting | None
    learned: Gate | None


@dataclass(frozen=True, slots=True)
class Sample:
    """Which questions were asked: at most so many of each benchmark, drawn with a seed."""

    limit: int | None
    seed: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """All models, and how each differs from one of them.

    Attributes:
        against: the model that changes are counted from.
        reference: what log-ratios are counted from: the base, or the adapter that came with it.
        source: the preferences; None where none were evaluated.
        sample: the questions; None where no benchmark was asked.
        budget: points of the forgetting score that may be lost.
        least_accuracy: share of held-out pairs that an adapter has to get right; None if nothing is asked.
        models: by name, the one that changes are counted from first.
        changes: of the others, by name.
        spread: standard deviation of the adapters' forgetting scores, points; None of fewer than two.
        gate: over all adapters, whether too much was lost or too little learned; None without an adapter to judge.
    """

    against: str
    reference: str
    source: str | None
    sample: Sample | None
    budget: float
    least_accuracy: float | None
    models: Mapping[str, ModelScores]
    changes: Mapping[str, ModelChanges]
    spread: float | None
    gate: Gate | None


COMPARISON = Kind("comparison of models", 2, Comparison)


def compare_models(
    models: Sequence[Findings],
    *,
    reference: str = BASE,
    source: str | None = None,
    sample: Sample | None = None,
    budget: float = BUDGET,
    least_accuracy: float | None = None,
) -> Comparison:
    """Everything that is said of several models, computed once.

    Args:
        models: changes are counted from the first.
        reference, source, sample, budget, least_accuracy: see `Comparison`.

    Raises:
        BapoError: the models did not answer the same questions.
    """
    first, *others = models
    changes = {other.name: _changes(first, other, budget, least_accuracy) for other in others}
    trained = [changes[other.name] for other in others if other.adapter]
    scores = [change.forgetting for change in trained if change.forgetting is not None]
    gates = {score.gate for score in scores} | {change.learned for change in trained if change.learned is not None}
    return Comparison(
        against=first.name,
        reference=reference,
        source=source,
        sample=sample,
        budget=budget,
        least_accuracy=least_accuracy,
        models={model.name: _scores(model) for model in models},
        changes=changes,
        spread=spread(scores) if len(scores) > 1 else None,
        gate=_worst(gates),
    )


def _worst(gates: set[Gate]) -> Gate | None:
    order: tuple[Gate, ...] = ("yes", "unclear", "no")
    return next((verdict for verdict in order if verdict in gates), None)


def _changes(before: Findings, after: Findings, budget: float, least_accuracy: float | None) -> ModelChanges:
    judged = after.preferences if after.adapter and least_accuracy is not None else None
    benchmarks = {}
    for name, answers in after.benchmarks.items():
        plain, tempered = logp_changes(before.benchmarks[name], answers)
        change = compare(before.benchmarks[name], answers, budget=budget)
        floor = floor_of_change(before.benchmarks[name].rounding, len(answers.answers))
        benchmarks[name] = replace(change, right_choice=plain, tempered=tempered, floor=floor)
    return ModelChanges(
        benchmarks=benchmarks,
        preferences=compare_preferences(before.prompts, after.prompts) if before.prompts and after.prompts else None,
        forgetting=forgetting(before.benchmarks, after.benchmarks, budget=budget),
        learned=gate(judged.reward_accuracy, least_accuracy or 0) if judged else None,
    )


def _scores(model: Findings) -> ModelScores:
    return ModelScores(
        None if model.adapter is None else shared_name(model.adapter),
        model.system,
        {name: benchmark_score(answers, model.seconds.get(name, 0.0)) for name, answers in model.benchmarks.items()},
        model.preferences,
        model.movement,
    )


def benchmark_score(answers: BenchmarkAnswers, seconds: float = 0.0) -> BenchmarkScore:
    """A model's score on a benchmark and its categories."""
    categories = {name: _score(part, answers, {}) for name, part in answers.by_category().items()}
    return _score(answers.answers, answers, categories, seconds=seconds, questions=answers.questions)


def _score(
    part: Sequence[Answer], whole: BenchmarkAnswers, categories: Mapping[str, BenchmarkScore], **more: Any
) -> BenchmarkScore:
    accuracy = bootstrap_share([answer.score for answer in part], [1.0] * len(part))
    acc = sum(answer.acc for answer in part) / len(part)
    return BenchmarkScore(accuracy, acc, len(part), kind=whole.kind, title=whole.title, categories=categories, **more)


def changed_rows(models: Sequence[Findings]) -> list[dict[str, Any]]:
    """The items of a comparison: every question that another model than the first lost or gained, with both answers."""
    first, *others = models
    outcomes: tuple[Literal["lost", "gained"], ...] = ("lost", "gained")
    return [
        {
            "model": other.name,
            "benchmark": name,
            "outcome": outcome,
            "task": after.task,
            "document": after.document,
            "question": after.question,
            "choices": list(after.choices),
            "right": after.right,
            "before": list(before.probabilities),
            "after": list(after.probabilities),
        }
        for other in others
        for name, answers in other.benchmarks.items()
        for outcome in outcomes
        for before, after in changed_items(first.benchmarks[name], answers, outcome)
    ]
