"""What DPO and BAPO forget on real DSP data: knowledge and alignment before and after, beside the rival that is told.

For each domain and seed: an adapter of DPO and one of BAPO (100 steps of 8 pairs), the base model, and the base model
with the domain as its system prompt, on all benchmarks (ScienceQA and HHH whole, samples of the others), held-out
reward accuracy and drift. Then two runs that the gate must fail: shuffled labels, and twenty times the learning rate.
Runs, answers and results are kept below --output: the program can be stopped and started again, and several processes
with the same --output share the work. Needs BAPO_DATA.

    python benchmarks/forgetting.py --output forgetting-study [--domains literature academy] [--seeds 0 1] [--limit 500]

--domains without a name leaves only the two runs that must fail.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev

from dsp_literature import progress
from filelock import FileLock, Timeout

from bapo.evaluation import BENCHMARKS, local_folder
from bapo.evaluation.asking import BenchmarkPlan
from bapo.jobs import Recipe, Variant, read_recipe, stages, training
from bapo.jobs.evaluation import find_out
from bapo.preferences import Preferences, preference_in_words
from bapo.reporting import (
    CHANGE_HEADER,
    HEADER,
    change_rows,
    forgetting_in_words,
    held_out_rows,
    interval,
    learned_in_words,
    markdown_table,
)
from bapo.results import BASE, PROMPT_ONLY, Comparison, Findings, compare_models

WHOLE = ("scienceqa", "hhh")
OBJECTIVES = ("dpo", "bapo")
LEAST_ACCURACY = 0.6  # what the gate asks for; a half is chance
BROKEN = "literature"  # the domain of the runs that must fail


@dataclass(frozen=True)
class Member:
    """One model of the study: trained by its recipe, or untrained and perhaps told the preference."""

    name: str
    recipe: Recipe
    trained: bool = True
    shuffle: bool = False
    told: str | None = None


def members_of(domain: str, seeds: Sequence[int], steps: int) -> list[Member]:
    """The base first, then all that are compared with it."""
    recipe = recipe_of(domain, "bapo", 0, steps)
    told = preference_in_words(f"dsp:{domain}")
    untrained = [
        Member(BASE, recipe, trained=False),
        Member(f"{domain}-{PROMPT_ONLY}", recipe, trained=False, told=told),
    ]
    return untrained + [
        Member(f"{domain}-{objective}-seed{seed}", recipe_of(domain, objective, seed, steps))
        for seed in seeds
        for objective in OBJECTIVES
    ]


def broken_of(domain: str, steps: int) -> list[Member]:
    """DPO on labels of which half are swapped, and at twenty times the learning rate."""
    fast = recipe_of(domain, "dpo", 0, steps, **{"training.learning_rate": 20 * 2e-4})
    return [
        Member(f"{domain}-dpo-20x", fast),
        Member(f"{domain}-dpo-shuffled", recipe_of(domain, "dpo", 0, steps), shuffle=True),
    ]


def recipe_of(domain: str, objective: str, seed: int, steps: int, **changes: object) -> Recipe:
    told = {
        "preferences.source": f"dsp:{domain}",
        "preferences.held_out": 100,
        "preferences.max_train_prompts": 2 * steps + 10,
        "anchoring.base_max_new_tokens": 128,
        "training.objective": objective,
        "training.max_steps": steps,
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


def train(member: Member, folder: Path) -> None:
    """Train a run, or find it trained."""
    recipe = member.recipe
    model = stages.load(recipe)
    split = stages.read(recipe)
    if member.shuffle:
        split = replace(split, train=shuffled(split.train))
    anchored = stages.anchor_split(recipe, split, model, progress)
    del model
    training.train(recipe, recipe.training.objective, anchored.train, folder, progress)


def ask(member: Member, output: Path, limit: int) -> Findings:
    """All benchmarks, some whole, samples of the others; and held-out preferences. What is done is read."""
    folder = output / "runs" / member.name
    if member.trained:
        train(member, folder)
    variant = Variant(member.name, str(folder) if member.trained else None, member.told)
    data, answers = local_folder(None), output / "answers"
    sampled = BenchmarkPlan(tuple(b for b in BENCHMARKS if b not in WHOLE), limit, 0, "harness", data, answers)
    whole = BenchmarkPlan(WHOLE, None, 0, "harness", data, answers)
    how = {"records": output, "on_progress": progress}
    wanted = member.name != BASE
    (first,) = find_out(member.recipe, [variant], benchmarks=sampled, preferences=wanted, **how)
    (second,) = find_out(member.recipe, [variant], benchmarks=whole, preferences=False, **how)
    answered = {**first.benchmarks, **second.benchmarks}
    return replace(
        first,
        benchmarks={name: answered[name] for name in BENCHMARKS},
        seconds={**first.seconds, **second.seconds},
    )


def share(members: Sequence[Member], output: Path, limit: int) -> dict[str, Findings]:
    """Evaluate all members but those that another process is at work on."""
    folder = output / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for member in members:
        with suppress(Timeout), FileLock(folder / f"{member.name}.lock", timeout=0):
            print(member.name, flush=True)
            found[member.name] = ask(member, output, limit)
    return found


def _check_settings(output: Path, settings: dict[str, int]) -> None:
    """Results of other settings would be taken for those of these."""
    path = output / "settings.json"
    if path.is_file() and json.loads(path.read_text()) != settings:
        raise SystemExit(f"{output} holds a study with {path.read_text()}: name another folder with --output.")
    output.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(settings))


def summary(found: Comparison) -> str:
    """One row a model: the base's accuracies, and the changes of the others."""
    header = ("", *(benchmark.title for benchmark in BENCHMARKS.values()), "forgetting score")
    base = found.models[found.against].benchmarks
    rows = [
        ("questions", *(f"{base[name].items:,} of {base[name].questions:,}" for name in BENCHMARKS), ""),
        (BASE, *(interval(base[name].accuracy, 100, 1, " %") for name in BENCHMARKS), ""),
    ]
    for name, changes in found.changes.items():
        cells = (interval(changes.benchmarks[benchmark].change, 1, 1) for benchmark in BENCHMARKS)
        rows.append((name, *cells, interval(changes.forgetting.score, 1, 1)))
    return markdown_table(header, rows)


def duels(members: Sequence[Findings]) -> str:
    """Each adapter beside the rival that is told, BAPO beside DPO of the same seed; paired by prompt and question."""
    named = {member.name: member for member in members}
    rival = next((member for member in members if member.name.endswith(PROMPT_ONLY)), None)
    pairs = [(rival, member) for member in members if rival and member.adapter]
    pairs += [(named.get(name.replace("-bapo-", "-dpo-")), own) for name, own in named.items() if "-bapo-" in name]
    rows = []
    for before, after in pairs:
        if before is None:
            continue
        changes = compare_models([before, after]).changes[after.name]
        learned = changes.preferences
        figures = (
            learned.reward_accuracy,
            learned.margin,
            learned.drift,
            changes.forgetting.score,
            changes.benchmarks[WHOLE[0]].change,
        )
        rows.append((after.name, before.name, *(interval(figure, 1, 1) for figure in figures)))
    header = ("", "minus", "reward accuracy (points)", "margin (nats)", "drift (nats/response)", "knowledge (points)")
    header += (f"{BENCHMARKS[WHOLE[0]].title} (points)",)
    return markdown_table(header, rows) if rows else ""


def show(title: str, found: Comparison, members: Sequence[Findings]) -> None:
    print(f"\n## {title}\n")
    reports = {name: model.preferences for name, model in found.models.items() if model.preferences is not None}
    if reports:
        print(f"{markdown_table(HEADER, held_out_rows(reports))}\n")
    print(f"{summary(found)}\n")
    if against := duels(members):
        print(f"{against}\n")
    for name, changes in found.changes.items():
        print(f"- {forgetting_in_words(name, changes.forgetting, found.budget)}")
        if changes.learned is not None:
            print(f"- {learned_in_words(name, reports[name].reward_accuracy, LEAST_ACCURACY, changes.learned)}")
    for name, changes in found.changes.items():
        seconds = ", ".join(f"{key} {score.seconds:.0f}" for key, score in found.models[name].benchmarks.items())
        table = markdown_table(CHANGE_HEADER, change_rows(changes.benchmarks))
        print(f"\n### {name}\n\nSeconds: {seconds}.\n\n{table}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("forgetting-study"))
    parser.add_argument("--domains", nargs="*", default=["literature", "academy"])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--limit", type=int, default=500)
    arguments = parser.parse_args()
    _check_settings(arguments.output, {"steps": arguments.steps, "limit": arguments.limit})
    groups = {f"DSP {d}": members_of(d, arguments.seeds, arguments.steps) for d in arguments.domains}
    base = members_of(BROKEN, [], arguments.steps)[0]
    groups["Runs that the gate must fail"] = [base, *broken_of(BROKEN, arguments.steps)]
    everyone = list({member.name: member for own in groups.values() for member in own}.values())
    found = share(everyone, arguments.output, arguments.limit)
    missing = [member.name for member in everyone if member.name not in found]
    by_kind: dict[str, list[float]] = {}
    for title, own in groups.items():
        if any(member.name in missing for member in own):
            continue
        others = [found[member.name] for member in own[1:]]
        comparison = compare_models([found[BASE], *others], least_accuracy=LEAST_ACCURACY)
        show(title, comparison, others)
        for name, changes in comparison.changes.items():
            kind = name.split("-seed")[0].split("-", 1)[1]
            by_kind.setdefault(kind, []).append(changes.forgetting.score.value)
    for kind, scores in by_kind.items():
        deviation = f", standard deviation {stdev(scores):.1f}" if len(scores) > 1 else ""
        print(
            f"- {kind}: forgetting scores {', '.join(f'{s:.1f}' for s in scores)}, mean {mean(scores):.1f}{deviation}"
        )
    if missing:
        print(f"Another process is at work on {', '.join(missing)}; start this again for their tables.")


if __name__ == "__main__":
    main()
