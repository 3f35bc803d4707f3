"""Training steps of bapo and of TRL's DPOTrainer extended to BAPO, on the same pairs, interleaved in one run.

Workloads: all pairs of a few prompts (grouped), pairs of different prompts (by-pair), prompts of 1,500 tokens (long).
A step is forward, backward and AdamW for LoRA r 32 on all linear layers of the bf16 model. Printed for each side: the
median step with its range, pairs per second, the ratio to both modes of TRL, the peak memory that a step adds (in a
process of its own), the operations counted, their share of the measured matrix-product peak, and the loss that each
side computes in float32, without dropout, under one random adapter. DSP literature is used where BAPO_DATA is set, the
packaged starter preferences otherwise.

    python benchmarks/training_speed.py [--workloads grouped by-pair long] [--repeats 3] [--prompts 2]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from bapo.anchoring import AnchoredGroup, AnchoredPreferences, BaseResponse
from bapo.likelihood import ResponseScorer, TokenGroup
from bapo.models import LoadedModel, Precision, add_lora, load_model, lora_config
from bapo.personalize import read_recipe, stages
from bapo.reporting import markdown_table
from bapo.training import BAPOConfig, BAPOTrainer

SIDES = ("trl-online", "trl-precomputed", "bapo", "bapo-small")
WORKLOADS = ("grouped", "by-pair", "long")
BETA, STRENGTH = 0.1, 5.0
LONG_PROMPT, LONG_RESPONSE = 1500, 100
SMALL_BATCH = 1024  # input tokens in memory at once on the side bapo-small
ADAPTER_SCALE = 0.02  # of the random adapter with which both sides' losses are compared


@dataclass(frozen=True)
class Side:
    """A model that is trained: its loss over the whole workload, and that loss's forward and backward."""

    model: Any
    loss: Callable[[], torch.Tensor]
    backward: Callable[[], None]


def workload_groups(workload: str, prompts: int, model: LoadedModel) -> AnchoredPreferences:
    """The anchored prompt groups that every side trains on."""
    if workload == "long":
        return AnchoredPreferences("long", tuple(_random_group(model, seed) for seed in range(2)), "benchmark")
    source = "dsp:literature" if os.environ.get("BAPO_DATA") else "starter:concise"
    told = {
        "preferences.source": source,
        "preferences.held_out": 100 if os.environ.get("BAPO_DATA") else 5,
        "preferences.max_train_prompts": 110,
        "anchoring.max_new_tokens": 128,
    }
    recipe = read_recipe(None, told)
    groups = stages.anchor_preferences(recipe, stages.read(recipe).train, model).groups
    if workload == "grouped":
        chosen = groups[:prompts]
    else:
        chosen = tuple(replace(g, pairs=(g.pairs[i % len(g.pairs)],)) for i, g in enumerate(groups[:8]))
    return AnchoredPreferences(f"{source} {workload}", chosen, "benchmark")


def _random_group(model: LoadedModel, seed: int) -> AnchoredGroup:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(100, 40_000, (LONG_PROMPT + 3 * LONG_RESPONSE,), generator=generator).tolist()
    prompt, rest = tuple(ids[:LONG_PROMPT]), ids[LONG_PROMPT:]
    chosen, rejected, base = (tuple(rest[i : i + LONG_RESPONSE]) for i in range(0, len(rest), LONG_RESPONSE))
    scored = ResponseScorer(model.model).score([TokenGroup(prompt, (chosen, rejected, base))])
    *refs, base_ref = scored.summed().tolist()
    own = BaseResponse(base, False, base_ref, tuple(scored.per_response()[-1].tolist()))
    return AnchoredGroup(None, TokenGroup(prompt, (chosen, rejected)), ((0, 1),), tuple(refs), (own,))  # type: ignore[arg-type]


# ---- the two sides ---------------------------------------------------------------------------------------------------


def bapo_side(data: AnchoredPreferences, loaded: LoadedModel, folder: str, *, small: bool = False) -> Side:
    """Our trainer, with its default bound on the tokens in memory at once or a small one."""
    bound = {"max_batch_tokens": SMALL_BATCH} if small else {}
    settings = BAPOConfig(
        output_dir=folder,
        use_cpu=True,
        beta=BETA,
        anchor="sequence",
        anchor_strength=STRENGTH,
        disable_tqdm=True,
        **bound,
    )
    trainer = BAPOTrainer(add_lora(loaded.model), args=settings, train_dataset=data, processing_class=loaded.tokenizer)
    batch = trainer.data_collator(trainer.train_dataset.items)

    def backward() -> None:
        for part in batch["batches"]:
            trainer.compute_loss(trainer.model, {"batches": (part,)}, num_items_in_batch=data.pair_count).backward()

    return Side(trainer.model, lambda: trainer.compute_loss(trainer.model, batch), backward)


def trl_side(data: AnchoredPreferences, loaded: LoadedModel, folder: str, *, precomputed: bool) -> Side:
    """TRL's own trainer, loss and collator, with the base responses as one more padded batch."""
    import trl
    from datasets import Dataset

    trainer = trl.DPOTrainer(
        loaded.model,
        args=trl.DPOConfig(
            output_dir=folder,
            use_cpu=True,
            bf16=loaded.precision == "bf16",
            beta=BETA,
            report_to="none",
            max_length=None,
        ),
        train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}]),
        processing_class=loaded.tokenizer,
        peft_config=lora_config(),
    )
    trainer.model = trainer.accelerator.prepare(trainer.model)
    pairs = [(group, pair) for group in data.groups for pair in group.pairs]
    rows, base_rows = [], []
    for group, (chosen, rejected) in pairs:
        prompt, responses = list(group.tokens.prompt), group.tokens.responses
        row = {"prompt_ids": prompt, "chosen_ids": list(responses[chosen]), "rejected_ids": list(responses[rejected])}
        rows.append(
            {**row, "ref_chosen_logps": group.ref_logps[chosen], "ref_rejected_logps": group.ref_logps[rejected]}
        )
        base_rows.append({"prompt_ids": prompt, "chosen_ids": list(group.bases[0].ids), "rejected_ids": [0]})
    batch = trainer.data_collator(rows)
    if not precomputed:
        del batch["ref_chosen_logps"], batch["ref_rejected_logps"]
    bases = {key: value[: len(pairs)] for key, value in trainer.data_collator(base_rows).items()}
    base_ref = torch.tensor([group.bases[0].ref_logp for group, _ in pairs])
    trainer.precompute_ref_logps = precomputed

    def loss() -> torch.Tensor:
        pair_loss = trainer.compute_loss(trainer.model, dict(batch))
        reference = base_ref
        if not precomputed:
            with torch.no_grad(), trainer.model.disable_adapter():
                reference = _padded_logps(trainer.model, bases)
        return pair_loss + STRENGTH * F.relu(reference - _padded_logps(trainer.model, bases)).mean()

    return Side(trainer.model, loss, lambda: loss().backward())


def _padded_logps(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Summed response log-probs the way that TRL computes them."""
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    return model(**inputs, use_cache=False, labels=labels, fused_lm_head=True).log_probs.sum(dim=1)


def make_side(
    side: str, workload: str, prompts: int, precision: Precision = "bf16"
) -> tuple[Side, AnchoredPreferences]:
    """A fresh model with a fresh adapter, and its loss."""
    loaded = load_model("smollm2", precision=precision)
    data = workload_groups(workload, prompts, loaded)
    folder = tempfile.mkdtemp()
    if side.startswith("bapo"):
        return bapo_side(data, loaded, folder, small=side == "bapo-small"), data
    return trl_side(data, loaded, folder, precomputed=side == "trl-precomputed"), data


# ---- measuring -------------------------------------------------------------------------------------------------------


def train_step(side: Side, optimizer: torch.optim.Optimizer) -> float:
    """Seconds of one step."""
    start = time.perf_counter()
    side.backward()
    optimizer.step()
    optimizer.zero_grad()
    return time.perf_counter() - start


def optimizer_of(model: Any) -> torch.optim.Optimizer:
    """AdamW over what is trained."""
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-4)


def compared_loss(side: Side) -> float:
    """The loss without dropout, under an adapter that is random and the same on every side."""
    model, generator = side.model, torch.Generator().manual_seed(0)
    weights = sorted((n.split("base_model")[-1], p) for n, p in model.named_parameters() if p.requires_grad)
    before = [p.detach().clone() for _, p in weights]
    with torch.no_grad():
        for _, parameter in weights:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * ADAPTER_SCALE)
    model.eval()
    with torch.no_grad():
        found = float(side.loss())
    model.train()
    with torch.no_grad():
        for (_, parameter), old in zip(weights, before, strict=True):
            parameter.copy_(old)
    return found


def counted_step(side: Side, optimizer: torch.optim.Optimizer) -> float:
    """A first step, which warms up, and the operations of its products and attentions by torch's own counter."""
    with FlopCounterMode(display=False) as counter:
        train_step(side, optimizer)
    return float(counter.get_total_flops())


def measured_peak() -> float:
    """Operations per second of a large bf16 matrix product, the best of several."""
    a, b = torch.randn(4096, 4096).bfloat16(), torch.randn(4096, 4096).bfloat16()
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - start)
    return 2 * 4096**3 / min(seconds)


def step_memory(side: str, workload: str, prompts: int) -> float:
    """Bytes that a step adds at its peak to a process that holds model, adapter and data."""
    arguments = [sys.executable, __file__, "--memory-of", side, "--workloads", workload, "--prompts", str(prompts)]
    out = subprocess.run(arguments, check=True, capture_output=True, text=True).stdout
    return float(json.loads(out.splitlines()[-1])["bytes"])


def memory_of(work: Callable[[], object]) -> float:
    """Bytes by which this process grows at its peak while it works (Linux)."""
    with open("/proc/self/statm") as file:
        before = int(file.read().split()[1]) * resource.getpagesize()
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak starts anew
    work()
    with open("/proc/self/status") as file:
        peak = next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
    return float(peak - before)


def report_memory(side: str, workload: str, prompts: int) -> None:
    """What `step_memory` asks a child process for."""
    made, _ = make_side(side, workload, prompts)
    optimizer = optimizer_of(made.model)
    made.model.train()
    print(json.dumps({"bytes": memory_of(lambda: train_step(made, optimizer))}))


def measure(workload: str, prompts: int, repeats: int, memory: dict[str, float]) -> None:
    """Run all sides of a workload and print its table; ``memory`` is what each side's step adds, bytes."""
    losses = {side: compared_loss(make_side(side, workload, prompts, "float32")[0]) for side in SIDES}
    made = {side: make_side(side, workload, prompts) for side in SIDES}
    optimizers = {side: optimizer_of(made[side][0].model) for side in SIDES}
    operations = {side: counted_step(made[side][0], optimizers[side]) for side in SIDES}
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    peaks = []
    for _ in range(repeats):
        peaks.append(measured_peak())
        for side in SIDES:
            took = train_step(made[side][0], optimizers[side])
            print(f"  {workload} {side} {took:.2f} s", file=sys.stderr, flush=True)
            seconds[side].append(took)
    _, data = made["bapo"]
    pairs = data.pair_count
    made.clear()
    rows = []
    for side in SIDES:
        step = median(seconds[side])
        ratios = [
            f"{median(theirs / own for theirs, own in zip(seconds[other], seconds[side], strict=True)):.1f}"
            f" [{min(seconds[other]) / max(seconds[side]):.1f}, {max(seconds[other]) / min(seconds[side]):.1f}]"
            for other in SIDES[:2]
        ]
        rows.append(
            (
                side,
                f"{step:.1f} s [{min(seconds[side]):.1f}, {max(seconds[side]):.1f}]",
                f"{pairs / step:.2f}",
                *ratios,
                f"{memory[side] / 1e9:.2f} GB",
                f"{operations[side] / 1e9:.0f}",
                f"{operations[side] / step / max(peaks):.0%}",
                f"{losses[side]:.4f}",
            )
        )
    header = ("side", "step", "pairs/s", "faster than TRL online", "than TRL precomputed", "memory added")
    header += ("GFLOP", "of peak", "loss (float32)")
    print(
        f"\n{data.name}: {pairs} pairs of {len(data.groups)} prompts, {repeats} repeats, "
        f"peak {max(peaks) / 1e9:.0f} GFLOP/s, {torch.get_num_threads()} threads\n"
    )
    print(markdown_table(header, rows), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workloads", nargs="*", choices=WORKLOADS, default=WORKLOADS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=2, help="prompts of the grouped workload")
    parser.add_argument("--memory-of", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        report_memory(arguments.memory_of, arguments.workloads[0], arguments.prompts)
        return
    # Memory first: later this process is so large itself that a child of TRL's size would find no room.
    memory = {w: {side: step_memory(side, w, arguments.prompts) for side in SIDES} for w in arguments.workloads}
    for workload in arguments.workloads:
        measure(workload, arguments.prompts, arguments.repeats, memory[workload])


if __name__ == "__main__":
    main()
