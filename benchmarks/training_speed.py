"""Training steps of bapo and of TRL's DPOTrainer extended to BAPO, on the same pairs, interleaved in one run.

Workloads: all pairs of a few prompts (grouped), pairs of different prompts (by-pair), prompts of 1,500 tokens (long).
A step is forward, backward and AdamW for LoRA r 32 on all linear layers, in the precision that suits the machine
(bf16 where it has instructions for it). TRL and each way of running bapo have a process of their own, and they step
in turn. Printed for each: the median step with its range, pairs per second, the ratio to both modes of TRL, the peak
memory that the first step adds to a process that holds model, adapter and data, the operations counted, their share
of the measured matrix-product peak, and the loss that each side computes in float32, without dropout, under one random
adapter. DSP literature is used where BAPO_DATA is set, the packaged starter preferences otherwise.

    python benchmarks/training_speed.py [--workloads grouped by-pair long] [--repeats 3] [--prompts 2] [--profile]
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from bapo.anchoring import AnchoredGroup, AnchoredPreferences, BaseResponse
from bapo.likelihood import ResponseScorer, TokenGroup
from bapo.models import (
    AnyPrecision,
    LoadedModel,
    Precision,
    add_lora,
    keep_freed_memory,
    load_model,
    lora_config,
    resolve_precision,
)
from bapo.personalize import read_recipe, stages
from bapo.reporting import markdown_table
from bapo.training import BAPOConfig, BAPOTrainer

SIDES = ("trl-online", "trl-precomputed", "bapo", "bapo-least-memory")
STEPS_IN_TURN = dict(zip(SIDES, (1, 1, 3, 3), strict=True))  # short ones are repeated, and their median counts
WORKLOADS = ("grouped", "by-pair", "long")
BETA, STRENGTH = 0.1, 5.0
LONG_PROMPT, LONG_RESPONSE = 1500, 100
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
        "preferences.max_train_prompts": 8,
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


def bapo_side(data: AnchoredPreferences, loaded: LoadedModel, folder: str, *, least_memory: bool = False) -> Side:
    """Our trainer, with its default of passes side by side or with one pass after the other."""
    passes = {"passes_at_once": 1} if least_memory else {}
    settings = BAPOConfig(
        output_dir=folder,
        use_cpu=True,
        beta=BETA,
        anchor="sequence",
        anchor_strength=STRENGTH,
        disable_tqdm=True,
        **passes,
    )
    trainer = BAPOTrainer(add_lora(loaded.model), args=settings, train_dataset=data, processing_class=loaded.tokenizer)
    batch = trainer.data_collator(trainer.train_dataset.items)

    def backward() -> None:
        trainer.training_step(trainer.model, batch, num_items_in_batch=data.pair_count)

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
    side: str, workload: str, prompts: int, precision: AnyPrecision = "auto"
) -> tuple[Side, AnchoredPreferences]:
    """A fresh model with a fresh adapter, and its loss."""
    loaded = load_model("smollm2", precision=precision)
    data = workload_groups(workload, prompts, loaded)
    folder = tempfile.mkdtemp()
    if side.startswith("bapo"):
        return bapo_side(data, loaded, folder, least_memory=side == "bapo-least-memory"), data
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


def compared_loss(name: str, workload: str, prompts: int) -> float:
    """The loss in float32 without dropout, under an adapter that is random and the same on every side."""
    side, _ = make_side(name, workload, prompts, "float32")
    model, generator = side.model, torch.Generator().manual_seed(0)
    weights = sorted((n.split("base_model")[-1], p) for n, p in model.named_parameters() if p.requires_grad)
    with torch.no_grad():
        for _, parameter in weights:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * ADAPTER_SCALE)
    model.eval()
    with torch.no_grad():
        return float(side.loss())


def counted_step(side: Side, optimizer: torch.optim.Optimizer) -> float:
    """The operations of a step's products and attentions by torch's own counter."""
    in_place = {torch.ops.aten.addmm_: lambda _, a, b, **others: 2 * a[0] * a[1] * b[1]}  # which the counter lacks
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        train_step(side, optimizer)
    return float(counter.get_total_flops())


def measured_peak(precision: Precision) -> float:
    """Operations per second of a large matrix product, the best of several."""
    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    a, b = torch.randn(4096, 4096).to(dtype), torch.randn(4096, 4096).to(dtype)
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - start)
    return 2 * 4096**3 / min(seconds)


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


def facts_of(name: str, workload: str, prompts: int) -> dict[str, Any]:
    """What is measured once: what a first step adds to the memory and computes, and the loss in float32."""
    side, data = make_side(name, workload, prompts)
    if name.startswith("bapo"):
        keep_freed_memory()  # which the trainer does when it starts to train
    optimizer = optimizer_of(side.model)
    side.model.train()
    gc.collect()
    facts: dict[str, Any] = {"name": data.name, "pairs": data.pair_count, "prompts": len(data.groups)}
    facts["memory"] = memory_of(lambda: train_step(side, optimizer))
    if name.startswith("bapo"):
        torch.set_num_threads(1)  # the counter sees its own thread only
    facts["operations"] = counted_step(side, optimizer)
    return facts | {"loss": compared_loss(name, workload, prompts)}


class Worker:
    """Sides in a process of their own, as their users would run them; they step when they are told to."""

    def __init__(self, sides: Sequence[str], workload: str, prompts: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, sides, workload, prompts), daemon=True)
        self._process.start()
        theirs.close()

    def step(self, side: str) -> float:
        """Seconds of one step."""
        self._connection.send(side)
        seconds: float = self._connection.recv()
        return seconds

    def close(self) -> None:
        """End the process."""
        self._connection.send("end")
        self._process.join()


def _work(connection: Any, names: Sequence[str], workload: str, prompts: int) -> None:
    made = {name: make_side(name, workload, prompts)[0] for name in names}
    if all(name.startswith("bapo") for name in names):
        keep_freed_memory()
    optimizers = {name: optimizer_of(side.model) for name, side in made.items()}
    for side in made.values():
        side.model.train()
    while (name := connection.recv()) != "end":
        connection.send(train_step(made[name], optimizers[name]))


def measure(workload: str, prompts: int, repeats: int) -> None:
    """Run all sides of a workload in turn and print its table."""
    facts: dict[str, dict[str, Any]] = {}
    # Processes that end, so that none holds memory that a later one needs.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as alone:
        for side in SIDES:
            facts[side] = alone.submit(facts_of, side, workload, prompts).result()
            print(f"  {workload} {side} {facts[side]}", file=sys.stderr, flush=True)
    # Both of TRL's modes in one process, since each would keep more memory to itself than there is for two.
    shared = [SIDES[:2], SIDES[2:3], SIDES[3:]]
    workers = {side: worker for sides in shared for worker in [Worker(sides, workload, prompts)] for side in sides}
    for side in SIDES:
        workers[side].step(side)  # warms up
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    precision, peaks = resolve_precision("auto"), []
    for _ in range(repeats):
        peaks.append(measured_peak(precision))
        for side in SIDES:
            own = [workers[side].step(side) for _ in range(STEPS_IN_TURN[side])]
            print(f"  {workload} {side} {', '.join(f'{s:.2f}' for s in own)} s", file=sys.stderr, flush=True)
            seconds[side].append(median(own))
    for worker in set(workers.values()):
        worker.close()
    pairs, online = facts["bapo"]["pairs"], facts["trl-online"]["memory"]
    rows = []
    for side in SIDES:
        step = median(seconds[side])
        ratios = [
            f"{median(theirs / own for theirs, own in zip(seconds[other], seconds[side], strict=True)):.1f}"
            f" [{min(seconds[other]) / max(seconds[side]):.1f}, {max(seconds[other]) / min(seconds[side]):.1f}]"
            for other in SIDES[:2]
        ]
        own = facts[side]
        rows.append(
            (
                side,
                f"{step:.1f} s [{min(seconds[side]):.1f}, {max(seconds[side]):.1f}]",
                f"{pairs / step:.2f}",
                *ratios,
                f"{own['memory'] / 1e9:.2f} GB (1/{online / own['memory']:.1f})",
                f"{own['operations'] / 1e9:.0f}",
                f"{own['operations'] / step / max(peaks):.0%}",
                f"{own['loss']:.4f}",
            )
        )
    header = ("side", "step", "pairs/s", "faster than TRL online", "than TRL precomputed", "memory added")
    header += ("GFLOP", "of peak", "loss (float32)")
    print(
        f"\n{facts['bapo']['name']}: {pairs} pairs of {facts['bapo']['prompts']} prompts, {repeats} repeats, "
        f"{precision}, peak {max(peaks) / 1e9:.0f} GFLOP/s, {torch.get_num_threads()} threads\n"
    )
    print(markdown_table(header, rows), flush=True)


def profile(workload: str, prompts: int) -> None:
    """Print where one step of ours spends its time, on one thread, by torch's profiler."""
    torch.set_num_threads(1)
    keep_freed_memory()
    side, _ = make_side("bapo-least-memory", workload, prompts)
    optimizer = optimizer_of(side.model)
    side.model.train()
    train_step(side, optimizer)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        train_step(side, optimizer)
    print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=48))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workloads", nargs="*", choices=WORKLOADS, default=WORKLOADS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=2, help="prompts of the grouped workload")
    parser.add_argument("--profile", action="store_true", help="print where a step of ours spends its time instead")
    arguments = parser.parse_args()
    for workload in arguments.workloads:
        if arguments.profile:
            profile(workload, arguments.prompts)
            continue
        measure(workload, arguments.prompts, arguments.repeats)


if __name__ == "__main__":
    main()
