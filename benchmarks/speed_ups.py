"""What each speed-up is worth under each instruction set: with and without it in turns, in one process for each set.

So that nothing is tuned for one kind of processor at another's cost. Timed on the embedded model, in the precision that
suits the instruction set, with starter preferences: base responses with and without weights laid out for few rows; the
loss and gradients of a row in strands and in one piece, and with and without layers that keep less and adapters that
multiply once. Printed is how many times as long each takes without it: above 1 it helps.

    python benchmarks/speed_ups.py [--sets amx avx512_bf16] [--rounds 5] [--prompts 4] [--new-tokens 32]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.processors import LIMITS, possible_sets

from bapo.anchoring import GenerationSettings, generate_batch
from bapo.anchoring.tokens import LengthPolicy, tokenize
from bapo.likelihood import MOST_STRANDS, ResponseScorer, TokenGroup
from bapo.models import (
    LoadedModel,
    add_lora,
    fuse_lora,
    keep_freed_memory,
    lean_layers,
    load_model,
    machine,
    packed_weights,
)
from bapo.preferences import read_preferences
from bapo.reporting import markdown_table

Pair = tuple[Callable[[], object], Callable[[], object]]


@contextmanager
def as_they_are(*_: object) -> Iterator[int]:
    """In place of `packed_weights`: no layer uses a copy."""
    yield 0


def generation(loaded: LoadedModel, prompts: list[TokenGroup], new_tokens: int) -> Pair:
    """Base responses with rearranged weights, and without."""
    settings = GenerationSettings(max_new_tokens=new_tokens)

    def generate(way: Callable[..., object]) -> None:
        with patch("bapo.anchoring.generate.packed_weights", way):
            generate_batch(loaded.model, [group.prompt for group in prompts], settings, loaded.chat.end_ids)

    return lambda: generate(packed_weights), lambda: generate(as_they_are)


def policy(name: str, changed: bool) -> ResponseScorer:
    """The model with an adapter, with or without what is changed in its layers."""
    model = add_lora(load_model(name, device="cpu").model)
    if changed:
        fuse_lora(model)
        lean_layers(model)
    return ResponseScorer(model.train())


def gradients(scorer: ResponseScorer, groups: list[TokenGroup], strands: int) -> None:
    scorer(groups, most_strands=strands).tokens.sum().backward()
    scorer.model.zero_grad()


def measure(name: str, rounds: int, prompts: int, new_tokens: int) -> dict[str, object]:
    """Seconds with each speed-up and without, of each round."""
    keep_freed_memory()
    loaded = load_model(name, device="cpu")
    read = read_preferences("starter:concise")
    groups = [group.tokens for group in tokenize(read, loaded.chat, LengthPolicy()).groups]
    row, lean, plain = groups[:prompts], policy(name, True), policy(name, False)
    pairs: dict[str, Pair] = {
        f"packed weights, {rows} rows": generation(loaded, groups[:rows], new_tokens) for rows in (1, 4, 16)
    }
    pairs["strands"] = (
        lambda: gradients(lean, row, MOST_STRANDS),
        lambda: gradients(lean, row, 1),
    )
    pairs["lean layers and fused adapters"] = (
        lambda: gradients(lean, row, MOST_STRANDS),
        lambda: gradients(plain, row, MOST_STRANDS),
    )
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in pairs}
    for number in range(rounds + 1):
        for what, sides in pairs.items():
            taken = []
            for side in sides if number % 2 else sides[::-1]:
                start = time.perf_counter()
                side()
                taken.append(time.perf_counter() - start)
            if number:  # the first one warms up
                seconds[what].append((taken[0], taken[1]) if number % 2 else (taken[1], taken[0]))
    return {"precision": loaded.precision, "machine": machine(loaded.model.device), "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", help="instruction sets; all that the processor has by default")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=4, help="of the row whose gradients are taken")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.one:
        print(json.dumps(measure(told.model, told.rounds, told.prompts, told.new_tokens)))
        return
    rows = []
    for name in told.sets or possible_sets():
        command = [sys.executable, __file__, "--one", *sys.argv[1:]]
        environment = {**os.environ, **LIMITS.get(name, {})}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        for what, seconds in found["seconds"].items():
            ratios = [without / own for own, without in seconds]
            spread = f"{median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"
            rows.append([name, found["precision"], what, f"{median(own for own, _ in seconds):.2f}", spread])
            print(rows[-1], file=sys.stderr, flush=True)
    print(found["machine"])
    print(markdown_table(["instructions", "precision", "speed-up", "seconds with it", "times as long without"], rows))


if __name__ == "__main__":
    main()
