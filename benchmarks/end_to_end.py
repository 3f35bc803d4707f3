"""The same small grid with TRL's trainer and lm-eval's `hf` model in a script, and with `bapo study`, in one run.

DPO and BAPO (the paper's anchor) on two domains: training, reward accuracy on held-out pairs, and three benchmarks, of
the base too. `end_to_end/with_trl.py` is the script, with reference log-probs precomputed and in every step; ours is a
study file, its run and its report. Each side runs in a process and a folder of its own, one after another, with empty
caches, on the same comparison files, the same safetensors, the same held-out prompts and the same questions. Both train
without gradient checkpointing, which TRL switches on by default. Ours keeps the pairs of a prompt together in a step,
and has base responses of held-out prompts too.

Printed for each: seconds of the whole and of its stages, how many times ours that is, the peak memory of its processes
(Linux), the lines that a user writes (without blank lines, comments and the task file of ScienceQA for lm-eval),
and the speed of a matrix product before and after, which shows how the machine drifts; then the accuracies. Training is
loading, tokenizing, base responses, reference log-probs, training and saving; what belongs to no stage (imports, tasks
of lm-eval, our report) is the rest. The folder keeps what each side found: started again, the same command does what is
missing or has failed, from its beginning.

    python benchmarks/end_to_end.py [--folder run/end-to-end] [--sides bapo trl-precomputed trl-online] [--steps 10]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from bapo.preferences import Preferences, prompt_text, read_preferences, response_text, turns_of
from bapo.reporting import markdown_table
from bapo.results import BASE, FINISHED_JOB

SCRIPTS = Path(__file__).parent / "end_to_end"
SIDES = ("bapo", "trl-precomputed", "trl-online")
OURS = SIDES[0]
STAGES = ("training", "reward accuracy", "benchmarks")
REWARD_ACCURACY = "reward accuracy"
SAME, APART = 2, 15  # points: of the base's accuracies that agree, and of trained models' that are worth a look

STUDY = """\
recipe:
  model: {{name: model}}
  preferences: {{held_out: {held_out}}}
  anchoring: {{base_max_new_tokens: {new_tokens}}}
  training: {{max_steps: {steps}, per_device_train_batch_size: {batch}, track_base: false}}
methods:
  bapo: {{training.objective: bapo, training.anchor: sequence}}
grids:
  main:
    preferences: [{files}]
    methods: [dpo, bapo]
evaluation: {{benchmarks: [{benchmarks}], limit: {limit}}}
"""
COMMANDS = {"bapo": ("bapo study run study.yaml", "bapo study report study.yaml"), "trl": ("python with_trl.py",)}


class FailedError(Exception):
    """A side ended before its end."""


# ---- what both sides are given ---------------------------------------------------------------------------------------


def files_of(sources: Sequence[str]) -> dict[str, str]:
    """A comparison file for each source, by a name that a study keeps."""
    return {f"{Path(source.rpartition(':')[2]).stem.replace('_', '-')}.jsonl": source for source in sources}


def comparisons(preferences: Preferences, prompts: int) -> Iterator[dict[str, str]]:
    """The rows of the first prompts."""
    if len(preferences.groups) < prompts:
        raise SystemExit(f"{preferences.name} has {len(preferences.groups)} prompts: lower --prompts or --held-out.")
    for group in preferences.groups[:prompts]:
        if isinstance(group.prompt, str) or len(turns_of(group.prompt)) != 1:
            raise SystemExit(f"{preferences.name} has prompts of several turns: name others.")
        texts = [response_text(response) for response in group.responses]
        for chosen, rejected in group.pairs:
            yield {"prompt": prompt_text(group.prompt), "chosen": texts[chosen], "rejected": texts[rejected]}


def prepare(arguments: argparse.Namespace) -> None:
    """The model as safetensors, and the comparison files."""
    from bapo.models import load_model

    loaded = load_model(arguments.model)
    loaded.model.save_pretrained(arguments.folder / "model")
    loaded.tokenizer.save_pretrained(arguments.folder / "model")
    for file, source in files_of(arguments.preferences).items():
        rows = comparisons(read_preferences(source), arguments.prompts + arguments.held_out)
        (arguments.folder / file).write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def product_speed(size: int) -> float:
    """GFLOP/s of a matrix product in the precision that suits the machine."""
    from training_speed import measured_peak

    from bapo.models import resolve_precision

    return measured_peak(resolve_precision("auto"), size) / 1e9


def alone(work: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns in a process of its own, whose memory goes with it."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def study_of(arguments: argparse.Namespace) -> str:
    """What a user of `bapo study` writes."""
    files, benchmarks = ", ".join(files_of(arguments.preferences)), ", ".join(arguments.benchmarks)
    return STUDY.format(**{**vars(arguments), "files": files, "benchmarks": benchmarks})


def script_settings(arguments: argparse.Namespace, side: str) -> dict[str, Any]:
    """What stands at the head of the script."""
    return {
        "FILES": list(files_of(arguments.preferences)),
        "BENCHMARKS": arguments.benchmarks,
        "HELD_OUT": arguments.held_out,
        "QUESTIONS": arguments.limit,
        "STEPS": arguments.steps,
        "BATCH": arguments.batch,
        "EVAL_BATCH": arguments.eval_batch,
        "NEW_TOKENS": arguments.new_tokens,
        "PRECOMPUTE": side == "trl-precomputed",
    }


def lines_of(text: str) -> int:
    """Lines that say something."""
    return sum(bool(line.strip()) and not line.strip().startswith(("#", '"""')) for line in text.splitlines())


# ---- running a side --------------------------------------------------------------------------------------------------


def own_folder(arguments: argparse.Namespace, side: str) -> Path:
    """A side's folder as it begins: what an earlier try left would make it look faster."""
    folder = arguments.folder / side
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name in ("model", *files_of(arguments.preferences)):
        (folder / name).symlink_to(Path("..") / name)
    return folder


def peak_of(process: int) -> int:
    """The most memory that a process has had, bytes; 0 of one that has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def run(command: Sequence[str], folder: Path) -> tuple[float, int]:
    """Seconds of a command, and its peak memory, which is looked up while it runs: `wait` counts the parent's too.

    Raises:
        FailedError: it did not end well; says with which words.
    """
    caches = {"BAPO_CACHE": str(folder / "cache"), "HF_DATASETS_CACHE": str(folder / "datasets")}
    start, peak = time.perf_counter(), 0
    with (folder / "log.txt").open("ab") as log:
        process = subprocess.Popen(
            command, cwd=folder, env={**os.environ, **caches}, stdout=log, stderr=subprocess.STDOUT
        )
        while process.returncode is None:
            peak = max(peak, peak_of(process.pid))
            try:
                process.wait(0.2)
            except subprocess.TimeoutExpired:
                continue
    seconds = time.perf_counter() - start
    if process.returncode:
        said = (folder / "log.txt").read_text(errors="replace").strip().splitlines() or ["nothing was said"]
        raise FailedError(f"It ended with {process.returncode}; its last line was: {said[-1].strip()[:300]}")
    return seconds, peak


def our_findings(folder: Path) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Seconds by stage and accuracies by model, from the records of a study's jobs."""
    seconds, found = dict.fromkeys(STAGES, 0.0), {}
    for path in sorted((folder / "study/jobs").glob("*.json")):
        record = FINISHED_JOB.read(path)
        content = record.content
        if content.work != "evaluate":
            seconds["training"] += content.seconds
            continue
        asked = sum(of.seconds for of in content.benchmarks.values())
        seconds["benchmarks"] += asked
        _, file, method, _ = content.of.split("_") if content.of != BASE else ("", "", BASE, "")
        scores: dict[str, list[float]] = {}
        for question in (row["question"] for row in record.items() if row.get("question")):
            scores.setdefault(question["benchmark"], []).append(question["score"])
        own = {name: mean(values) for name, values in scores.items()}
        if content.preferences is not None:
            seconds[REWARD_ACCURACY] += content.seconds - asked
            own[REWARD_ACCURACY] = content.preferences.reward_accuracy.value
        found[f"{file.removesuffix('.jsonl')} {method}".strip()] = own
    return seconds, found


def ran(side: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """What a side took and found.

    Raises:
        FailedError: of `run`.
    """
    folder = own_folder(arguments, side)
    if side == OURS:
        text, commands = study_of(arguments), COMMANDS["bapo"]
        (folder / "study.yaml").write_text(text)
        took = [run([sys.executable, "-m", *command.split()], folder) for command in commands]
        stages, found = our_findings(folder)
    else:
        text, commands = (SCRIPTS / "with_trl.py").read_text(), COMMANDS["trl"]
        told = json.dumps(script_settings(arguments, side))
        took = [run([sys.executable, str(SCRIPTS / "timed.py"), told], folder)]
        stages, found = (json.loads((folder / name).read_text()) for name in ("seconds.json", "found.json"))
    seconds = sum(each for each, _ in took)
    return {
        "seconds": seconds,
        "stages": {**stages, "rest": seconds - sum(stages.values())},
        "peak": max(peak for _, peak in took),
        "lines": lines_of(text) + len(commands),
        "found": found,
    }


def kept(side: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """What a side took and found, now or in an earlier run; or why it failed, which stops no other."""
    path = arguments.folder / f"{side}.json"
    if path.is_file() and "failed" not in (known := json.loads(path.read_text())):
        return known
    before = alone(product_speed, arguments.peak_size)
    try:
        result = ran(side, arguments)
    except FailedError as error:
        result = {"failed": str(error)}
    result["products"] = [before, alone(product_speed, arguments.peak_size)]
    path.write_text(json.dumps(result, indent=1))
    return result


# ---- what is said of them --------------------------------------------------------------------------------------------


def costs_of(result: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a side's row, by column."""
    stages = {f"{name}, s": result["stages"][name] for name in (*STAGES, "rest")}
    return {"seconds": result["seconds"], **stages, "lines": result["lines"], "peak memory, GB": result["peak"] / 1e9}


def print_costs(results: Mapping[str, Mapping[str, Any]]) -> None:
    """A row a side."""
    ours = costs_of(results[OURS]) if OURS in results else {}
    rows, header = [], ("side", *costs_of(next(iter(results.values()))), "product before and after, GFLOP/s")
    for side, result in results.items():
        cells = [
            f"{value:.{2 if name.endswith('GB') else 0}f}" + (f" ({value / ours[name]:.1f})" if ours.get(name) else "")
            for name, value in costs_of(result).items()
        ]
        rows.append((side, *cells, " and ".join(f"{speed:.0f}" for speed in result["products"])))
    print("\nIn parentheses: how many times ours. Both sides train without gradient checkpointing.\n")
    print(markdown_table(header, rows))


def print_accuracies(results: Mapping[str, Mapping[str, Any]], benchmarks: Sequence[str]) -> None:
    """A row for each model of each side, percent; the base's reward accuracy is undefined."""
    rows = []
    for model in sorted(next(iter(results.values()))["found"], key=lambda name: (name != BASE, name)):
        for side, result in results.items():
            scores = [result["found"][model].get(name) for name in (REWARD_ACCURACY, *benchmarks)]
            rows.append((model, side, *("" if score is None else f"{100 * score:.1f}" for score in scores)))
    print()
    print(markdown_table(("model", "side", f"{REWARD_ACCURACY}, %", *(f"{name}, %" for name in benchmarks)), rows))


def print_agreement(results: Mapping[str, Mapping[str, Any]]) -> None:
    """Whether the sides found the same, in words."""
    apart: dict[bool, list[str]] = {True: [], False: []}
    for side, result in results.items():
        for model, scores in result["found"].items():
            for name, score in scores.items():
                own = results[OURS]["found"][model][name]
                if abs(score - own) * 100 > (SAME if model == BASE else APART) + 1e-9:
                    apart[model == BASE].append(f"{side} {model} {name} {100 * score:.1f}, ours {100 * own:.1f}")
    for of_base, what in (
        (True, f"The base's benchmark accuracies agree within {SAME} questions of 100"),
        (False, f"Accuracies of trained models agree within {APART} points"),
    ):
        print(f"\n{what}: {'no (' + '; '.join(apart[of_base]) + ')' if apart[of_base] else 'yes'}.")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default="run/end-to-end", help="where all lies that is made")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--preferences", nargs="+", default=["dsp:academy", "dsp:literature"])
    parser.add_argument("--benchmarks", nargs="+", default=["piqa", "arc_challenge", "scienceqa"])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch", type=int, default=4, help="pairs; with 8, TRL may need over 24 GB")
    parser.add_argument("--eval-batch", type=int, default=4, help="of the hf model")
    parser.add_argument("--new-tokens", type=int, default=128, help="of a base response, at most")
    parser.add_argument("--prompts", type=int, default=20, help="to train on")
    parser.add_argument("--held-out", type=int, default=16)
    parser.add_argument("--limit", type=int, default=50, help="questions of each benchmark")
    parser.add_argument("--peak-size", type=int, default=4096, help="rows of the product that shows the drift")
    return parser.parse_args()


def begin(arguments: argparse.Namespace) -> None:
    """Make the folder, or go on in it."""
    told = {name: value for name, value in vars(arguments).items() if name not in ("folder", "sides")}
    settings = arguments.folder / "settings.json"
    if not settings.is_file():
        arguments.folder.mkdir(parents=True, exist_ok=True)
        alone(prepare, arguments)
        settings.write_text(json.dumps(told))
    if json.loads(settings.read_text()) != told:
        raise SystemExit(f"{arguments.folder} holds a run with other settings: name another --folder.")


def main() -> None:
    arguments = parsed()
    arguments.folder = arguments.folder.resolve()  # sides run in folders of their own
    if os.environ.get("BAPO_DATA"):
        os.environ["BAPO_DATA"] = str(Path(os.environ["BAPO_DATA"]).resolve())
    begin(arguments)
    results = {}
    for side in arguments.sides:
        result = kept(side, arguments)
        print(f"{side}: {result.get('failed') or '{:.0f} s'.format(result['seconds'])}", flush=True)
        if "failed" not in result:
            results[side] = result
    if results:
        print_costs(results)
        print_accuracies(results, arguments.benchmarks)
    if OURS in results and len(results) > 1:
        print_agreement(results)
    if len(results) < len(arguments.sides):
        sys.exit(1)


if __name__ == "__main__":
    main()
