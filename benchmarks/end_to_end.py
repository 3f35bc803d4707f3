"""The same small grid with TRL's trainer and lm-eval's `hf` model in a script, and with `bapo study`, in one run.

Two methods (DPO, IPO) on several preferences: training, reward accuracy on held-out pairs, and benchmarks, of the base
too. The script is `end_to_end/with_trl.py`, once with reference log-probs computed in every step and once precomputed;
ours is a study file. Each side runs in a process of its own, one after another. Printed for each: wall-clock seconds of
the whole, of its stages, how many times ours takes less, the peak memory of its processes, and the lines that a user
writes (blank lines and comments aside). Tasks of lm-eval are read from the same local files on both sides.

    python benchmarks/end_to_end.py [--preferences dsp:academy dsp:literature] [--steps 20] [--limit 100]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from bapo.models import load_model
from bapo.preferences import Message, Preferences, read_split, turns_of
from bapo.reporting import markdown_table

SCRIPT = Path(__file__).parent / "end_to_end" / "with_trl.py"
METHODS = {"dpo": "sigmoid", "ipo": "ipo"}
STAGES = ("training", "reward accuracy", "benchmarks")


def rows_of(preferences: Preferences) -> list[dict[str, Any]]:
    """One comparison a row, as TRL takes it."""

    def turn(text: str | Message) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": text if isinstance(text, str) else text.content}]

    return [
        {
            "prompt": [{"role": each.role, "content": each.content} for each in turns_of(group.prompt)],
            "chosen": turn(group.responses[chosen]),
            "rejected": turn(group.responses[rejected]),
        }
        for group in preferences.groups
        for chosen, rejected in group.pairs
    ]


def written(arguments: argparse.Namespace, folder: Path) -> dict[str, dict[str, str]]:
    """Files of training and held-out comparisons by preference, the same for both sides."""
    files = {}
    for name in arguments.preferences:
        split = read_split(name, held_out=arguments.held_out)
        prompts = split.train.groups[: arguments.prompts]
        parts = {"train": Preferences(name, prompts, 0, {}), "test": split.held_out}
        files[name] = {part: str(folder / f"{name.replace(':', '-')}.{part}.jsonl") for part in parts}
        for part, preferences in parts.items():
            lines = (json.dumps(row) + "\n" for row in rows_of(preferences))
            Path(files[name][part]).write_text("".join(lines))
    return files


def study_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """What a user of `bapo study` writes."""
    return {
        "recipe": {
            "model": {"name": arguments.model},
            "preferences": {"held_out": arguments.held_out, "max_train_prompts": arguments.prompts},
            "training": {
                "max_steps": arguments.steps,
                "per_device_train_batch_size": arguments.batch,
                "track_base": False,
            },
        },
        "grids": {"main": {"preferences": arguments.preferences, "methods": list(METHODS)}},
        "evaluation": {"benchmarks": arguments.benchmarks, "limit": arguments.limit},
    }


def lines_of(text: str) -> int:
    """Lines that say something."""
    return sum(bool(line.strip()) and not line.strip().startswith(("#", '"""')) for line in text.splitlines())


def run(command: Sequence[str], folder: Path) -> tuple[float, int]:
    """Seconds of a command, and the most memory that one of its processes had, bytes."""
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, env={**os.environ, "BAPO_CACHE": str(folder / "cache")})
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command[:3])} ended with {process.returncode}.")
    peak: resource.struct_rusage = usage
    return time.perf_counter() - start, peak.ru_maxrss * 1024


def our_stages(folder: Path) -> dict[str, float]:
    """Seconds by stage; base responses and reference scores belong to training."""
    seconds = dict.fromkeys(STAGES, 0.0)
    for path in (folder / "study/jobs").glob("*.json"):
        content = json.loads(path.read_text())["content"]
        asked = sum(of["seconds"] for of in content["benchmarks"].values())
        seconds["benchmarks"] += asked
        stage = "reward accuracy" if content["work"] == "evaluate" else "training"
        seconds[stage] += content["seconds"] - asked
    return seconds


def sides(arguments: argparse.Namespace, folder: Path) -> dict[str, tuple[float, int, Mapping[str, float], int]]:
    """Of each side the seconds of the whole, peak memory, seconds by stage, and lines."""
    loaded = load_model(arguments.model)
    loaded.model.save_pretrained(folder / "model")
    loaded.tokenizer.save_pretrained(folder / "model")
    told = {
        "model": "model",
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "files": written(arguments, folder),
        "methods": METHODS,
        "steps": arguments.steps,
        "batch": arguments.batch,
        "eval_batch": arguments.eval_batch,
        "benchmarks": arguments.benchmarks,
        "limit": arguments.limit,
    }
    del loaded
    study = yaml.safe_dump(study_of(arguments))
    (folder / "study.yaml").write_text(study)
    found = {}
    ours = [sys.executable, "-m", "bapo", "study", "run", "study.yaml"]
    seconds, peak = run(ours, folder)
    found["bapo study"] = (seconds, peak, our_stages(folder), lines_of(study))
    for name, more in (("TRL, precomputed", ["--precompute"]), ("TRL", [])):
        if name not in arguments.without:
            seconds, peak = run([sys.executable, str(SCRIPT), json.dumps(told), *more], folder)
            stages = json.loads((folder / "trl.json").read_text())["seconds"]
            found[name] = (seconds, peak, stages, lines_of(SCRIPT.read_text()))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--preferences", nargs="+", default=["dsp:academy", "dsp:literature"])
    parser.add_argument("--benchmarks", nargs="+", default=["piqa", "arc_challenge", "scienceqa"])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--eval-batch", type=int, default=4, help="of the hf model")
    parser.add_argument("--prompts", type=int, default=60, help="to train on")
    parser.add_argument("--held-out", type=int, default=30)
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--without", nargs="*", default=[], choices=["TRL", "TRL, precomputed"])
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder:
        found = sides(arguments, Path(folder))
    ours = found["bapo study"]
    rows = [
        (
            name,
            f"{seconds:.0f}",
            f"{seconds / ours[0]:.1f}",
            *(f"{stages[stage]:.0f} ({stages[stage] / max(ours[2][stage], 1e-9):.1f})" for stage in STAGES),
            f"{peak / 1e9:.2f} ({peak / ours[1]:.1f})",
            f"{lines} ({lines / ours[3]:.1f})",
        )
        for name, (seconds, peak, stages, lines) in found.items()
    ]
    header = ("side", "seconds", "times ours", *(f"{stage}, s" for stage in STAGES), "peak memory, GB", "lines")
    print(markdown_table(header, rows))


if __name__ == "__main__":
    main()
