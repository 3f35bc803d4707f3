"""`bapo train`: one objective, one adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bapo.cli import options
from bapo.files import make_folder


def train(
    source: options.Source = None,
    objective: options.Objective = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the run.")] = Path("run"),
    model: options.Model = None,
    recipe: options.RecipeName = None,
    learning_rate: options.LearningRate = None,
    steps: options.Steps = None,
    epochs: options.Epochs = None,
    beta: options.Beta = None,
    anchor_strength: options.AnchorStrength = None,
    held_out: options.HeldOut = None,
    seed: options.Seed = None,
    precision: options.Precision = None,
    kernels: options.Kernels = None,
    adapter: options.Adapter = None,
    anchors: options.Anchors = None,
    data: options.Data = None,
    plain: options.Plain = False,
    trust_remote_code: options.TrustRemoteCode = False,
    settings: options.Set = None,
    as_json: options.AsJson = False,
) -> None:
    """Train one adapter. Anchors first what is not anchored yet; killed, the same command resumes."""
    from bapo.cli.console import live_progress, out, print_counts, print_json

    wanted = options.recipe_from(
        recipe,
        settings,
        preferences__source=source,
        preferences__data_folder=data,
        preferences__plain=plain,
        preferences__held_out=held_out,
        preferences__seed=seed,
        model__name=model,
        model__precision=precision,
        model__kernels=kernels,
        model__adapter=adapter,
        model__trust_remote_code=trust_remote_code,
        anchoring__folder=anchors,
        training__objective=objective,
        training__learning_rate=learning_rate,
        training__steps=steps,
        training__epochs=epochs,
        training__beta=beta,
        training__anchor_strength=anchor_strength,
        training__seed=seed,
    )
    with live_progress(quiet=as_json) as on_progress:
        from bapo.jobs import job
        from bapo.preferences import doubtful

        run, split, dropped = job.train(wanted, make_folder(output), on_progress)
    counts, doubts = {**split.train.dropped, **dropped}, doubtful(split.whole)
    if as_json:
        print_json(
            {
                "adapter": str(run.folder),
                "objective": run.name,
                "counts": counts,
                "doubtful": doubts,
                "log": list(run.log),
            }
        )
        return
    last = run.log[-1]
    out.print(
        f"{run.name}: {int(last['step'])} steps, last loss {last['loss']:.3f}, "
        f"{sum(e['pairs_per_second'] for e in run.log) / len(run.log):.2f} pairs/s",
    )
    print_counts(counts, doubts)
    out.print(f"adapter in {run.folder}", soft_wrap=True)
