"""`bapo benchmark-files`: benchmark questions from the hub as local files, for machines without a connection."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bapo.registry import names


def benchmark_files(
    benchmarks: Annotated[str, typer.Argument(help=f"all, or some of {','.join(names('benchmarks'))}.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The data folder; name it in BAPO_DATA later.")] = Path(
        "bapo-data"
    ),
) -> None:
    """Write benchmark questions from the hub into a folder of JSONL files, which --data-folder and BAPO_DATA read."""
    from bapo.cli.console import live_progress, out

    with live_progress() as on_progress:
        from bapo.evaluation import benchmark_names
        from bapo.evaluation.benchmarks import hub_documents
        from bapo.evaluation.local_data import write_files

        names = benchmark_names(benchmarks)
        written: list[Path] = []
        for done, name in enumerate(names):
            on_progress("writing", done, len(names), name)
            written += write_files(name, hub_documents(name), output)
        on_progress("writing", len(names), len(names), "")
    for path in written:
        out.print(str(path), soft_wrap=True)
