"""`bapo generate`: answers of a model and its adapters, side by side."""

from __future__ import annotations

from typing import Annotated

import typer

from bapo.cli import options
from bapo.files import readable


def generate(
    context: typer.Context,
    prompts: Annotated[list[str], typer.Argument(help="Prompts to answer.")],
    adapter: Annotated[
        list[str] | None, typer.Option("--adapter", "-a", help="An adapter to ask beside the base model; repeatable.")
    ] = None,
    model: options.Model = None,
    precision: options.Precision = None,
    kernels: options.Kernels = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, tokens.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    sampling_seed: options.SamplingSeed = 0,
    system: Annotated[str | None, typer.Option(help="A system turn in front of each prompt.")] = None,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.AsJson = False,
) -> None:
    """Let the base model and any number of adapters answer the same prompts."""
    options.check_numbers(max_new_tokens=max_new_tokens, temperature=temperature, sampling_seed=sampling_seed)
    from bapo.cli.console import live_progress, print_answers, print_json

    wanted = options.recipe_of(context)
    with live_progress(quiet=as_json) as on_progress:
        from bapo.jobs import stages
        from bapo.jobs.generating import answer_each

        stages.check(wanted, adapter or [])
        prompts, system = readable(prompts), readable(system)
        answers = answer_each(
            wanted, adapter or [], prompts, system, max_new_tokens, temperature=temperature, seed=sampling_seed,
            on_progress=on_progress,
        )  # fmt: skip
    table = [{"prompt": p, **{name: texts[i] for name, texts in answers.items()}} for i, p in enumerate(prompts)]
    if as_json:
        print_json(table)
        return
    for i, prompt in enumerate(prompts):
        print_answers(prompt, {name: texts[i] for name, texts in answers.items()})
