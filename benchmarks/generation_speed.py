"""Base responses: how fast they are generated, beside plain `generate` at several batch sizes, in one run.

The same prompts, greedy, the same longest response. Plain `generate` takes the prompts as they come, so many
at a time; `bapo` sorts them, batches by a token budget, and lets finished responses go. With --continuous,
`transformers`' continuous batching is timed too. Printed are prompts and tokens per second and the ratio to plain
`generate` at its best batch size. DSP literature is used where BAPO_DATA is set, the packaged starter preferences
otherwise.

    python benchmarks/generation_speed.py [--prompts 48] [--max-new-tokens 128] [--batches 8 16 32 64] [--repeats 2]
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from transformers import GenerationConfig

from bapo.anchoring import GenerationSettings, generate_batch, plan_batches
from bapo.likelihood import TokenIds
from bapo.models import LoadedModel, load_model
from bapo.preferences import read_preferences
from bapo.reporting import markdown_table

Responses = list[TokenIds]


def plain(loaded: LoadedModel, prompts: Sequence[TokenIds], settings: GenerationSettings, size: int) -> Responses:
    """`transformers`' own `generate`, batch after batch in the order in which the prompts come."""
    found: Responses = []
    ends, pad = list(loaded.chat.end_ids), loaded.chat.end_ids[0]
    for start in range(0, len(prompts), size):
        batch = prompts[start : start + size]
        width = max(map(len, batch))
        rows = loaded.model.generate(
            input_ids=torch.tensor([[pad] * (width - len(p)) + list(p) for p in batch]),
            attention_mask=torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in batch]),
            max_new_tokens=settings.max_new_tokens,
            do_sample=False,
            eos_token_id=ends,
            pad_token_id=pad,
        )
        for row in rows[:, width:].tolist():
            end = next((i for i, token in enumerate(row) if token in ends), len(row) - 1)
            found.append(tuple(row[: end + 1]))
    return found


def ours(loaded: LoadedModel, prompts: Sequence[TokenIds], settings: GenerationSettings) -> Responses:
    """As anchoring does it."""
    found: dict[int, TokenIds] = {}
    for batch in plan_batches(prompts, settings):
        responses = generate_batch(loaded.model, [prompts[i] for i in batch], settings, loaded.chat.end_ids)
        found |= {i: own[0].ids for i, own in zip(batch, responses, strict=True)}
    return [found[i] for i in range(len(prompts))]


def continuous(loaded: LoadedModel, prompts: Sequence[TokenIds], settings: GenerationSettings) -> Responses:
    """`transformers`' continuous batching."""
    how = GenerationConfig(
        max_new_tokens=settings.max_new_tokens,
        do_sample=False,
        eos_token_id=list(loaded.chat.end_ids),
        pad_token_id=loaded.chat.end_ids[0],
    )
    model: Any = loaded.model
    outputs = model.generate_batch(inputs=[list(p) for p in prompts], generation_config=how, progress_bar=False)
    return [tuple(outputs[key].generated_tokens) for key in sorted(outputs, key=lambda k: int(k.rsplit("_", 1)[-1]))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--batches", type=int, nargs="*", default=[8, 16, 32, 64])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--continuous", action="store_true", help="time continuous batching too")
    arguments = parser.parse_args()
    source = "dsp:literature" if os.environ.get("BAPO_DATA") else "starter:concise"
    loaded = load_model(arguments.model)
    groups = read_preferences(source).groups[: arguments.prompts]
    prompts = [loaded.chat.prompt_ids(group.prompt) for group in groups]
    settings = GenerationSettings(max_new_tokens=arguments.max_new_tokens)
    sides: dict[str, Callable[[], Responses]] = {
        f"plain, batch {size}": lambda size=size: plain(loaded, prompts, settings, size) for size in arguments.batches
    }
    sides["bapo"] = lambda: ours(loaded, prompts, settings)
    if arguments.continuous:
        sides["continuous batching"] = lambda: continuous(loaded, prompts, settings)
    generate_batch(loaded.model, prompts[:2], GenerationSettings(max_new_tokens=4), loaded.chat.end_ids)  # warms up
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    tokens = dict.fromkeys(sides, 0)
    for _ in range(arguments.repeats):
        for side, work in sides.items():
            start = time.perf_counter()
            tokens[side] = sum(map(len, work()))
            seconds[side].append(time.perf_counter() - start)
            print(f"  {side} {seconds[side][-1]:.1f} s", file=sys.stderr, flush=True)
    best = min((median(own) for side, own in seconds.items() if side.startswith("plain")))
    rows = [
        (
            side,
            f"{median(own):.1f} s [{min(own):.1f}, {max(own):.1f}]",
            f"{len(prompts) / median(own):.2f}",
            f"{tokens[side] / median(own):.0f}",
            f"{best / median(own):.2f}",
        )
        for side, own in seconds.items()
    ]
    header = ("side", "time", "prompts/s", "tokens/s", "against the best plain one")
    setting = f"{arguments.repeats} repeats, {torch.get_num_threads()} threads, {loaded.precision}"
    print(f"\n{source}: {len(prompts)} prompts, {setting}\n")
    print(markdown_table(header, rows))


if __name__ == "__main__":
    main()
