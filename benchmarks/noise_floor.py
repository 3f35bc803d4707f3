"""How large rounding is: the noise floor of the embedded model by precision and instruction set, and what it hides.

Every line is measured in a process that may use the instruction set and no later one. The gaps are mean absolute
differences of a token's log-prob, in nats, between one row with all responses and: a row for each prompt, a row whose
embeddings are nudged by a rounding here and there, the model's own forward pass, and float32 with the same weights.
Then, in each precision, how often rounding alone raises an alarm when responses are drawn anew, and how many of some
seeds' adapters, none of them zero, are told from their reference after something small went wrong.

    python benchmarks/noise_floor.py [--prompts 4] [--seeds 20] [--sets amx avx2]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.faults import a_step_later, another_checkpoint, dropout_left_on, off_by_one, one_percent
from tests.processors import LIMITS, possible_sets

from bapo.anchoring import AnchoredPreferences, Probe
from bapo.anchoring.tokens import LengthPolicy, tokenize
from bapo.errors import BapoError
from bapo.likelihood import ResponseScorer, TokenGroup, gap_of, noise_floor
from bapo.models import add_lora, load_model, machine, model_fingerprint
from bapo.preferences import read_preferences
from bapo.reporting import markdown_table
from bapo.training.reference import check_step_0, reference_pass


def groups_of(loaded: Any, prompts: int) -> list[TokenGroup]:
    read = read_preferences("starter:concise")
    return [group.tokens for group in tokenize(read, loaded.chat, LengthPolicy()).groups[:prompts]]


def measure(model: str, precision: str, prompts: int, resamples: int) -> dict[str, Any]:
    """One line of the table."""
    loaded = load_model(model, precision=precision, device="cpu")
    scorer, groups = ResponseScorer(loaded.model), groups_of(loaded, prompts)
    layouts = scorer.layouts(groups)
    layouts.setdefault("groups", torch.cat([scorer.row([group]) for group in groups]))
    row = layouts["row"]
    alone = torch.cat([scorer.row([TokenGroup(group.prompt, (r,))]) for group in groups for r in group.responses])
    with torch.no_grad():
        plain = scorer.passes.plainly(groups).tokens
    is_float32 = precision == "float32"
    floor = noise_floor(layouts, float32=is_float32)
    generator, alarms = torch.Generator().manual_seed(0), 0
    lengths = [len(response) for group in groups for response in group.responses]
    parts = {name: tokens.split(lengths) for name, tokens in (layouts | {"stored": alone}).items()}
    for _ in range(resamples):
        drawn = torch.randint(len(lengths), (len(lengths),), generator=generator).tolist()
        again = {name: torch.cat([own[i] for i in drawn]) for name, own in parts.items()}
        stored = again.pop("stored")
        alarms += gap_of(again["row"], stored) > noise_floor(again, float32=is_float32).limit
    return {
        "gaps": [gap_of(row, other) for other in (layouts["groups"], layouts["nudged"], plain, scorer.float32(groups))],
        "largest": float((row - alone).abs().max()),
        "tokens": len(row),
        "limit": floor.limit,
        "alarms": alarms,
        "machine": machine(),
    }


FAULTS: dict[str, Callable[[Any], Any]] = {
    "nothing": lambda policy: nullcontext(),
    "1 % error in one layer's feed-forward output": one_percent,
    "responses' positions off by one": off_by_one,
    "adapter's dropout of 0.05 left on": dropout_left_on,
    "adapter one optimizer step later": a_step_later,
    "another checkpoint": another_checkpoint,
}


def detect(model: str, precision: str, seeds: int) -> dict[str, int]:
    """Of so many adapters, how many the check refuses after each fault; the key of the weights is forged."""
    told = dict.fromkeys(FAULTS, 0)
    for seed in range(seeds):
        loaded = load_model(model, precision=precision, device="cpu")
        policy = add_lora(loaded.model, dropout=0.05, seed=seed)
        torch.manual_seed(seed)
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=2e-3)
        scorer = ResponseScorer(policy)
        probe, reference = Probe.of(scorer, groups_of(loaded, 1)), reference_pass(policy)
        for fault, happens in FAULTS.items():
            with one_percent(policy, seed) if happens is one_percent else happens(policy):
                data = AnchoredPreferences("", (), model_fingerprint(policy), end_ids=loaded.chat.end_ids, probe=probe)
                try:
                    check_step_0(policy, scorer, data, loaded.chat.end_ids, reference)
                except BapoError:
                    told[fault] += 1
    return told


def in_a_process(name: str, *arguments: str) -> Any:
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(
        command, env={**os.environ, **LIMITS.get(name, {})}, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def print_tables(told: argparse.Namespace) -> None:
    rows = []
    for name in told.sets or possible_sets():
        for precision in ("bf16", "float32"):
            found = in_a_process(name, "--one", precision, *sys.argv[1:])
            gaps = [f"{gap:.2g}" for gap in found["gaps"]]
            shown = [*gaps, f"{found['largest']:.2g}", f"{found['limit']:.2g}"]
            rows.append([precision, name, *shown, f"{found['alarms']} of {told.resamples}", str(found["tokens"])])
            print(rows[-1], flush=True)
    head = ["precision", "instructions", "row for each prompt", "nudged", "own forward pass", "float32"]
    head += ["largest token, alone", "limit", "alarms", "tokens"]
    print(found["machine"]["processor"], found["machine"]["packages"])
    print(markdown_table(head, rows))
    if told.seeds:
        refused = {precision: detect(told.model, precision, told.seeds) for precision in ("bf16", "float32")}
        lines = [[fault, *(f"{own[fault]} of {told.seeds}" for own in refused.values())] for fault in FAULTS]
        print(markdown_table(["what went wrong", *(f"refused, {precision}" for precision in refused)], lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--resamples", type=int, default=1000, help="draws of responses that may raise an alarm")
    parser.add_argument("--sets", nargs="+", help="instruction sets; all that the processor has by default")
    parser.add_argument("--one", choices=("bf16", "float32"), help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.one:
        print(json.dumps(measure(told.model, told.one, told.prompts, told.resamples)))
        return
    print_tables(told)


if __name__ == "__main__":
    main()
