"""`bapo train`: one objective, one adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bapo.cli import options
from bapo.files import make_folder


def train(
    context: typer.Context,
    source: options.Source = None,
    objective: options.Objective = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the run.")] = Path("run"),
    model: options.Model = None,
    recipe: options.RecipeName = None,
    learning_rate: options.LearningRate = None,
    max_steps: options.MaxSteps = None,
    num_train_epochs: options.NumTrainEpochs = None,
    beta: options.Beta = None,
    anchor_strength: options.AnchorStrength = None,
    held_out: options.HeldOut = None,
    split_seed: options.SplitSeed = None,
    seed: options.Seed = None,
    precision: options.Precision = None,
    kernels: options.Kernels = None,
    reference_adapter: options.ReferenceAdapter = None,
    anchored_store: options.AnchoredStore = None,
    data_folder: options.DataFolder = None,
    plain: options.Plain = False,
    trust_remote_code: options.TrustRemoteCode = False,
    settings: options.Set = None,
    as_json: options.AsJson = False,
) -> None:
    """Train one adapter. Anchors first what is not anchored yet; killed, the same command resumes."""
    from bapo.cli.console import live_progress, out, print_counts, print_json

    wanted = options.recipe_of(context)
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
