"""`bapo sample`: preferences by rejection sampling, judged by a trained adapter."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from bapo.cli import options


def sample(
    context: typer.Context,
    source: options.Source = None,
    reward: Annotated[str, typer.Option(help="A trained adapter; beta times its log-ratio is the reward.")] = "",
    output: Annotated[Path, typer.Option("--output", "-o", help="The comparison file that is written.")] = Path(
        "sampled.jsonl"
    ),
    candidates: Annotated[int, typer.Option(help="Responses sampled for each prompt; 64 in the paper.")] = 16,
    accept: Annotated[int, typer.Option(help="Of these accepted, and paired two by two; 8 in the paper.")] = 4,
    rejection_beta: Annotated[
        float, typer.Option(help="Temperature of acceptance, in units of reward: towards 0 the best are accepted.")
    ] = 0.5,
    temperature: Annotated[float, typer.Option(help="Of the sampling; 1 samples from the model itself.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(help="Longest candidate, tokens.")] = 256,
    beta: Annotated[float | None, typer.Option(help="Of the reward; by default what the adapter had.")] = None,
    model: options.Model = None,
    precision: options.Precision = None,
    kernels: options.Kernels = None,
    reference_adapter: options.ReferenceAdapter = None,
    held_out: options.HeldOut = None,
    split_seed: options.SplitSeed = None,
    sampling_seed: options.SamplingSeed = 0,
    anchored_store: options.AnchoredStore = None,
    data_folder: options.DataFolder = None,
    plain: options.Plain = False,
    trust_remote_code: options.TrustRemoteCode = False,
    recipe: options.RecipeName = None,
    settings: options.Set = None,
    as_json: options.AsJson = False,
) -> None:
    """Let the model answer the training prompts often, accept answers by a trained adapter's reward, and pair them.

    What is written is a file of comparisons for `bapo train FILE --objective rso` (Liu et al. 2023). Stopped at any
    moment, the same command goes on from there.
    """
    from bapo.cli.console import live_progress, out, print_counts, print_json
    from bapo.errors import BapoError

    if not reward:
        raise BapoError("There is nothing to judge candidates by: name a trained adapter with --reward.")
    wanted = options.recipe_of(context)
    with live_progress(quiet=as_json) as on_progress:
        from bapo.jobs.sampling import Sampling
        from bapo.jobs.sampling import sample as run

        how = Sampling(candidates, accept, temperature, max_new_tokens, rejection_beta, sampling_seed)
        sampled = run(wanted, reward, output, how, beta, on_progress).content
    if as_json:
        print_json({"path": str(output), **asdict(sampled)})
        return
    of = sampled.mean_reward
    out.print(
        f"{sampled.pairs:,} pairs of {sampled.candidates:,} candidates to {sampled.prompts:,} prompts; mean reward "
        f"{of['chosen']:.2f} chosen, {of['rejected']:.2f} rejected, {of['all']:.2f} of all candidates",
    )
    print_counts(sampled.counts, {})
    out.print(f"comparisons in {output}", soft_wrap=True)
