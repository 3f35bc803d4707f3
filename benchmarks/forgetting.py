"""What DPO and BAPO forget on real DSP data: knowledge and alignment before and after, beside the rival that is told.

For each domain and seed: an adapter of DPO and one of BAPO (100 steps of 8 pairs), the base model, and the base model
with the domain as its system prompt, on all benchmarks (ScienceQA and HHH whole, samples of the others), held-out
reward accuracy and drift. Then two runs that the gate must fail: shuffled labels, and twenty times the learning rate.
Runs and answers are kept below --output, so the program can be stopped and started again. Needs BAPO_DATA.

    python benchmarks/forgetting.py --output forgetting-study [--domains literature academy] [--seeds 0 1] [--limit 500]
"""

from __future__ import annotations

import argparse
import random
from dataclasses import replace
from pathlib import Path
from statistics import mean

from dsp_literature import progress

from bapo.evaluation import BENCHMARKS, Estimate, local_folder
from bapo.evaluation.asking import BenchmarkPlan
from bapo.personalize import Recipe, read_recipe, stages
from bapo.personalize.examination import BASE, PROMPT_ONLY, Contestant, Examination, Examined, examine
from bapo.preferences import Preferences, preference_in_words
from bapo.reporting import (
    CHANGE_HEADER,
    HEADER,
    change_rows,
    forgetting_in_words,
    held_out_rows,
    interval,
    markdown_table,
)

WHOLE = ("scienceqa", "hhh")
BROKEN = {"dpo-shuffled": {}, "dpo-20x": {"training.learning_rate": 20 * 2e-4}}


def recipe_of(domain: str, objective: str, seed: int, steps: int, **changes: object) -> Recipe:
    told = {
        "preferences.source": f"dsp:{domain}",
        "preferences.held_out": 100,
        "preferences.max_train_prompts": 2 * steps + 10,
        "anchoring.max_new_tokens": 128,
        "training.objective": objective,
        "training.steps": steps,
        "training.seed": seed,
    }
    return read_recipe(None, told | changes)


def shuffled(preferences: Preferences) -> Preferences:
    """Chosen and rejected swapped in a random half of the pairs."""
    coin = random.Random(0)
    groups = tuple(
        replace(group, pairs=tuple((b, a) if coin.random() < 0.5 else (a, b) for a, b in group.pairs))
        for group in preferences.groups
    )
    return replace(preferences, groups=groups)


def train(recipe: Recipe, folder: Path, *, shuffle: bool = False) -> Contestant:
    """Train a run, or find it trained."""
    if not (folder / "run.json").is_file():
        model = stages.load(recipe)
        split = stages.read(recipe)
        if shuffle:
            split = replace(split, train=shuffled(split.train))
        anchored = stages.anchor_split(recipe, split, model, progress)
        del model
        stages.train(recipe, recipe.training.objective, anchored.train, folder, progress)
    return Contestant(folder.name, str(folder))


def ask(recipe: Recipe, contestants: list[Contestant], folder: Path, limit: int, *, preferences: bool) -> Examination:
    """All benchmarks: some whole, samples of the others."""
    data = local_folder(None)
    sampled = BenchmarkPlan(tuple(b for b in BENCHMARKS if b not in WHOLE), limit, 0, "harness", data, folder)
    whole = BenchmarkPlan(WHOLE, None, 0, "harness", data, folder)
    first = examine(recipe, contestants, plan=sampled, preferences=preferences, on_progress=progress)
    second = examine(recipe, contestants, plan=whole, on_progress=progress)

    def joined(a: Examined, b: Examined) -> Examined:
        answers = {**a.benchmarks, **b.benchmarks}
        return replace(a, benchmarks={name: answers[name] for name in BENCHMARKS}, seconds={**a.seconds, **b.seconds})

    others = tuple(joined(a, b) for a, b in zip(first.others, second.others, strict=True))
    return Examination(joined(first.against, second.against), others)


def show(title: str, found: Examination) -> None:
    print(f"\n## {title}\n", flush=True)
    reports = {own.name: own.preferences for own in found.others if own.preferences is not None}
    if reports:
        print(markdown_table(HEADER, held_out_rows(reports)))
    for own in found.others:
        rows = change_rows(found.against.benchmarks, own.benchmarks, budget=found.budget)
        print(
            f"\n### {own.name}, asked in {sum(own.seconds.values()):.0f} s\n\n{markdown_table(CHANGE_HEADER, rows)}\n"
        )
    scores = found.forgetting()
    for name, score in scores.items():
        print(f"- {forgetting_in_words(name, score, found.budget)}")
    rows = [
        (name, interval(score.score, 1, 1), *(f"{_points(found, name, b):+.1f}" for b in BENCHMARKS))
        for name, score in scores.items()
    ]
    header = ("", "forgetting score", *(benchmark.title for benchmark in BENCHMARKS.values()))
    print(f"\n{markdown_table(header, rows)}\n", flush=True)


def _points(found: Examination, name: str, benchmark: str) -> float:
    (own,) = (other for other in found.others if other.name == name)
    change: Estimate = found.changes(own)[benchmark].change
    return change.value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("forgetting-study"))
    parser.add_argument("--domains", nargs="*", default=["literature", "academy"])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--limit", type=int, default=500)
    arguments = parser.parse_args()
    runs, answers, steps = arguments.output / "runs", arguments.output / "answers", arguments.steps
    by_objective: dict[str, list[float]] = {}
    for domain in arguments.domains:
        told = Contestant(PROMPT_ONLY, system=preference_in_words(f"dsp:{domain}"))
        contestants = [Contestant(BASE), told]
        for objective in ("dpo", "bapo"):
            for seed in arguments.seeds:
                name = f"{domain}-{objective}-seed{seed}"
                print(name, flush=True)
                contestants.append(train(recipe_of(domain, objective, seed, steps), runs / name))
        recipe = recipe_of(domain, "bapo", 0, steps)
        found = ask(recipe, contestants, answers, arguments.limit, preferences=True)
        show(f"DSP {domain}", found)
        for name, score in found.forgetting().items():
            by_objective.setdefault(next((o for o in ("dpo", "bapo") if f"-{o}-" in name), name), []).append(
                score.score.value
            )
    for name, scores in by_objective.items():
        print(f"- {name}: mean forgetting score {mean(scores):.1f}, from {min(scores):.1f} to {max(scores):.1f} points")
    domain = arguments.domains[0]
    broken = [
        train(recipe_of(domain, "dpo", 0, steps, **changes), runs / f"{domain}-{name}", shuffle="shuffled" in name)
        for name, changes in BROKEN.items()
    ]
    recipe = recipe_of(domain, "dpo", 0, steps)
    show(
        "Runs that the gate must fail",
        ask(recipe, [Contestant(BASE), *broken], answers, arguments.limit, preferences=False),
    )


if __name__ == "__main__":
    main()
