"""`bapo anchor`: base responses and reference log-probs, once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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
    from bapo.cli.console import live_progress, out, print_counts, print_json

    told = options.recipe_from(
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
        from bapo.anchoring import AnchorStore
        from bapo.personalize import stages
        from bapo.preferences import doubtful

        if output:
            make_folder(output)
        preferences = stages.read_all(told)
        loaded = stages.load(told)
        anchored = stages.anchor_preferences(told, preferences, loaded, on_progress)
        folder = output or AnchorStore.in_cache(loaded).folder
    bases = [base for group in anchored.groups for base in group.bases]
    content: dict[str, Any] = {
        "folder": str(folder),
        "prompts": len(anchored.groups),
        "pairs": anchored.pair_count,
        "base_responses": len(bases),
        "ended_by_themselves": sum(base.ended for base in bases),
        "mean_base_tokens": sum(len(base.ids) for base in bases) / len(bases),
        "counts": {**preferences.dropped, **anchored.counts},
        "doubtful": doubtful(preferences),
        "today": anchored.today.isoformat() if anchored.today else None,
    }
    if as_json:
        print_json(content)
        return
    out.print(
        f"{content['prompts']} prompts, {content['pairs']} pairs, {content['base_responses']} base responses "
        f"({content['ended_by_themselves']} ended by themselves, {content['mean_base_tokens']:.0f} tokens on average)",
    )
    print_counts(content["counts"], content["doubtful"])
    if anchored.today:
        out.print(f"the chat template writes the date, which is {anchored.today:%d %b %Y} here")
    out.print(f"anchored data in {folder}", soft_wrap=True)
