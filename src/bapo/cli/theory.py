"""`bapo theory`: Proposition 1 as a simulation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bapo.cli import options


def theory(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the record, proposition.json, and the figure.")
    ] = Path("theory"),
    repeats: Annotated[int, typer.Option(help="Draws for each setting.")] = 40,
    simulation_seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    as_json: options.AsJson = False,
) -> None:
    """Estimate a personal reward with and without knowing the general one, over d, k and n (Proposition 1).

    Simulated comparisons under the paper's assumptions 1 and 2, no language model. Started again, the record is read.
    """
    options.check_numbers(repeats=repeats, simulation_seed=simulation_seed)
    from dataclasses import asdict

    from bapo.cli.console import live_progress, out, print_json, print_table
    from bapo.files import make_folder
    from bapo.reporting import theory as worded
    from bapo.results import Provenance, identity_of
    from bapo.theory import PROPOSITION, simulate

    path = make_folder(output) / "proposition.json"
    identity = identity_of(repeats=repeats, seed=simulation_seed)
    record = PROPOSITION.find(path, identity)
    if record is None:
        with live_progress(quiet=as_json) as on_progress:
            content = simulate(repeats, simulation_seed, on_progress=on_progress)
        made_from = Provenance(
            model="linear Bradley-Terry", weights="", settings={"repeats": repeats, "seed": simulation_seed}
        )
        record = PROPOSITION.write(path, content, identity=identity, made_from=made_from)
    worded.draw_proposition(record.content, output / "proposition.svg")
    if as_json:
        print_json(asdict(record.content))
        return
    for sweep in record.content.sweeps:
        print_table(worded.ERROR_HEADER, worded.error_rows(sweep), title=f"mean error over {repeats} draws")
    print_table(
        worded.SLOPE_HEADER, worded.slope_rows(record.content), title="log error over the log of what is varied"
    )
    out.print(worded.bound_in_words(record.content), soft_wrap=True)
    out.print(f"record in {path}, figure in {output / 'proposition.svg'}", soft_wrap=True)
