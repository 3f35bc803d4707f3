"""`bapo evaluate`: what adapters learned, and how far they drifted."""

from __future__ import annotations

from typing import Annotated

import typer

from bapo.cli import options


def evaluate(
    adapters: Annotated[list[str], typer.Argument(help="Adapter folders, each trained on the same model.")],
    source: Annotated[
        str | None, typer.Option("--preferences", "-p", help="The preferences; the same names as for personalize.")
    ] = None,
    model: options.Model = None,
    precision: options.Precision = None,
    held_out: options.HeldOut = None,
    seed: options.Seed = None,
    anchors: options.Anchors = None,
    data: options.Data = None,
    plain: options.Plain = False,
    trust_remote_code: options.TrustRemoteCode = False,
    recipe: options.RecipeName = None,
    settings: options.Set = None,
    as_json: options.AsJson = False,
) -> None:
    """Reward accuracy, margin and base drift on held-out prompts, with 95 % intervals."""
    from bapo.cli.console import live_progress, print_json, print_table

    told = options.recipe_from(
        recipe,
        settings,
        preferences__source=source,
        preferences__data_folder=data,
        preferences__plain=plain,
        preferences__held_out=held_out,
        preferences__seed=seed,
        model__name=model,
        model__precision=precision,
        model__trust_remote_code=trust_remote_code,
        anchoring__folder=anchors,
    )
    with live_progress(quiet=as_json) as on_progress:
        from bapo.personalize import stages
        from bapo.reporting import HEADER, held_out_rows

        stages.check(told, adapters)
        split = stages.read(told)
        anchored = stages.anchor_split(told, split, stages.load(told), on_progress).held_out
        reports = {
            adapter: stages.evaluate(stages.load(told, adapter=adapter), anchored, adapter, on_progress)
            for adapter in adapters
        }
    if as_json:
        print_json({name: report.to_dict() for name, report in reports.items()})
        return
    first = next(iter(reports.values()))
    print_table(
        HEADER,
        held_out_rows(reports),
        title=f"{split.held_out.name}: {first.pairs} held-out pairs of {first.prompts} prompts",
    )
