"""DPO and BAPO on real DSP data (literature): curves, drift, reward accuracy, gradient norms of the parts, answers.

Needs the DSP data in the folder that BAPO_DATA names. Every run lies in its own folder below --output and is not
repeated when it is there, so the program can be stopped and started again. docs/dsp-literature.md shows what it prints.

    python benchmarks/dsp_literature.py --output dsp-study [--only dpo-seed0 ...]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean, median

from bapo import personalize
from bapo.jobs import read_recipe
from bapo.jobs.recipe import read_yaml
from bapo.reporting import draw_logratios, interval, markdown_table
from bapo.results import Personalization, Record, read_run

COMMON = {
    "preferences.source": "dsp:literature",
    "preferences.held_out": 100,
    "preferences.max_train_prompts": 110,  # 50 steps of 8 pairs see about 100 prompts
    "anchoring.base_max_new_tokens": 128,
    "training.max_steps": 50,
    "training.per_device_train_batch_size": 8,
    "training.learning_rate": 2e-4,
    "training.part_gradient_steps": 5,
    "training.save_steps": 25,
}

# name -> (objective, settings). The paper's form is the sequence anchor with strength 5; 1.0 is the usual clip.
VARIANTS: dict[str, tuple[str, dict[str, object]]] = {
    "dpo": ("dpo", {}),
    "bapo": ("bapo", {"anchor": "sequence", "anchor_strength": 5.0}),
    "bapo-length": ("bapo", {"anchor": "length-normalized", "anchor_strength": 5.0}),
    "bapo-no-clip": ("bapo", {"anchor": "sequence", "anchor_strength": 5.0, "max_grad_norm": 0.0}),
    "bapo-weak": ("bapo", {"anchor": "sequence", "anchor_strength": 0.5}),
    "bapo-weak-no-clip": ("bapo", {"anchor": "sequence", "anchor_strength": 0.05, "max_grad_norm": 0.0}),
    "bapo-token": ("bapo", {"anchor": "token", "anchor_strength": 5.0}),
    "bapo-length-strong": ("bapo", {"anchor": "length-normalized", "anchor_strength": 20.0}),
    "dpo-no-clip": ("dpo", {"max_grad_norm": 0.0}),
    "dpo-by-pair": ("dpo", {"sampler": "by-pair", "part_gradient_steps": 0}),
    "bapo-length-by-pair": (
        "bapo",
        {"anchor": "length-normalized", "anchor_strength": 5.0, "sampler": "by-pair", "part_gradient_steps": 0},
    ),
}
TWO_SEEDS = ("dpo", "bapo", "bapo-length", "bapo-length-by-pair", "dpo-by-pair")
DRAWN = ("dpo", "bapo", "bapo-length")
RUNS = [f"{name}-seed0" for name in TWO_SEEDS] + [f"{name}-seed1" for name in TWO_SEEDS]
RUNS += [f"{name}-seed0" for name in VARIANTS if name not in TWO_SEEDS]


def recipe_of(run: str, others: dict[str, object]):
    name, _, seed = run.rpartition("-seed")
    objective, settings = VARIANTS[name]
    told = {f"training.{key}": value for key, value in {"max_grad_norm": 1.0, "seed": int(seed), **settings}.items()}
    return read_recipe(None, {**COMMON, **told, "training.objective": objective, **others})


def do(run: str, folder: Path, others: dict[str, object]) -> Record[Personalization]:
    """Train and evaluate one run, or read what was found before."""
    recipe = recipe_of(run, others)
    generations = recipe.generations.model_copy(update={"prompts": 3, "max_new_tokens": 128})
    return personalize(recipe.model_copy(update={"generations": generations}), folder / run, progress)


def progress(stage: str, done: int, total: int, note: str = "") -> None:
    if done == total or done % 10 == 0:
        print(f"  {stage}: {done}/{total} {note}", flush=True)


def row(run: str, record: Record[Personalization], log: list[dict]) -> tuple[str, ...]:
    (held_out,) = record.content.held_out.values()
    last = log[-10:]
    quiet = [e["grad_norm"] for e in log if not e.get("anchor/active")]
    active = [e["grad_norm"] for e in log if e.get("anchor/active")]
    return (
        run,
        interval(held_out.reward_accuracy, 100, 1, " %"),
        interval(held_out.margin, 1, 1),
        interval(held_out.drift, 1, 1),
        interval(held_out.drift_per_token, 1, 3),
        f"{mean(e['logratios/chosen'] for e in last):.1f} / {mean(e['logratios/rejected'] for e in last):.1f}",
        f"{median(quiet):.1f} ({len(quiet)})" if quiet else "none",
        f"{median(active):.1f} ({len(active)})" if active else "none",
    )


def parts_table(logs: dict[str, list[dict]]) -> str:
    """Gradient norms of the two parts alone, at the measured steps where a hinge was active."""
    rows = []
    for run, log in logs.items():
        both = [e for e in log if e.get("grad_norm/anchor", 0) > 0]
        if both:
            norms = [[e[f"grad_norm/{part}"] for e in both] for part in ("pair", "anchor")]
            rows.append((run, str(len(both)), *(f"{median(own):.1f}" for own in norms)))
    return markdown_table(("run", "steps measured", "pair loss, median", "anchor (times its strength), median"), rows)


HEADER = (
    "run",
    "reward accuracy",
    "margin (nats)",
    "drift (nats/response)",
    "drift (nats/token)",
    "chosen / rejected log-ratio in training, last 10 steps",
    "gradient norm of a step, no hinge active, median (steps)",
    "some hinge active",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("dsp-study"))
    parser.add_argument("--figures", type=Path, default=Path("docs/figures"))
    parser.add_argument("--only", nargs="*", choices=RUNS, default=RUNS)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="other values of a recipe's keys")
    arguments = parser.parse_args()
    others = {key: read_yaml(value, key) for key, _, value in (told.partition("=") for told in arguments.set)}
    found, logs = {}, {}
    for run in arguments.only:
        print(run, flush=True)
        found[run] = do(run, arguments.output, others)
        (adapter,) = found[run].content.adapters.values()
        logs[run] = list(read_run(Path(adapter)).log)
    print(markdown_table(HEADER, [row(run, found[run], logs[run]) for run in found]))
    print(parts_table(logs))
    for seed in (0, 1):
        shown = {name: logs[f"{name}-seed{seed}"] for name in DRAWN if f"{name}-seed{seed}" in logs}
        if shown:
            draw_logratios(shown, arguments.figures / f"dsp-literature-logratios-seed{seed}.png")
            draw_logratios(shown, arguments.figures / f"dsp-literature-logps-seed{seed}.png", quantity="logps")


if __name__ == "__main__":
    main()
