"""Benchmark questions scored by bapo and by lm-eval's own `hf` model, the same requests in one run.

Exactness: in float32, at least 200 questions of every benchmark; printed are the largest difference of a choice's
log-likelihood, how many choices differ by more than 1e-3 nats and how far either side is from `hf` in float64 on
those, and both accuracies. Speed: ARC-Challenge and whole subjects of 5-shot MMLU, in the precision that suits the
machine, alternating between bapo and hf at the batch size that suits it best; printed are questions per second, their
ratio, the input tokens that each computes, the operations that torch counts, and their share of the measured
matrix-product peak. Profile: where the time goes. Needs the questions in the folder that BAPO_DATA names
(docs/evaluation.md), or a connection to the hub.

    python benchmarks/evaluation_speed.py [--only exactness speed profile] [--questions 200] [--subjects anatomy ...]
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent))
from training_speed import PEAK_SIZE, measured_peak

from bapo.evaluation import BENCHMARKS, BapoLM, local_folder
from bapo.evaluation.benchmarks import LoadedTask, load_tasks, sample_documents
from bapo.models import LoadedModel, load_model
from bapo.reporting import markdown_table

APART = 1e-3  # nats
BATCHES = (1, 4, 16)  # that hf is tried with


def requests_of(task: LoadedTask, documents: Sequence[int], lm: BapoLM) -> list[Any]:
    """What lm-eval asks a model about these questions."""
    task.task.build_all_requests(
        samples=list(documents),
        apply_chat_template=task.chat,
        fewshot_as_multiturn=True,
        chat_template=lm.apply_chat_template if task.chat else None,
    )
    return list(task.task.instances)


def hf_model(loaded: LoadedModel, batch_size: int) -> HFLM:
    return HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=batch_size, device="cpu")


def accuracy(task: LoadedTask, requests: Sequence[Any], found: Sequence[tuple[float, bool]]) -> float:
    """By the task's own metric, the length-normalized one where it has it."""
    by_question: dict[int, tuple[Any, list[tuple[float, bool]]]] = {}
    for request, answer in zip(requests, found, strict=True):
        by_question.setdefault(request.doc_id, (request.doc, []))[1].append(answer)
    scores = [task.task.process_results(document, own) for document, own in by_question.values()]
    return sum(float(own.get("acc_norm", own["acc"])) for own in scores) / len(scores)


def exactness(model: str, benchmarks: Sequence[str], questions: int) -> None:
    loaded = load_model(model, precision="float32", device="cpu")
    ours, theirs = BapoLM(loaded), hf_model(loaded, 4)
    precise = hf_model(replace(loaded, model=copy.deepcopy(loaded.model).double()), 1)
    rows = []
    for name in benchmarks:
        benchmark = BENCHMARKS[name]
        tasks = load_tasks(name, data_folder=local_folder(None))
        drawn = sample_documents(tasks, questions, seed=0)
        largest, right, count, errors = 0.0, [0.0, 0.0], 0, [(0.0, 0.0)]
        for task in tasks:
            requests = requests_of(task, drawn[task.name], ours)
            found = [lm.loglikelihood(requests, disable_tqdm=True) for lm in (ours, theirs)]
            largest = max(largest, *(abs(a[0] - b[0]) for a, b in zip(*found, strict=True)))
            logps = [[logp for logp, _ in side] for side in found]
            apart = [at for at, (a, b) in enumerate(zip(*logps, strict=True)) if abs(a - b) > APART]
            exact = precise.loglikelihood([requests[at] for at in apart], disable_tqdm=True) if apart else []
            errors += [
                (abs(logps[0][at] - logp), abs(logps[1][at] - logp)) for at, (logp, _) in zip(apart, exact, strict=True)
            ]
            own = len(drawn[task.name])
            right = [before + own * accuracy(task, requests, new) for before, new in zip(right, found, strict=True)]
            count += own
        worst = [f"{max(side):.1e}" if errors[1:] else "" for side in zip(*errors, strict=True)]
        accuracies = [f"{100 * hits / count:.2f} %" for hits in right]
        row = (benchmark.title, str(count), f"{largest:.1e}", str(len(errors) - 1), *worst, *accuracies)
        print(f"  {row}", file=sys.stderr, flush=True)
        rows.append(row)
    print("\nIn float32:\n")
    header = ("benchmark", "questions", "largest difference (nats)", f"choices beyond {APART:g}")
    header += ("there, bapo from float64", "hf from float64", "accuracy by bapo", "by hf")
    print(markdown_table(header, rows), flush=True)


def timed(lm: Any, requests: Sequence[Any]) -> float:
    start = time.perf_counter()
    lm.loglikelihood(list(requests), disable_tqdm=True)
    return time.perf_counter() - start


def computed(lm: Any, model: Any, requests: Sequence[Any]) -> tuple[int, float]:
    """Input tokens that the model computes, padding included, and the operations of its products and attentions."""
    tokens = 0

    def count(module: Any, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        nonlocal tokens
        tokens += options.get("input_ids", inputs[0] if inputs else None).numel()

    hook = model.get_decoder().register_forward_pre_hook(count, with_kwargs=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the counter sees its own thread only
    with FlopCounterMode(display=False) as counter:
        lm.loglikelihood(list(requests), disable_tqdm=True)
    torch.set_num_threads(threads)
    hook.remove()
    return tokens, float(counter.get_total_flops())


def speed(model: str, subjects: Sequence[str], questions: int, repeats: int, peak_size: int) -> None:
    loaded = load_model(model, device="cpu")
    ours = BapoLM(loaded)
    folder = local_folder(None)
    (arc,) = load_tasks("arc_challenge", data_folder=folder)
    work = [("ARC-Challenge", arc, sample_documents([arc], questions, 0)[arc.name])]
    mmlu = {own.name.removeprefix("mmlu_"): own for own in (load_tasks("mmlu", data_folder=folder) if subjects else ())}
    work += [(f"MMLU {name}", mmlu[name], list(range(len(mmlu[name].task.eval_docs)))) for name in subjects]
    rows = []
    for title, task, documents in work:
        requests = requests_of(task, documents, ours)
        few = [request for request in requests if request.doc_id < 12]
        tried = {size: timed(hf_model(loaded, size), few) for size in BATCHES}
        best = min(tried, key=tried.__getitem__)
        sides = {"bapo": ours, f"hf, batch {best}": hf_model(loaded, best)}
        cost = {side: computed(lm, loaded.model, requests) for side, lm in sides.items()}  # which also warms up
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        peaks = []
        for _ in range(repeats):
            peaks.append(measured_peak(loaded.precision, peak_size))
            for side, lm in sides.items():
                seconds[side].append(timed(lm, requests))
                print(f"  {title} {side} {seconds[side][-1]:.1f} s", file=sys.stderr, flush=True)
        own, other = seconds.values()
        ratio = median(b / a for a, b in zip(own, other, strict=True))
        for side, times in seconds.items():
            tokens, operations = cost[side]
            rows.append(
                (
                    title,
                    side,
                    str(len(documents)),
                    f"{len(documents) / median(times):.2f}",
                    f"{ratio:.1f} [{min(other) / max(own):.1f}, {max(other) / min(own):.1f}]" if side == "bapo" else "",
                    f"{tokens:,}",
                    f"{operations / 1e9:,.0f}",
                    f"{operations / median(times) / max(peaks):.0%}",
                )
            )
    header = (
        "benchmark",
        "side",
        "questions",
        "questions/s",
        "times as fast as hf",
        "input tokens",
        "GFLOP",
        "of peak",
    )
    print(f"\nIn {loaded.precision}, {repeats} repeats, {torch.get_num_threads()} threads:\n")
    print(markdown_table(header, rows), flush=True)


def profile(model: str, subject: str) -> None:
    """Print where our scoring of a subject spends its time, on one thread, by torch's profiler."""
    torch.set_num_threads(1)
    ours = BapoLM(load_model(model, device="cpu"))
    (task,) = (own for own in load_tasks("mmlu", data_folder=local_folder(None)) if own.name == f"mmlu_{subject}")
    requests = requests_of(task, list(range(len(task.task.eval_docs))), ours)
    ours.loglikelihood(requests, disable_tqdm=True)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        ours.loglikelihood(requests, disable_tqdm=True)
    print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=20, max_name_column_width=48))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=("exactness", "speed", "profile"), default=("exactness", "speed"))
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--questions", type=int, default=200, help="of each benchmark, and of ARC-Challenge for speed")
    parser.add_argument("--benchmarks", nargs="*", choices=list(BENCHMARKS), default=list(BENCHMARKS), help="compared")
    parser.add_argument("--subjects", nargs="*", default=["anatomy", "astronomy"], help="MMLU subjects timed whole")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peak-size", type=int, default=PEAK_SIZE, help="rows of the product that shows the peak")
    arguments = parser.parse_args()
    if "exactness" in arguments.only:
        exactness(arguments.model, arguments.benchmarks, arguments.questions)
    if "speed" in arguments.only:
        speed(arguments.model, arguments.subjects, arguments.questions, arguments.repeats, arguments.peak_size)
    if "profile" in arguments.only:
        profile(arguments.model, arguments.subjects[0])


if __name__ == "__main__":
    main()
