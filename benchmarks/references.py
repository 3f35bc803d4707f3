"""What rounding does to training: four ways to have the references of a step.

Trains the embedded model on starter preferences each way, several seeds each, and prints what a way starts with, what
it learns, how far it drifts and what a step takes. Ways:

- stored: reference log-probs as anchoring kept them, from rows of another composition;
- first step: stored, but for the first step, which scores them again in its own row (the trainer's way);
- every step: scored again at every step, in the step's own row, with the adapter off;
- tiles: stored, and every product with a weight is made in tiles of a fixed number of rows, when anchoring and when
  training, so that a token's numbers do not depend on its row.

    python benchmarks/references.py [--seeds 0 1 2] [--tile 256] [--preference concise]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import PrinterCallback

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.rounding import ADDMM_, MM, products

from bapo.anchoring import AnchoredPreferences
from bapo.evaluation import evaluate_preferences, held_out_logps
from bapo.jobs import Recipe, read_recipe, stages
from bapo.models import add_lora, machine
from bapo.reporting import markdown_table
from bapo.results import PreferenceReport
from bapo.training import BAPOConfig, BAPOTrainer
from bapo.training.batches import PairBatch

WAYS = ("stored", "first step", "every step", "tiles")


class Stored(BAPOTrainer):
    """References are what was stored, from the first step on."""

    def _with_references_of_its_row(self, batch: PairBatch) -> PairBatch:
        return batch


class EveryStep(BAPOTrainer):
    """References of each batch are scored in the batch's own row."""

    def _batch_loss(self, model: Any, batch: PairBatch, share: float) -> Tensor:
        return super()._batch_loss(model, self._with_references_of_its_row(batch), share)


TRAINERS = {"stored": Stored, "first step": BAPOTrainer, "every step": EveryStep, "tiles": Stored}


def tiled(rows: int) -> AbstractContextManager[None]:
    """Products of bf16 rows with a weight (a transposed matrix) are made for exactly so many rows at a time."""

    def in_tiles(left: Tensor, right: Tensor, onto: Tensor | None) -> Tensor:
        if left.dtype != torch.bfloat16 or right.is_contiguous():
            return MM(left, right) if onto is None else ADDMM_(onto, left, right)
        out = left.new_empty(len(left), right.shape[1]) if onto is None else onto

        def of(tile: Tensor, own_out: Tensor) -> None:
            if onto is None:
                MM(tile, right, out=own_out)
            else:
                ADDMM_(own_out, tile, right)

        whole = len(left) // rows * rows
        for at in range(0, whole, rows):
            of(left[at : at + rows], out[at : at + rows])
        if whole < len(left):
            rest = len(left) - whole
            padded, padded_out = left.new_zeros(rows, left.shape[1]), out.new_zeros(rows, out.shape[1])
            padded[:rest], padded_out[:rest] = left[whole:], out[whole:]
            of(padded, padded_out)
            out[whole:] = padded_out[:rest]
        return out

    return products(in_tiles)


def within(way: str, tile: int) -> Any:
    return tiled(tile) if way == "tiles" else nullcontext()


# 18 steps of 10 pairs on the starter preferences.
SETTINGS: dict[str, Any] = {
    "preferences.held_out": 12,
    "anchoring.base_max_new_tokens": 128,
    "training.learning_rate": 2e-4,
    "training.per_device_train_batch_size": 10,
    "training.num_train_epochs": 1.0,
}


def recipe_of(told: argparse.Namespace, **settings: str) -> Recipe:
    """The settings above, with the model and as many prompts as are asked for."""
    asked = {**SETTINGS, "model.name": told.model, "preferences.max_train_prompts": told.prompts}
    asked["preferences.held_out"] = told.held_out or SETTINGS["preferences.held_out"]
    return read_recipe(None, asked | {key.replace("__", "."): value for key, value in settings.items()})


def anchored_in(way: str, told: argparse.Namespace, folder: Path) -> stages.Anchored:
    source = f"starter:{told.preference}"
    recipe = recipe_of(told, preferences__source=source, anchoring__anchored_store=str(folder))
    with within(way, told.tile):
        return stages.anchor_split(recipe, stages.read(recipe), stages.load(recipe))


def trainer_of(
    way: str, seed: int, told: argparse.Namespace, anchored: AnchoredPreferences, folder: str
) -> BAPOTrainer:
    recipe = recipe_of(told)
    loaded = stages.load(recipe)
    settings = BAPOConfig(
        output_dir=folder,
        learning_rate=recipe.training.learning_rate,
        per_device_train_batch_size=recipe.training.per_device_train_batch_size,
        num_train_epochs=1,
        seed=seed,
        data_seed=seed,
        save_strategy="no",
        disable_tqdm=True,
        log_level="error",
    )
    policy = add_lora(loaded.model, seed=seed)
    trainer = TRAINERS[way](policy, args=settings, train_dataset=anchored, processing_class=loaded.tokenizer)
    trainer.remove_callback(PrinterCallback)
    return trainer


def run(
    way: str, seed: int, told: argparse.Namespace, anchored: stages.Anchored
) -> tuple[list[float], PreferenceReport]:
    """Loss, log-ratio of base responses and share of active hinges of step 0, that share later; and what came out."""
    with within(way, told.tile), tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(way, seed, told, anchored.train, folder)
        reference = held_out_logps(trainer.model, anchored.held_out)
        trainer.train()
        log = [entry for entry in trainer.state.log_history if "loss" in entry]
        report, _ = evaluate_preferences(trainer.model, anchored.held_out, reference=reference)
    later = sum(entry["anchor/active"] for entry in log[1:]) / (len(log) - 1)
    return [log[0]["loss"], log[0]["logratios/base"], log[0]["anchor/active"], later], report


def step_times(told: argparse.Namespace, anchored: dict[str, stages.Anchored]) -> dict[str, list[float]]:
    """Seconds of the same steps, none of them a run's first, the ways taking turns."""
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        trainers = {way: trainer_of(way, 0, told, anchored[way].train, folder) for way in WAYS}
        for number in range(told.rounds + 1):
            for way, trainer in trainers.items():
                items = trainer.train_dataset.items
                start = 10 * number % (len(items) - 10)
                inputs = trainer.data_collator(items[start : start + 10])
                trainer.model.train()
                trainer.state.global_step = 1
                begin = time.perf_counter()
                with within(way, told.tile):
                    for batch in inputs["batches"]:
                        trainer.compute_loss(trainer.model, {"batches": (batch,)}).backward()
                if number:
                    times[way].append(time.perf_counter() - begin)
                trainer.model.zero_grad()
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--prompts", type=int, help="trained on; all by default")
    parser.add_argument("--held-out", type=int, help="prompts; 12 by default")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--tile", type=int, default=256)
    parser.add_argument("--preference", default="concise")
    parser.add_argument("--rounds", type=int, default=9)
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        stored = anchored_in("stored", told, Path(folder, "stored"))
        tiles = anchored_in("tiles", told, Path(folder, "tiles"))
        anchored = {way: tiles if way == "tiles" else stored for way in WAYS}
        rows = []
        for seed in told.seeds:
            for way in WAYS:
                start, report = run(way, seed, told, anchored[way])
                found = [report.reward_accuracy.value * 100, report.margin.value, report.drift.value]
                rows.append([way, str(seed), *(f"{value:.3f}" for value in (*start, *found))])
                print(rows[-1], flush=True)
        times = step_times(told, anchored)
    print(f"{machine()}, tiles of {told.tile} rows")
    head = [
        "references",
        "seed",
        "loss of step 0",
        "log-ratio of base responses, step 0 (nats)",
        "active hinges, step 0",
    ]
    head += ["active later", "reward accuracy (%)", "margin (nats)", "drift (nats)"]
    print(markdown_table(head, sorted(rows, key=lambda row: WAYS.index(row[0]))))
    for way, own in times.items():
        ratio = median(a / b for a, b in zip(own, times["stored"], strict=True))
        print(f"{way}: {median(own):.2f} s a step, {ratio:.2f} times stored")


if __name__ == "__main__":
    main()
