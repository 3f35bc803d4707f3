"""`bapo anchor`: base responses and reference log-probs, once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bapo.cli import options
from bapo.files import make_folder


def anchor(
    source: options.Source = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder of the anchored data; the user's cache folder by default."),
    ] = None,
    model: options.Model = None,
    precision: options.Precision = None,
    kernels: options.Kernels = None,
    adapter: options.Adapter = None,
    max_new_tokens: options.MaxNewTokens = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy; above, base responses are sampled.")] = None,
    responses: Annotated[int | None, typer.Option(help="Base responses per prompt.")] = None,
    seed: options.Seed = None,
    data: options.Data = None,
    plain: options.Plain = False,
    trust_remote_code: options.TrustRemoteCode = False,
    recipe: options.RecipeName = None,
    settings: options.Set = None,
    as_json: options.AsJson = False,
) -> None:
    """Generate the model's own answers to all prompts and score all responses, and keep both on disk.

    Every preference over the same prompts, every objective and every run shares the result. Stopped at any moment, the
    same command goes on from there and ends with the same content.
    """
    from dataclasses import asdict
    from datetime import datetime

    from bapo.cli.console import live_progress, out, print_counts, print_json

    wanted = options.recipe_from(
        recipe,
        settings,
        preferences__source=source,
        preferences__data_folder=data,
        preferences__plain=plain,
        model__name=model,
        model__precision=precision,
        model__kernels=kernels,
        model__adapter=adapter,
        model__trust_remote_code=trust_remote_code,
        anchoring__folder=str(output) if output else None,
        anchoring__max_new_tokens=max_new_tokens,
        anchoring__temperature=temperature,
        anchoring__responses=responses,
        anchoring__seed=seed,
    )
    with live_progress(quiet=as_json) as on_progress:
        from bapo.jobs import job

        if output:
            make_folder(output)
        record = job.anchor(wanted, output, on_progress)
    summary = record.content
    if as_json:
        print_json(asdict(summary))
        return
    out.print(
        f"{summary.prompts} prompts, {summary.pairs} pairs, {summary.base_responses} base responses "
        f"({summary.ended_by_themselves} ended by themselves, {summary.mean_base_tokens:.0f} tokens on average)",
    )
    print_counts(summary.counts, summary.doubtful)
    if summary.today:
        out.print(f"the chat template writes the date, which is {datetime.fromisoformat(summary.today):%d %b %Y} here")
    out.print(f"anchored data in {summary.folder}", soft_wrap=True)
