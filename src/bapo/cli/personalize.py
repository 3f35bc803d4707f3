"""`bapo personalize`: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bapo.cli import options

if TYPE_CHECKING:
    from bapo.results import Personalization, Record


def personalize(
    context: typer.Context,
    source: options.Source = None,
    model: options.Model = None,
    objective: options.Objective = None,
    also_train: Annotated[
        list[str] | None, typer.Option(help="Another objective to train and compare with; repeatable.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for adapters and report.")] = Path(
        "personalized"
    ),
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
    """Preferences and a model in, a personalized adapter out.

    Reads the preferences, generates the model's own answers once, trains, evaluates on held-out prompts, and shows
    what the models answer now. Stopped at any moment, the same command goes on from there.
    """
    from dataclasses import asdict

    from bapo.cli.console import live_progress, print_json

    wanted = options.recipe_of(context)
    with live_progress(quiet=as_json) as on_progress:
        from bapo.jobs import personalize as run

        record = run(wanted, output, on_progress)
    page = _write_page(record)
    if as_json:
        print_json({**asdict(record.content), "made_on": dict(record.made_from.made_on)})
    else:
        _show(record, page)


def _write_page(record: Record[Personalization]) -> Path:
    from bapo.files import write_text
    from bapo.reporting.page import render
    from bapo.reporting.pages import personalization_page
    from bapo.results import read_run

    logs = {name: read_run(Path(folder)).log for name, folder in record.content.adapters.items()}
    path = record.path.with_suffix(".html")
    write_text(path, render(personalization_page(record, logs)))
    return path


def _show(record: Record[Personalization], page: Path) -> None:
    from bapo.cli.console import out, print_answers, print_counts, print_table
    from bapo.reporting import WORDED_HEADER, worded_rows

    result = record.content
    first = next(iter(result.held_out.values()))
    print_table(
        WORDED_HEADER,
        worded_rows(result.held_out, result.likelier, result.reference),
        title=f"{result.source}: {first.pairs} held-out pairs of {first.prompts} prompts, 95 % intervals over prompts",
    )
    out.print(
        "Reward accuracy: how often training raised the response you like above the one you do not. Its own earlier "
        "answers: how likely the model finds now what it said before training; less likely is forgotten. Margin and "
        "drift say both in nats, natural logarithms of a ratio: 1 is a factor of 2.7, and -0.1 is 10 % less likely.",
    )
    print_counts(result.counts, result.doubtful)
    for side_by_side in result.answers:
        print_answers(side_by_side.prompt, side_by_side.answers)
    out.print()
    for name, folder in result.adapters.items():
        out.print(f"{name:<6} adapter   {folder}", soft_wrap=True)
    out.print(f"report           {record.path}", soft_wrap=True)
    out.print(f"page             {page}", soft_wrap=True)
