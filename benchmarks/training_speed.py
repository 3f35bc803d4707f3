"""Training steps of bapo and of TRL's DPOTrainer extended to BAPO, on the same pairs, interleaved in one run.

Workloads: all pairs of a few prompts (grouped), pairs of different prompts (by-pair), prompts of 1,500 tokens (long).
The prompts of grouped and by-pair are drawn with a seed, as those of a shuffled epoch are, for several steps each,
since what TRL pads depends on what happens to share a batch. A step is forward, backward and AdamW for LoRA r 32 on
all linear layers, in the precision that suits the machine (bf16 where it has instructions for it). TRL's modes share
a process, ours has one of its own, and all take each step in turn. Printed for each: the mean step, pairs per second,
the ratio to both modes of TRL with its range over steps, the peak memory that the steps add to a process of its own
that holds model, adapter and data, the operations of a step, their share of the measured matrix-product peak, and the
loss that each side computes in float32, without dropout, under one random adapter. DSP literature is used where
BAPO_DATA is set, the packaged starter preferences otherwise.

    python benchmarks/training_speed.py [--workloads grouped by-pair long] [--steps 4] [--repeats 2] [--profile]
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass, replace
from statistics import mean, median
from typing import Any

import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from bapo.anchoring import AnchoredGroup, AnchoredPreferences, BaseResponse
from bapo.jobs import read_recipe, stages
from bapo.kernels.kept_memory import kept_memory
from bapo.likelihood import ResponseScorer, TokenGroup
from bapo.models import (
    AnyPrecision,
    LoadedModel,
    Precision,
    add_lora,
    load_model,
    lora_config,
    resolve_precision,
)
from bapo.reporting import markdown_table
from bapo.training import BAPOConfig, BAPOTrainer

SIDES = ("trl-online", "trl-precomputed", "bapo")
WORKLOADS = ("grouped", "by-pair", "long")
BETA, STRENGTH = 0.1, 5.0
LONG_PROMPT, LONG_RESPONSE = 1500, 100
PEAK_SIZE = 4096  # rows and columns of the matrices whose product shows the peak
ADAPTER_SCALE = 0.02  # of the random adapter with which both sides' losses are compared


class OutOfMemoryError(Exception):
    """A process of the benchmark was killed."""


@dataclass(frozen=True)
class Workload:
    """What is trained on, by which model: how many steps, and the prompts of each."""

    kind: str
    steps: int
    prompts: int
    model: str = "smollm2"


@dataclass(frozen=True)
class Side:
    """A model that is trained: its loss at a step of the workload, and that loss's forward and backward."""

    model: Any
    loss: Callable[[int], torch.Tensor]
    backward: Callable[[int], None]


def steps_of(workload: Workload, model: LoadedModel) -> list[AnchoredPreferences]:
    """The anchored prompt groups that every side trains on, step by step."""
    if workload.kind == "long":
        return [AnchoredPreferences("long", tuple(_random_group(model, seed) for seed in range(2)), "benchmark")]
    source = "dsp:literature" if os.environ.get("BAPO_DATA") else "starter:concise"
    told = {
        "preferences.source": source,
        "preferences.held_out": 100 if os.environ.get("BAPO_DATA") else 5,
        "anchoring.base_max_new_tokens": 128,
    }
    recipe = read_recipe(None, {**told, "model.name": workload.model})
    train = stages.read(recipe).train
    size = workload.prompts
    if workload.steps * size > len(train.groups):
        raise SystemExit(f"{source} has {len(train.groups)} prompts, {workload.steps} steps need more: lower --steps.")
    drawn = random.Random(0).sample(train.groups, workload.steps * size)
    groups = stages.anchor_preferences(recipe, replace(train, groups=tuple(drawn)), model).groups
    if workload.kind == "by-pair":
        groups = tuple(replace(g, pairs=(g.pairs[i % len(g.pairs)],)) for i, g in enumerate(groups))
    return [
        AnchoredPreferences(f"{source} {workload.kind}", groups[i : i + size], "benchmark")
        for i in range(0, len(groups), size)
    ]


def _random_group(model: LoadedModel, seed: int) -> AnchoredGroup:
    generator = torch.Generator().manual_seed(seed)
    most, length = min(40_000, model.model.config.vocab_size), LONG_PROMPT + 3 * LONG_RESPONSE
    ids = torch.randint(100, most, (length,), generator=generator).tolist()
    prompt, rest = tuple(ids[:LONG_PROMPT]), ids[LONG_PROMPT:]
    chosen, rejected, base = (tuple(rest[i : i + LONG_RESPONSE]) for i in range(0, len(rest), LONG_RESPONSE))
    scored = ResponseScorer(model.model).score([TokenGroup(prompt, (chosen, rejected, base))])
    *refs, base_ref = scored.summed().tolist()
    own = BaseResponse(base, False, base_ref, tuple(scored.per_response()[-1].tolist()))
    return AnchoredGroup(None, TokenGroup(prompt, (chosen, rejected)), ((0, 1),), tuple(refs), (own,))  # type: ignore[arg-type]


# ---- the two sides ---------------------------------------------------------------------------------------------------


def bapo_side(steps: Sequence[AnchoredPreferences], loaded: LoadedModel, folder: str) -> Side:
    """Our trainer as it comes."""
    settings = BAPOConfig(
        output_dir=folder,
        use_cpu=True,
        beta=BETA,
        anchor="sequence",
        anchor_strength=STRENGTH,
        disable_tqdm=True,
    )
    data = replace(steps[0], groups=tuple(group for step in steps for group in step.groups))
    trainer = BAPOTrainer(add_lora(loaded.model), args=settings, train_dataset=data, processing_class=loaded.tokenizer)
    items = iter(trainer.train_dataset.items)
    batches = [trainer.data_collator([next(items) for _ in range(step.pair_count)]) for step in steps]

    def backward(step: int) -> None:
        trainer.training_step(trainer.model, batches[step], num_items_in_batch=steps[step].pair_count)

    return Side(trainer.model, lambda step: trainer.compute_loss(trainer.model, batches[step]), backward)


def trl_side(steps: Sequence[AnchoredPreferences], loaded: LoadedModel, folder: str, *, precomputed: bool) -> Side:
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
    trainer.precompute_ref_logps = precomputed
    batches = [_trl_batches(step, trainer.data_collator, precomputed=precomputed) for step in steps]

    def loss(step: int) -> torch.Tensor:
        batch, bases, base_ref = batches[step]
        pair_loss = trainer.compute_loss(trainer.model, dict(batch))
        reference = base_ref
        if not precomputed:
            with torch.no_grad(), trainer.model.disable_adapter():
                reference = _padded_logps(trainer.model, bases)
        return pair_loss + STRENGTH * F.relu(reference - _padded_logps(trainer.model, bases)).mean()

    return Side(trainer.model, loss, lambda step: loss(step).backward())


def _trl_batches(
    data: AnchoredPreferences, collate: Callable[..., dict[str, torch.Tensor]], *, precomputed: bool
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], torch.Tensor]:
    """A step's pairs and base responses as TRL pads them, and the base responses' reference log-probs."""
    pairs = [(group, pair) for group in data.groups for pair in group.pairs]
    rows, base_rows = [], []
    for group, (chosen, rejected) in pairs:
        prompt, responses = list(group.tokens.prompt), group.tokens.responses
        row = {"prompt_ids": prompt, "chosen_ids": list(responses[chosen]), "rejected_ids": list(responses[rejected])}
        rows.append(
            {**row, "ref_chosen_logps": group.ref_logps[chosen], "ref_rejected_logps": group.ref_logps[rejected]}
        )
        base_rows.append({"prompt_ids": prompt, "chosen_ids": list(group.bases[0].ids), "rejected_ids": [0]})
    batch = collate(rows)
    if not precomputed:
        del batch["ref_chosen_logps"], batch["ref_rejected_logps"]
    bases = {key: value[: len(pairs)] for key, value in collate(base_rows).items()}
    return batch, bases, torch.tensor([group.bases[0].ref_logp for group, _ in pairs])


def _padded_logps(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Summed response log-probs the way that TRL computes them."""
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    return model(**inputs, use_cache=False, labels=labels, fused_lm_head=True).log_probs.sum(dim=1)


def make_side(
    side: str, workload: Workload, precision: AnyPrecision = "auto"
) -> tuple[Side, list[AnchoredPreferences]]:
    """A fresh model with a fresh adapter, and its loss."""
    loaded = load_model(workload.model, precision=precision)
    steps = steps_of(workload, loaded)
    folder = tempfile.mkdtemp()
    if side == "bapo":
        return bapo_side(steps, loaded, folder), steps
    return trl_side(steps, loaded, folder, precomputed=side == "trl-precomputed"), steps


# ---- measuring -------------------------------------------------------------------------------------------------------


def train_step(side: Side, step: int, optimizer: torch.optim.Optimizer) -> float:
    """Seconds of one step."""
    start = time.perf_counter()
    side.backward(step)
    optimizer.step()
    optimizer.zero_grad()
    return time.perf_counter() - start


def optimizer_of(model: Any) -> torch.optim.Optimizer:
    """AdamW over what is trained, in one operation as `transformers` has it by default."""
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-4, fused=True)


def compared_loss(name: str, workload: Workload) -> float:
    """The mean loss in float32 without dropout, under an adapter that is random and the same on every side."""
    side, steps = make_side(name, workload, "float32")
    model, generator = side.model, torch.Generator().manual_seed(0)
    weights = sorted((n.split("base_model")[-1], p) for n, p in model.named_parameters() if p.requires_grad)
    with torch.no_grad():
        for _, parameter in weights:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * ADAPTER_SCALE)
    model.eval()
    with torch.no_grad():
        return mean(float(side.loss(step)) for step in range(len(steps)))


def counted_operations(work: Callable[[], object]) -> float:
    """The operations of products and attentions on this thread, by torch's own counter."""
    in_place = {torch.ops.aten.addmm_: lambda _, a, b, **others: 2 * a[0] * a[1] * b[1]}  # which the counter lacks
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        work()
    return float(counter.get_total_flops())


def measured_peak(precision: Precision, size: int = PEAK_SIZE) -> float:
    """Operations per second of a large matrix product, the best of several."""
    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


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


def facts_of(name: str, workload: Workload) -> dict[str, Any]:
    """What is measured once: what the steps add to the memory and compute, and the loss in float32."""
    side, steps = make_side(name, workload)
    memory = ExitStack()
    if name == "bapo":
        memory.enter_context(kept_memory(torch.device("cpu")))  # as in the trainer's train()
    optimizer = optimizer_of(side.model)
    side.model.train()
    gc.collect()
    facts: dict[str, Any] = {"name": steps[0].name, "steps": len(steps)}
    facts["pairs"] = mean(step.pair_count for step in steps)
    facts["prompts"] = len(steps[0].groups)
    facts["tokens"] = [[_tokens_of(group) for group in step.groups] for step in steps]

    def work() -> None:
        for step in range(len(steps)):
            train_step(side, step, optimizer)

    facts["memory"] = memory_of(work)
    if name == "bapo":
        torch.set_num_threads(1)  # the counter sees its own thread only
    facts["operations"] = counted_operations(work) / len(steps)
    return facts | {"loss": compared_loss(name, workload)}


def _tokens_of(group: AnchoredGroup) -> int:
    """Input tokens that a prompt, the responses of its pairs and its base response take in our row."""
    compared = {response for pair in group.pairs for response in pair}
    responses = (*(group.tokens.responses[i] for i in compared), group.bases[0].ids)
    return TokenGroup(group.tokens.prompt, responses).cost


def processes() -> Any:
    """Of fresh processes that have their imports already; nothing has been computed in them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bapo.jobs.stages", "bapo.training", "peft", "trl.trainer.dpo_trainer"])
    return context


class Worker:
    """Sides in a process of their own, as their users would run them; they step when they are told to."""

    def __init__(self, sides: Sequence[str], workload: Workload) -> None:
        context = processes()
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, sides, workload), daemon=True)
        self._process.start()
        theirs.close()

    def step(self, side: str, step: int) -> float:
        """Seconds of one step."""
        try:
            self._connection.send((side, step))
            seconds: float = self._connection.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            raise OutOfMemoryError(f"The process of {side} was killed at step {step}") from error
        return seconds

    def close(self) -> None:
        """End the process, which has nothing to keep."""
        self._process.kill()
        self._process.join()


def _work(connection: Any, names: Sequence[str], workload: Workload) -> None:
    made = {name: make_side(name, workload)[0] for name in names}
    memory = ExitStack()
    if all(name == "bapo" for name in names):
        memory.enter_context(kept_memory(torch.device("cpu")))
    optimizers = {name: optimizer_of(side.model) for name, side in made.items()}
    for side in made.values():
        side.model.train()
    while True:
        name, step = connection.recv()
        connection.send(train_step(made[name], step, optimizers[name]))


def measure(workload: Workload, repeats: int, peak_size: int) -> None:
    """Run all sides of a workload in turn and print its table."""
    facts: dict[str, dict[str, Any]] = {}
    # Processes that end, so that none holds memory that a later one needs.
    with ProcessPoolExecutor(1, processes(), max_tasks_per_child=1) as alone:
        for side in SIDES:
            try:
                facts[side] = alone.submit(facts_of, side, workload).result()
            except BrokenProcessPool as error:
                raise OutOfMemoryError(f"The process of {side} was killed") from error
            print(f"  {workload.kind} {side} {facts[side]}", file=sys.stderr, flush=True)
    seconds, peak = take_turns(workload, facts["bapo"]["steps"], repeats, peak_size)
    pairs, online = facts["bapo"]["pairs"], facts["trl-online"]["memory"]
    rows = []
    for side in SIDES:
        own, step = facts[side], mean(seconds[side])
        rows.append(
            (
                side,
                f"{step:.1f} s",
                f"{pairs / step:.2f}",
                *(_ratio(seconds[other], seconds[side]) for other in SIDES[:2]),
                f"{own['memory'] / 1e9:.2f} GB (1/{online / own['memory']:.1f})",
                f"{own['operations'] / 1e9:.0f}",
                f"{own['operations'] / step / peak:.0%}",
                f"{own['loss']:.4f}",
            )
        )
    header = ("side", "step", "pairs/s", "faster than TRL online", "than TRL precomputed", "memory added")
    header += ("GFLOP a step", "of peak", "loss (float32)")
    own = facts["bapo"]
    print(
        f"\n{own['name']}: {own['steps']} steps of {pairs:g} pairs of {own['prompts']} prompts, groups of "
        f"{own['tokens']} tokens in our row, {repeats} repeats, {resolve_precision('auto')}, "
        f"peak {peak / 1e9:.0f} GFLOP/s, {torch.get_num_threads()} threads\n"
    )
    print(markdown_table(header, rows), flush=True)


def take_turns(workload: Workload, steps: int, repeats: int, peak_size: int) -> tuple[dict[str, list[float]], float]:
    """For each side the seconds of each step, the median over repeats; and the machine's peak, measured in between."""
    # Both of TRL's modes in one process, since each would keep more memory to itself than there is for two.
    workers = {
        side: worker for sides in (SIDES[:2], SIDES[2:]) for worker in [Worker(sides, workload)] for side in sides
    }
    seconds: dict[str, list[list[float]]] = {side: [[] for _ in range(steps)] for side in SIDES}
    peaks = []
    try:
        for side in SIDES:
            workers[side].step(side, 0)  # warms up
        for _ in range(repeats):
            peaks.append(measured_peak(resolve_precision("auto"), peak_size))
            for step in range(steps):
                for side in SIDES:
                    seconds[side][step].append(workers[side].step(side, step))
                line = ", ".join(f"{side} {seconds[side][step][-1]:.2f} s" for side in SIDES)
                print(f"  {workload.kind} step {step}: {line}", file=sys.stderr, flush=True)
    finally:
        for worker in set(workers.values()):
            worker.close()
    return {side: [median(step) for step in taken] for side, taken in seconds.items()}, max(peaks)


def _ratio(theirs: Sequence[float], own: Sequence[float]) -> str:
    """How many times as long all of their steps took, with the range over steps."""
    ratios = [a / b for a, b in zip(theirs, own, strict=True)]
    return f"{sum(theirs) / sum(own):.1f} [{min(ratios):.1f}, {max(ratios):.1f}]"


def profile(workload: Workload) -> None:
    """Print where one step of ours spends its time, on one thread, by torch's profiler."""
    torch.set_num_threads(1)
    memory = ExitStack()
    memory.enter_context(kept_memory(torch.device("cpu")))
    side, _ = make_side("bapo", workload)
    optimizer = optimizer_of(side.model)
    side.model.train()
    train_step(side, 0, optimizer)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        train_step(side, 0, optimizer)
    print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=48))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workloads", nargs="*", choices=WORKLOADS, default=WORKLOADS)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--steps", type=int, default=4, help="different steps of grouped and by-pair")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--peak-size", type=int, default=PEAK_SIZE, help="rows of the product that shows the peak")
    parser.add_argument("--prompts", type=int, default=2, help="prompts of the grouped workload")
    parser.add_argument("--pairs", type=int, default=8, help="pairs, each of another prompt, of the by-pair workload")
    parser.add_argument("--profile", action="store_true", help="print where a step of ours spends its time instead")
    arguments = parser.parse_args()
    for kind in arguments.workloads:
        workload = Workload(
            kind, arguments.steps, arguments.pairs if kind == "by-pair" else arguments.prompts, arguments.model
        )
        if arguments.profile:
            profile(workload)
            continue
        try:
            measure(workload, arguments.repeats, arguments.peak_size)
        except OutOfMemoryError as error:
            print(f"{kind}: {error}, most likely for want of memory: fewer --prompts or --pairs need less.")


if __name__ == "__main__":
    main()
