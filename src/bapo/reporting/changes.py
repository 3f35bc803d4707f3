"""Before and after, as tables and sentences; every figure is read from a record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bapo.reporting.tables import interval

if TYPE_CHECKING:
    from bapo.results import BenchmarkScore, Change, Estimate, Forgetting, Gate, Movement

CHANGE_HEADER = (
    "benchmark",
    "questions",
    "before",
    "after",
    "change (points)",
    "McNemar p",
    "gained / lost",
    "verdict",
)

ACCURACY_HEADER = ("benchmark", "questions", "accuracy")


def accuracy_rows(scores: Mapping[str, BenchmarkScore]) -> list[tuple[str, ...]]:
    """One row a benchmark, its categories below it; accuracies with 95 % intervals over questions."""
    rows: list[tuple[str, ...]] = []
    for name, score in scores.items():
        titled = {score.title or name: score, **{_category(key): part for key, part in score.categories.items()}}
        for title, part in titled.items():
            rows.append((title, _items(part.items, part.questions), interval(part.accuracy, 100, 1, " %")))
    return rows


def change_rows(changes: Mapping[str, Change]) -> list[tuple[str, ...]]:
    """One row a benchmark, its categories below it; accuracies and changes with 95 % intervals over questions."""
    rows = []
    for name, change in changes.items():
        rows.append(_row(change.title or name, change))
        rows += [_row(_category(category), part) for category, part in change.categories.items()]
    return rows


def _category(name: str) -> str:
    return f"· {name.replace('_', ' ')}"


def _items(asked: int, questions: int | None) -> str:
    return f"{asked:,} of {questions:,}" if questions is not None and asked < questions else f"{asked:,}"


def _row(title: str, change: Change) -> tuple[str, ...]:
    return (
        title,
        _items(change.items, change.questions),
        interval(change.before, 100, 1, " %"),
        interval(change.after, 100, 1, " %"),
        interval(change.change, 1, 1),
        f"{change.p:.3f}" if change.p >= 0.001 else "<0.001",
        f"{change.gained} / {change.lost}",
        verdict_in_words(change),
    )


def verdict_in_words(change: Change) -> str:
    """The verdict; where it cannot be told, with the number of questions that could tell."""
    if change.verdict != "cannot tell" or change.enough is None:
        return change.verdict
    too_few = change.questions is not None and change.enough > change.questions
    there_are = f", there are {change.questions:,}" if too_few else ""
    return f"cannot tell (about {change.enough:,} questions could{there_are})"


LOGP_HEADER = ("benchmark", "questions", "right choice (nats)", "floor (nats)", "the same, tempered (nats)")


def logp_rows(changes: Mapping[str, Change]) -> list[tuple[str, ...]]:
    """One row a benchmark: how the right choice's log-probability changed, with 95 % intervals over questions.

    The floor is what rounding alone makes of it (`Change`).
    """
    return [
        (
            change.title or name,
            f"{change.items:,}",
            interval(change.right_choice, 1, 3),
            "" if change.floor is None else f"{change.floor:.2g}",
            interval(change.tempered, 1, 3),
        )
        for name, change in changes.items()
        if change.right_choice is not None and change.tempered is not None
    ]


def movement_in_words(movement: Movement) -> list[str]:
    """What was measured of a model's distributions, a sentence each."""
    sentences = [
        f"{movement.name}: divergence from {movement.reference} on {topic} prompts "
        f"{interval(report.per_token, 1, 5)} nats a token, of which rounding ({report.precision}) makes "
        f"{report.floor:.1g}; {report.prompts} prompts, {report.tokens:,} tokens."
        for topic, report in movement.divergence.items()
    ]
    text = movement.text
    if text is not None:
        sentences.append(
            f"{movement.name}: cross-entropy of the text {text.before.value:.4f} before, {text.after.value:.4f} after, "
            f"change {interval(text.change, 1, 4)} nats a token, of which rounding makes {text.floor:.1g}; "
            f"{text.tokens:,} tokens."
        )
    return sentences


def forgetting_in_words(name: str, score: Forgetting, budget: float) -> str:
    """The forgetting score in one sentence."""
    alone = " and ".join(score.titles.get(benchmark, benchmark) for benchmark in score.lost)
    more = f" (about {_times(score.enough)} as many questions could tell)" if score.enough > 1 else ""
    points = "1 point was lost" if budget == 1 else f"{budget:g} points were lost"
    outcome = {
        "no": f"not more than {points}",
        "yes": f"more than {points}" + (f" on {alone}" if alone else ""),
        "unclear": f"whether more than {points} cannot be told from so few questions{more}",
    }[score.gate]
    return (
        f"{name}: forgetting score {interval(score.score, 1, 1)} points, the mean change of "
        f"{len(score.benchmarks)} knowledge benchmark{'s' * (len(score.benchmarks) != 1)}; {outcome}."
    )


def _times(factor: float) -> str:
    return f"{factor:,.0f} times" if factor >= 3 else f"{factor:.1f} times"


def learned_in_words(name: str, accuracy: Estimate, least: float, verdict: Gate) -> str:
    """Whether an adapter gets as large a share of held-out pairs right as is asked for, in one sentence."""
    outcome = {
        "no": f"at least {least:.0%} are right",
        "yes": f"fewer than {least:.0%} are right",
        "unclear": f"whether {least:.0%} are right cannot be told from so few prompts",
    }[verdict]
    return f"{name}: reward accuracy {interval(accuracy, 100, 1, ' %')}; {outcome}."


def item_in_words(item: Mapping[str, Any], names: Sequence[str]) -> str:
    """A question, its choices, and the probability that each of two models gave them: an item of a comparison."""
    lines = [f"{item['task']} {item['document']}: {item['question'].strip()}"]
    columns = list(zip(item["choices"], item["before"], item["after"], strict=True))
    lines.append(f"    {names[0]:>12} {names[1]:>12}")
    for at, (choice, old, new) in enumerate(columns):
        mark = "right" if at == item["right"] else ""
        lines.append(f"    {100 * old:>10.1f} % {100 * new:>10.1f} %  {mark:<5} {choice.strip()}")
    return "\n".join(lines)
