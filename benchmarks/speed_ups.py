"""What each kernel gains alone, and as the last one beside all others, in time and in memory.

Timed on the embedded model with starter preferences, in the precision that suits the instruction set: the loss and
gradients of a row (every third response without a gradient, as a base response whose hinge is not active), and base
responses for weights that are laid out for few rows. Both sides of every comparison take turns in one process, one
process for each instruction set, so that nothing is tuned for one kind of processor at another's cost.

Printed is how many times as long it takes without the kernel (above 1 it helps), the median of the rounds and their
range, and by how many megabytes the process grows meanwhile, with and without it (Linux only). What gains neither time
nor memory on any set of instructions has no reason to be there.

    python benchmarks/speed_ups.py [--sets amx avx512_bf16] [--rounds 5] [--prompts 4] [--new-tokens 32]
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from statistics import median
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from tests.processors import LIMITS, possible_sets

from bapo.anchoring import GenerationSettings, generate_batch
from bapo.anchoring.tokens import LengthPolicy, tokenize
from bapo.kernels import KERNELS
from bapo.kernels.kept_memory import kept_memory
from bapo.likelihood import ResponseScorer, TokenGroup
from bapo.models import LoadedModel, add_lora, load_model, machine
from bapo.preferences import read_preferences
from bapo.reporting import markdown_table

CPU = torch.device("cpu")
MEGABYTE = 2**20


class Turn(NamedTuple):
    """What one turn took: seconds, and by how many bytes the process grew (-1 where that cannot be told)."""

    seconds: float
    grown: int


class Comparison(NamedTuple):
    """Work under two settings of ``kernels``, of which the first has the kernel in question."""

    kernel: str
    beside: str
    work: Callable[[frozenset[str]], object]
    own: frozenset[str]
    without: frozenset[str]


def comparisons(
    name: str, loaded: LoadedModel, groups: list[TokenGroup], prompts: int, new_tokens: int
) -> list[Comparison]:
    policy = add_lora(load_model(name, device="cpu").model).train()
    scorer_for = cache(lambda kernels: ResponseScorer(policy, kernels))

    def gradients(kernels: frozenset[str]) -> None:
        with scorer_for(kernels) as scorer:
            logps = scorer(groups[:prompts]).summed()
            logps[[at for at in range(len(logps)) if at % 3 < 2]].sum().backward()
        policy.zero_grad()

    settings, end_ids = GenerationSettings(max_new_tokens=new_tokens), loaded.chat.end_ids

    def answers_of(rows: int) -> Callable[[frozenset[str]], object]:
        asked = [group.prompt for group in groups[:rows]]
        return lambda kernels: generate_batch(loaded.model, asked, settings, end_ids, kernels)

    every, none = frozenset(KERNELS), frozenset[str]()
    found = []
    for kernel in KERNELS:
        work = {f"{kernel}, {rows} rows": answers_of(rows) for rows in (1, 4, 16)}
        for name, own in (work if kernel == "packed-weights" else {kernel: gradients}).items():
            found.append(Comparison(name, "none", own, frozenset({kernel}), none))
            found.append(Comparison(name, "all others", own, every, every - {kernel}))
    return [*found, Comparison("all", "none", gradients, every, none)]


def turn(work: Callable[[frozenset[str]], object], kernels: frozenset[str]) -> Turn:
    """One piece of work; where freed memory is kept, it is warm, as in every step of a training but the first."""
    with kept_memory(CPU, "kept-memory" in kernels):
        before = start_of_growth()
        if "kept-memory" in kernels:
            work(kernels)
        start = time.perf_counter()
        work(kernels)
        return Turn(time.perf_counter() - start, -1 if before is None else status("VmHWM") - before)


def start_of_growth() -> int | None:
    """Bytes that the process has in memory, from where its peak is counted anew; None where that cannot be told."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        return status("VmRSS")
    except (OSError, AttributeError):
        return None


def status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def measure(name: str, rounds: int, prompts: int, new_tokens: int, names: list[str]) -> dict[str, object]:
    """Seconds and bytes of each comparison and round, with the kernel and without."""
    loaded = load_model(name, device="cpu")
    read = read_preferences("starter:concise")
    groups = [group.tokens for group in tokenize(read, loaded.chat, LengthPolicy()).groups]
    asked = [own for own in comparisons(name, loaded, groups, prompts, new_tokens) if own.kernel.split(",")[0] in names]
    turns: list[list[tuple[Turn, Turn]]] = [[] for _ in asked]
    for number in range(rounds + 1):
        for at, (_, _, work, own, without) in enumerate(asked):
            sides = (own, without) if number % 2 else (without, own)
            taken = {kernels: turn(work, kernels) for kernels in sides}
            if number:  # the first one warms up
                turns[at].append((taken[own], taken[without]))
    found = [(own.kernel, own.beside, pairs) for own, pairs in zip(asked, turns, strict=True)]
    return {"precision": loaded.precision, "machine": machine(loaded.model.device), "found": found}


def row_of(pairs: list[tuple[list[float], list[float]]]) -> list[str]:
    """Seconds, ratio, and growth with and without, for people."""
    ratios = [without[0] / own[0] for own, without in pairs]
    grown = [[side[1] for side in sides] for sides in zip(*pairs, strict=True)]
    megabytes = [f"{median(own) / MEGABYTE:,.0f}" if min(own) >= 0 else "" for own in grown]
    spread = f"{median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"
    return [f"{median(own[0] for own, _ in pairs):.2f}", spread, *megabytes]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", help="instruction sets; all that the processor has by default")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=4, help="of the row whose gradients are taken")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--kernels", nargs="+", default=[*KERNELS, "all"], choices=[*KERNELS, "all"])
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.one:
        print(json.dumps(measure(told.model, told.rounds, told.prompts, told.new_tokens, told.kernels)))
        return
    rows = []
    for name in told.sets or possible_sets():
        command = [sys.executable, __file__, "--one", *sys.argv[1:]]
        environment = {**os.environ, **LIMITS.get(name, {})}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        for kernel, beside, pairs in found["found"]:
            rows.append([name, found["precision"], kernel, beside, *row_of(pairs)])
            print(rows[-1], file=sys.stderr, flush=True)
    print(found["machine"])
    columns = ["instructions", "precision", "kernel", "beside", "seconds with it", "times as long without"]
    print(markdown_table([*columns, "MB with it", "MB without"], rows))


if __name__ == "__main__":
    main()
