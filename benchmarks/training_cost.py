"""How time and memory of a BAPO step grow with pairs per prompt, prompt, response, batch and model; drawn as a figure.

Random tokens, so that every length is exact; the model is the real one (and a wider random one). Each point is measured
in a process of its own: a warm-up step, then the median of the next steps and the peak memory that they add.

    python benchmarks/training_cost.py [--steps 2] [--figure docs/figures/training-cost.png]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import torch
from training_speed import bapo_side, memory_of, optimizer_of, train_step

from bapo.anchoring import AnchoredGroup, AnchoredPreferences, BaseResponse
from bapo.kernels.kept_memory import kept_memory
from bapo.likelihood import TokenGroup
from bapo.models import load_model
from bapo.reporting import markdown_table


@dataclass(frozen=True)
class Point:
    """One size of step: ``prompts`` prompts, each with ``pairs`` pairs of ``pairs + 1`` responses, and a base."""

    prompts: int = 2
    pairs: int = 4
    prompt_tokens: int = 64
    response_tokens: int = 128
    wide: bool = False


REFERENCE = -9.0
"""Nats of each token under a made-up reference: more than random tokens have, so that the anchor's hinge is active."""

SWEEPS = {
    "pairs": [1, 2, 4, 8, 16],
    "prompt_tokens": [32, 128, 512, 2048],
    "response_tokens": [32, 128, 512, 1024],
    "prompts": [1, 4, 16],
    "wide": [False, True],
}
LABELS = {
    "pairs": "pairs per prompt",
    "prompt_tokens": "prompt tokens",
    "response_tokens": "response tokens",
    "prompts": "prompts (4 pairs each)",
    "wide": "weights (millions)",
}


def workload(point: Point, vocabulary: int) -> AnchoredPreferences:
    """Random tokens of the point's lengths; one response is chosen against all others."""
    generator = torch.Generator().manual_seed(0)

    def draw(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(100, min(40_000, vocabulary), (n,), generator=generator).tolist())

    groups = []
    for _ in range(point.prompts):
        responses = tuple(draw(point.response_tokens) for _ in range(point.pairs + 1))
        base_ref = (REFERENCE,) * point.response_tokens
        base = BaseResponse(draw(point.response_tokens), True, sum(base_ref), base_ref)
        pairs = tuple((0, rejected) for rejected in range(1, point.pairs + 1))
        tokens = TokenGroup(draw(point.prompt_tokens), responses)
        refs = (sum(base_ref),) * len(responses)
        groups.append(AnchoredGroup(None, tokens, pairs, refs, (base,)))  # type: ignore[arg-type]
    return AnchoredPreferences("random", tuple(groups), "benchmark")


def measure(model: str, point: Point, steps: int) -> dict[str, float]:
    """Seconds and bytes of a step, and the tokens and weights that it computes with."""
    loaded = load_model(model)
    if point.wide:
        from transformers import AutoModelForCausalLM

        config = loaded.model.config
        config.hidden_size, config.intermediate_size = 2 * config.hidden_size, 2 * config.intermediate_size
        loaded = replace(loaded, model=AutoModelForCausalLM.from_config(config, dtype=loaded.model.dtype).eval())
    weights = loaded.model.num_parameters()
    data = workload(point, loaded.model.config.vocab_size)
    side = bapo_side([data], loaded, tempfile.mkdtemp())
    optimizer = optimizer_of(side.model)
    side.model.train()
    memory = ExitStack()
    memory.enter_context(kept_memory(torch.device("cpu")))  # as in the trainer's train()
    seconds: list[float] = []

    def step() -> None:
        seconds.append(train_step(side, 0, optimizer))

    added = memory_of(lambda: [step() for _ in range(steps + 1)])
    tokens = sum(g.tokens.cost + len(g.bases[0].ids) - 1 for g in data.groups)
    return {"seconds": median(seconds[1:]), "bytes": added, "tokens": tokens, "weights": weights}


def draw(found: dict[str, list[tuple[Point, dict[str, float]]]], path: Path) -> None:
    """Time and memory over each size, on logarithmic axes."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, StrMethodFormatter

    figure = Figure(figsize=(3 * len(found), 5), layout="constrained")
    axes = figure.subplots(2, len(found), squeeze=False, sharey="row", sharex="col")
    for column, (name, points) in enumerate(found.items()):
        sizes = [m["weights"] / 1e6 if name == "wide" else getattr(p, name) for p, m in points]
        for row, (key, unit, label) in enumerate((("seconds", 1, "seconds a step"), ("bytes", 1e9, "GB added"))):
            axis = axes[row][column]
            axis.loglog(sizes, [m[key] / unit for _, m in points], marker="o", color="#0072B2")
            axis.spines[["top", "right"]].set_visible(False)
            axis.set_xticks(sizes, [f"{size:,.0f}" for size in sizes])
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axis.minorticks_off()
            axis.grid(alpha=0.3)
            if row:
                axis.set_xlabel(LABELS[name])
            if not column:
                axis.set_ylabel(label)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--sweeps", nargs="+", choices=SWEEPS, default=list(SWEEPS), help="what grows")
    parser.add_argument("--most", type=int, help="leave out what is larger")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--figure", type=Path, default=Path("docs/figures/training-cost.png"))
    parser.add_argument("--point", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.point:
        print(json.dumps(measure(arguments.model, Point(**json.loads(arguments.point)), arguments.steps)))
        return
    cache: dict[Point, dict[str, float]] = {}
    found: dict[str, list[tuple[Point, dict[str, float]]]] = {}
    for name in arguments.sweeps:
        for value in (own for own in SWEEPS[name] if arguments.most is None or own <= arguments.most):
            point = replace(Point(), **{name: value})
            if point not in cache:
                command = [sys.executable, __file__, "--model", arguments.model, "--point", json.dumps(asdict(point))]
                command += ["--steps", str(arguments.steps)]
                out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                cache[point] = json.loads(out.splitlines()[-1])
                print(point, cache[point], file=sys.stderr, flush=True)
            found.setdefault(name, []).append((point, cache[point]))
    rows = [
        (
            LABELS[name],
            f"{m['weights'] / 1e6:.0f}" if name == "wide" else str(getattr(p, name)),
            f"{m['tokens']:.0f}",
            f"{m['seconds']:.2f}",
            f"{m['tokens'] / m['seconds']:.0f}",
            f"{m['bytes'] / 1e9:.2f}",
        )
        for name, points in found.items()
        for p, m in points
    ]
    print(markdown_table(("what grows", "to", "tokens a step", "seconds", "tokens/s", "GB added"), rows))
    draw(found, arguments.figure)


if __name__ == "__main__":
    main()
