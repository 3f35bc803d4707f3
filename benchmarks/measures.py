"""What each measure of forgetting can see: a zero adapter, two seeds of one setting, and a run at 20 times its rate.

All adapters are trained by DPO on one base, and asked the same questions and prompts as it. For each measure: its
change against the base with its interval, how many half-widths of the interval the change is (2 and more can be told
from nothing), and the seconds that it took. An accuracy and the right choice's log-probability come from the same
answers.

    python benchmarks/measures.py FOLDER [--source dsp:academy] [--steps 50] [--limit 300] [--data-folder ...]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bapo import personalize
from bapo.evaluation import BenchmarkPlan, local_folder
from bapo.jobs import Recipe, Variant, evaluate, read_recipe
from bapo.jobs.movement import MovementPlan
from bapo.models import add_lora, load_model
from bapo.reporting import interval, markdown_table
from bapo.results import Comparison, Estimate, ModelChanges

BENCHMARKS = ("piqa", "arc_challenge", "scienceqa")


def recipe_of(arguments: argparse.Namespace, **more: Any) -> Recipe:
    overrides = {
        "model.name": arguments.model,
        "preferences.source": arguments.source,
        "preferences.held_out": arguments.held_out,
        "preferences.max_train_prompts": 3 * arguments.steps,
        "preferences.data_folder": arguments.data_folder,
        "anchoring.base_max_new_tokens": 128,
        "anchoring.anchored_store": str(arguments.folder / "anchored"),
        "training.objective": "dpo",
        "training.max_steps": arguments.steps,
        "generations.prompts": 0,
        **more,
    }
    return read_recipe(None, overrides)


def adapters(arguments: argparse.Namespace) -> dict[str, str]:
    """The controls by name: folders of trained adapters, and one that is zero."""
    zero = arguments.folder / "zero"
    add_lora(load_model(arguments.model).model).save_pretrained(zero)
    controls = {
        "one setting, seed 0": {},
        "one setting, seed 1": {"training.seed": 1},
        "20 times the learning rate": {"training.learning_rate": 20 * 2e-4},
    }
    trained = {"zero adapter": str(zero)}
    for name, more in controls.items():
        record = personalize(recipe_of(arguments, **more), arguments.folder / name.replace(" ", "-"))
        trained[name] = record.content.adapters["dpo"]
    return trained


def mean_of(parts: list[Estimate], scale: float = 1.0) -> Estimate:
    """Mean over benchmarks of independent questions; half-widths add up in squares."""
    half = np.sqrt(sum(((part.high - part.low) / 2) ** 2 for part in parts)) / len(parts)
    value = float(np.mean([part.value for part in parts]))
    return Estimate(scale * value, scale * (value - half), scale * (value + half))


def measured(changes: ModelChanges, comparison: Comparison, name: str) -> Mapping[str, Estimate]:
    movement, asked = comparison.models[name].movement, changes.benchmarks.values()
    assert movement is not None
    assert changes.forgetting is not None
    floors = [change.floor for change in asked if change.floor is not None]
    floor = f"{np.hypot.reduce(floors) / len(asked):.0e}" if len(floors) == len(asked) else "unknown"
    found = {
        "accuracy (points)": changes.forgetting.score,
        f"right choice (nats; floor {floor})": mean_of(
            [change.right_choice for change in asked if change.right_choice]
        ),
        "right choice, tempered (nats)": mean_of([change.tempered for change in asked if change.tempered]),
    }
    for topic, report in movement.divergence.items():
        found[f"divergence, {topic} prompts (nats a token; floor {report.floor:.0e})"] = report.per_token
    if movement.text is not None:
        found["cross-entropy of the text (nats a token)"] = movement.text.change
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--source", default="dsp:academy")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--held-out", type=int, default=50)
    parser.add_argument("--limit", type=int, default=300)
    parser.add_argument("--text", type=Path, default=Path(__file__).parents[1] / "docs" / "architecture.md")
    parser.add_argument("--data-folder")
    arguments = parser.parse_args()
    trained = adapters(arguments)
    plan = BenchmarkPlan(
        BENCHMARKS,
        limit=arguments.limit,
        data_folder=local_folder(arguments.data_folder),
        answers_folder=arguments.folder / "answers",
    )
    seconds: dict[str, float] = {}

    def timed(what: str, **more: Any) -> Comparison:
        start = time.perf_counter()
        variants = [Variant("base"), *(Variant(name, folder) for name, folder in trained.items())]
        record = evaluate(
            recipe_of(arguments), variants, preferences=False, records=arguments.folder / "answers", **more
        )
        seconds[what] = time.perf_counter() - start
        return record.content

    timed("questions, of the base and four adapters", benchmarks=plan)
    movement = MovementPlan(arguments.held_out, text=arguments.text)
    timed("divergence and text, of four adapters", movement=movement)
    comparison = timed("reading all of it", benchmarks=plan, movement=movement)
    rows = []
    for name, changes in comparison.changes.items():
        for measure, change in measured(changes, comparison, name).items():
            half = (change.high - change.low) / 2
            power = f"{abs(change.value) / half:.1f}" if half else "0"
            rows.append((name, measure, interval(change, 1, 5), power))
    print(markdown_table(("adapter", "measure", "change [95 %]", "half-widths"), rows))
    print(markdown_table(("work", "seconds"), [(what, f"{took:.0f}") for what, took in seconds.items()]))


if __name__ == "__main__":
    main()
