"""What a comparison of models looks like on the terminal; all of it is read from the record."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bapo.results import Comparison, Outcome, Record


def print_comparison(record: Record[Comparison], outcome: Outcome | None) -> None:
    """Preferences, then benchmarks before and after, the forgetting scores, and the questions behind a change."""
    from bapo.cli.console import out
    from bapo.reporting import forgetting_in_words, learned_in_words, movement_in_words

    comparison = record.content
    _print_preferences(comparison)
    for name, changes in comparison.changes.items():
        report = comparison.models[name].preferences
        if changes.learned is not None and report is not None:
            least = comparison.least_accuracy or 0
            out.print(learned_in_words(name, report.reward_accuracy, least, changes.learned), soft_wrap=True)
    if comparison.sample is not None:
        _print_benchmarks(comparison)
    for model in comparison.models.values():
        for sentence in movement_in_words(model.movement) if model.movement is not None else []:
            out.print(sentence, soft_wrap=True)
    for name, changes in comparison.changes.items():
        if changes.forgetting is not None:
            out.print(forgetting_in_words(name, changes.forgetting, comparison.budget), soft_wrap=True)
    if comparison.spread is not None:
        trained = sum(comparison.models[name].adapter is not None for name in comparison.changes)
        out.print(
            f"Spread of the {trained} adapters' forgetting scores (standard deviation): "
            f"{comparison.spread:.1f} points.",
        )
    if outcome is not None:
        _print_items(record, outcome)
    out.print(f"record in {record.path}", soft_wrap=True)


def _print_preferences(comparison: Comparison) -> None:
    from bapo.cli.console import out, print_table
    from bapo.reporting import HEADER, held_out_rows, interval

    reports = {name: model.preferences for name, model in comparison.models.items() if model.preferences is not None}
    if not reports:
        return
    first = next(iter(reports.values()))
    print_table(
        HEADER,
        held_out_rows(reports, comparison.reference),
        title=f"{comparison.source}: {first.pairs} held-out pairs of {first.prompts} prompts",
    )
    for name, changes in comparison.changes.items():
        change = changes.preferences
        if change is not None:
            out.print(
                f"{name} against {comparison.against}: reward accuracy {interval(change.reward_accuracy, 1, 1)} "
                f"points, margin {interval(change.margin, 1, 1)} nats, drift {interval(change.drift, 1, 1)} nats.",
                soft_wrap=True,
            )


def _print_benchmarks(comparison: Comparison) -> None:
    from bapo.cli.console import out, print_table
    from bapo.reporting import ACCURACY_HEADER, CHANGE_HEADER, LOGP_HEADER, accuracy_rows, change_rows, logp_rows

    sample = comparison.sample
    if sample is not None and sample.limit is not None:
        out.print()
        out.print(
            f"Samples of at most {sample.limit} questions a benchmark (MMLU: at least 57), seed {sample.seed}.",
        )
    if not comparison.changes:
        against = comparison.models[comparison.against]
        print_table(ACCURACY_HEADER, accuracy_rows(against.benchmarks), title=comparison.against)
    for name, changes in comparison.changes.items():
        print_table(
            CHANGE_HEADER,
            change_rows(changes.benchmarks),
            title=f"{name} against {comparison.against}, 95 % intervals",
        )
        print_table(LOGP_HEADER, logp_rows(changes.benchmarks), title="log-probability of the right choice, change")


def _print_items(record: Record[Comparison], outcome: Outcome) -> None:
    from bapo.cli.console import lines, out
    from bapo.reporting import item_in_words

    items = [item for item in record.items() if item["outcome"] == outcome]
    for name, changes in record.content.changes.items():
        for benchmark in changes.benchmarks:
            those = [item for item in items if (item["model"], item["benchmark"]) == (name, benchmark)]
            out.print()
            out.print(f"{len(those)} questions of {benchmark} that {name} {outcome}:", style="bold")
            for item in those:
                out.print(lines(f"\n{item_in_words(item, (record.content.against, name))}"), soft_wrap=True)
