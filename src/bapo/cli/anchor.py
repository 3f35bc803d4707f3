"""`bapo anchor`: base responses and reference log-probs, once."""

from __future__ import annotations

import typer

from bapo.cli import options


def anchor(
    context: typer.Context,
    source: options.Source = None,
    anchored_store: options.AnchoredStore = None,
    model: options.Model = None,
    precision: options.Precision = None,
    kernels: options.Kernels = None,
    reference_adapter: options.ReferenceAdapter = None,
    base_max_new_tokens: options.BaseMaxNewTokens = None,
    base_temperature: options.BaseTemperature = None,
    base_responses: options.BaseResponses = None,
    base_seed: options.BaseSeed = None,
    data_folder: options.DataFolder = None,
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

    wanted = options.recipe_of(context)
    with live_progress(quiet=as_json) as on_progress:
        from bapo.jobs import job

        record = job.anchor(wanted, on_progress)
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
