"""`bapo data`: what preferences hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bapo.cli import options


def data(
    source: options.Source = None,
    data_folder: options.DataFolder = None,
    plain: options.Plain = False,
    as_json: options.AsJson = False,
) -> None:
    """Show what was read: counts, lengths, what was dropped and why, and three examples."""
    from bapo.cli.console import live_progress, print_json

    with live_progress(quiet=as_json, libraries=False):
        from bapo.preferences import read_preferences, summarize

        preferences = read_preferences(
            source or "starter:concise", data_folder=Path(data_folder) if data_folder else None, plain=plain
        )
        summary = summarize(preferences)
    if as_json:
        print_json(summary.to_dict())
    else:
        _show(summary.to_dict())


def _show(summary: dict[str, Any]) -> None:
    from rich.panel import Panel

    from bapo.cli.console import lines, out, print_table

    out.print(
        f"{summary['name']}: {summary['prompts']:,} prompts, {summary['responses']:,} distinct responses, "
        f"{summary['pairs']:,} pairs (from {summary['rows']:,} comparisons read)",
        soft_wrap=True,
    )
    for reason, count in summary["dropped"].items():
        out.print(f"  dropped {count:,} of {summary['rows']:,}: {reason}")
    for reason, count in summary["doubtful"].items():
        out.print(f"  kept {count:,} of {summary['rows']:,} though doubtful: {reason}")
    if summary["with_bases"]:
        out.print(f"base responses come with {summary['with_bases']:,} prompts")
    spread = ", ".join(f"{pairs} for {prompts:,} prompts" for pairs, prompts in summary["pairs_per_prompt"].items())
    out.print(f"pairs per prompt: {spread}", soft_wrap=True)
    columns = ("min", "p10", "median", "p90", "max")
    rows = [
        (what, *(str(summary[f"{what}_words"][column]) for column in columns))
        for what in ("prompt", "chosen", "rejected")
    ]
    print_table(("length in words", *columns), rows)
    for example in summary["examples"]:
        out.print(lines(f"» {example['prompt']}", style="bold"))
        out.print(Panel(lines(example["chosen"]), title="chosen", title_align="left", border_style="green"))
        out.print(Panel(lines(example["rejected"]), title="rejected", title_align="left", border_style="red"))
