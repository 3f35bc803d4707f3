"""Before and after, as tables and sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from bapo.reporting.tables import interval

if TYPE_CHECKING:
    from bapo.evaluation import Answer, BenchmarkAnswers, Change, Estimate, Forgetting

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


def accuracy_rows(found: Mapping[str, BenchmarkAnswers]) -> list[tuple[str, ...]]:
    """One row a benchmark, its categories below it; accuracies with 95 % intervals over questions."""
    from bapo.evaluation import BENCHMARKS, bootstrap_ratio

    rows: list[tuple[str, ...]] = []
    for name, own in found.items():
        for title, part, questions in (
            (BENCHMARKS[name].title, own.answers, own.questions),
            *((_category(category), part, None) for category, part in own.by_category().items()),
        ):
            accuracy = bootstrap_ratio([answer.score for answer in part], [1.0] * len(part))
            rows.append((title, _items(len(part), questions), interval(accuracy, 100, 1, " %")))
    return rows


def change_rows(
    before: Mapping[str, BenchmarkAnswers], after: Mapping[str, BenchmarkAnswers], *, budget: float
) -> list[tuple[str, ...]]:
    """One row a benchmark, its categories below it; accuracies and changes with 95 % intervals over questions."""
    from bapo.evaluation import BENCHMARKS, compare

    rows = []
    for name, own in before.items():
        rows.append(_row(BENCHMARKS[name].title, compare(own, after[name], budget=budget), own.questions))
        parts = after[name].by_category()
        for category, part in own.by_category().items():
            change = compare(_only(own, part), _only(after[name], parts[category]), budget=budget)
            rows.append(_row(_category(category), change, None))
    return rows


def _only(whole: BenchmarkAnswers, part: tuple[Answer, ...]) -> BenchmarkAnswers:
    return type(whole)(whole.benchmark, part, whole.questions)


def _category(name: str) -> str:
    return f"· {name.replace('_', ' ')}"


def _items(asked: int, questions: int | None) -> str:
    return f"{asked:,} of {questions:,}" if questions is not None and asked < questions else f"{asked:,}"


def _row(title: str, change: Change, questions: int | None) -> tuple[str, ...]:
    return (
        title,
        _items(change.items, questions),
        interval(change.before, 100, 1, " %"),
        interval(change.after, 100, 1, " %"),
        interval(change.change, 1, 1),
        f"{change.p:.3f}" if change.p >= 0.001 else "<0.001",
        f"{len(change.gained)} / {len(change.lost)}",
        verdict_in_words(change, questions),
    )


def verdict_in_words(change: Change, questions: int | None = None) -> str:
    """The verdict; where it cannot be told, with the number of questions that could tell."""
    if change.verdict != "cannot tell" or change.enough is None:
        return change.verdict
    there_are = f", there are {questions:,}" if questions is not None and change.enough > questions else ""
    return f"cannot tell (about {change.enough:,} questions could{there_are})"


def forgetting_in_words(name: str, found: Forgetting, budget: float) -> str:
    """The forgetting score in one sentence."""
    from bapo.evaluation import BENCHMARKS

    alone = " and ".join(BENCHMARKS[benchmark].title for benchmark in found.lost)
    more = f" (about {found.enough:.1f} times as many questions could tell)" if found.enough > 1 else ""
    outcome = {
        "no": f"not more than {budget:g} points were lost",
        "yes": f"more than {budget:g} points were lost" + (f" on {alone}" if alone else ""),
        "unclear": f"whether more than {budget:g} points were lost cannot be told from so few questions{more}",
    }[found.gate]
    return (
        f"{name}: forgetting score {interval(found.score, 1, 1)} points, the mean change of "
        f"{len(found.benchmarks)} knowledge benchmark{'s' * (len(found.benchmarks) != 1)}; {outcome}."
    )


def learned_in_words(name: str, found: Estimate, least: float) -> str:
    """Whether an adapter gets as large a share of held-out pairs right as is asked for, in one sentence."""
    from bapo.evaluation import gate

    outcome = {
        "no": f"at least {least:.0%} are right",
        "yes": f"fewer than {least:.0%} are right",
        "unclear": f"whether {least:.0%} are right cannot be told from so few prompts",
    }[gate(found, least)]
    return f"{name}: reward accuracy {interval(found, 100, 1, ' %')}; {outcome}."


def item_in_words(before: Answer, after: Answer, names: Sequence[str]) -> str:
    """A question, its choices, and the probability that each of two models gave them."""
    lines = [f"{after.task} {after.document}: {after.question.strip()}"]
    columns = list(zip(after.choices, before.probabilities, after.probabilities, strict=True))
    lines.append(f"    {names[0]:>12} {names[1]:>12}")
    for at, (choice, old, new) in enumerate(columns):
        mark = "right" if at == after.right else ""
        lines.append(f"    {100 * old:>10.1f} % {100 * new:>10.1f} %  {mark:<5} {choice.strip()}")
    return "\n".join(lines)
