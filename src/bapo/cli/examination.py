"""What an examination looks like on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from bapo.evaluation import BenchmarkPlan
    from bapo.personalize.examination import Examination, Examined


def print_examination(
    found: Examination, source: str, plan: BenchmarkPlan | None, items: Literal["lost", "gained"] | None
) -> None:
    """Preferences, then benchmarks before and after, the forgetting scores, and the questions behind a change."""
    from bapo.cli.console import out
    from bapo.reporting import forgetting_in_words, learned_in_words

    _print_preferences(found, source)
    for name, accuracy in found.learned().items():
        out.print(learned_in_words(name, accuracy, found.least_accuracy or 0), soft_wrap=True)
    if plan is None:
        return
    if plan.limit is not None:
        out.print(
            f"\nSamples of at most {plan.limit} questions a benchmark (MMLU: at least 57), seed {plan.seed}.",
        )
    if not found.others:
        _print_accuracies(found.against)
    for own in found.others:
        _print_changes(found, own)
    for name, score in found.forgetting().items():
        out.print(forgetting_in_words(name, score, found.budget), soft_wrap=True)
    if len(found.trained()) > 1:
        from bapo.evaluation import spread

        out.print(
            f"Spread of the {len(found.trained())} adapters' forgetting scores (standard deviation): "
            f"{spread(found.trained()):.1f} points.",
        )
    for own in found.others if items else ():
        _print_items(found, own, items or "lost")


def _print_preferences(found: Examination, source: str) -> None:
    from bapo.cli.console import out, print_table
    from bapo.reporting import HEADER, held_out_rows, interval

    everyone = (found.against, *found.others)
    reports = {own.name: own.preferences for own in everyone if own.preferences is not None}
    if not reports:
        return
    first = next(iter(reports.values()))
    print_table(
        HEADER, held_out_rows(reports), title=f"{source}: {first.pairs} held-out pairs of {first.prompts} prompts"
    )
    for other in found.others:
        change = found.preference_change(other)
        if change is not None:
            out.print(
                f"{other.name} against {found.against.name}: reward accuracy {interval(change.reward_accuracy, 1, 1)} "
                f"points, margin {interval(change.margin, 1, 1)} nats, drift {interval(change.drift, 1, 1)} nats.",
                soft_wrap=True,
            )


def _print_accuracies(own: Examined) -> None:
    from bapo.cli.console import print_table
    from bapo.reporting import ACCURACY_HEADER, accuracy_rows

    print_table(ACCURACY_HEADER, accuracy_rows(own.benchmarks), title=own.name)


def _print_changes(found: Examination, own: Examined) -> None:
    from bapo.cli.console import print_table
    from bapo.reporting import CHANGE_HEADER, change_rows

    print_table(
        CHANGE_HEADER,
        change_rows(found.against.benchmarks, own.benchmarks, budget=found.budget),
        title=f"{own.name} against {found.against.name}, 95 % intervals; asked in {sum(own.seconds.values()):.0f} s",
    )


def _print_items(found: Examination, own: Examined, which: Literal["lost", "gained"]) -> None:
    from rich.text import Text

    from bapo.cli.console import out
    from bapo.reporting import item_in_words

    for name, change in found.changes(own).items():
        places = change.lost if which == "lost" else change.gained
        out.print(f"\n{len(places)} questions of {name} that {own.name} {which}:", style="bold")
        before, after = found.against.benchmarks[name], own.benchmarks[name]
        for at in places:
            text = item_in_words(before.answers[at], after.answers[at], (found.against.name, own.name))
            out.print(Text(f"\n{text}"), soft_wrap=True)
