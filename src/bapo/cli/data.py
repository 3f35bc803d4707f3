"""`bapo data`: what preferences hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bapo.cli import options


def data(
    source: options.Source = None,
    data: options.Data = None,
    plain: options.Plain = False,
    as_json: options.AsJson = False,
) -> None:
    """Show what was read: counts, lengths, what was dropped and why, and three examples."""
    from bapo.preferences import read_preferences, summarize

    preferences = read_preferences(
        source or "starter:concise", data_folder=Path(data) if data else None, chat=not plain
    )
    summary = summarize(preferences)
    from bapo.cli.console import print_json

    if as_json:
        print_json(summary.to_dict())
    else:
        _show(summary.to_dict())


def _show(summary: dict[str, Any]) -> None:
    from bapo.cli.console import out

    out.print(summary)
