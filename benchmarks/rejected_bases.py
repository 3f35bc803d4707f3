"""What an anchor does where the rejected response is the model's own, and what comes of leaving it out.

Questions whose rejected response is the model's own greedy answer, and whose chosen one is in another style; all pairs
in every step, in float32. The anchor holds the rejected response in spite of it (sequence, length-normalized), or, as
the library has it, holds none that a pair rejects. Printed are the mean log-ratios after the last step, in nats.

    python benchmarks/rejected_bases.py [--steps 12] [--seeds 0] [--learning-rate 3e-4]
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

from transformers import PrinterCallback

from bapo import BAPOConfig, BAPOTrainer
from bapo.anchoring import AnchoredPreferences, AnchorStore, GenerationSettings, anchor, generate_batch
from bapo.models import LoadedModel, add_lora, load_model
from bapo.preferences import Message, Preferences, PromptGroup
from bapo.reporting import markdown_table

QUESTIONS = (
    "What is the capital of France?",
    "What colour is the sky on a clear day?",
    "How many days are there in a week?",
    "What do bees make?",
    "What is frozen water called?",
    "Which animal barks?",
    "What is two plus two?",
    "What do we breathe?",
)
CHOSEN = "Aye, captain! That I can tell ye, and gladly."
NEW_TOKENS = 20
WAYS = {"sequence": True, "length-normalized": True, "none": False}


def anchored_to(loaded: LoadedModel, folder: Path) -> AnchoredPreferences:
    """The pairs, with the model's own answers as what they reject."""
    settings = GenerationSettings(max_new_tokens=NEW_TOKENS)
    prompts = [(Message("user", question),) for question in QUESTIONS]
    answers = generate_batch(loaded.model, [loaded.chat.prompt_ids(p) for p in prompts], settings, loaded.chat.end_ids)
    groups = tuple(
        PromptGroup(prompt, (CHOSEN, loaded.chat.response_text(own[0].ids)), ((0, 1),))
        for prompt, own in zip(prompts, answers, strict=True)
    )
    preferences = Preferences("own answers rejected", groups, len(groups))
    return anchor(preferences, loaded, AnchorStore(folder / "anchors", loaded), generation=settings)


def held_in_spite(anchored: AnchoredPreferences) -> AnchoredPreferences:
    """The same data with an anchor on every base response."""
    groups = (
        replace(group, bases=tuple(replace(base, rejected=False) for base in group.bases)) for group in anchored.groups
    )
    return replace(anchored, groups=tuple(groups))


def train(way: str, seed: int, told: argparse.Namespace, folder: Path) -> dict[str, float]:
    """What the last step logged."""
    loaded = load_model(told.model, precision="float32", device="cpu")
    anchored = anchored_to(loaded, folder)
    settings = BAPOConfig(
        output_dir=str(folder),
        anchor="length-normalized" if way == "none" else way,
        per_device_train_batch_size=len(QUESTIONS),
        max_steps=told.steps,
        learning_rate=told.learning_rate,
        seed=seed,
        save_strategy="no",
        disable_tqdm=True,
        log_level="error",
        use_cpu=True,
    )
    trainer = BAPOTrainer(
        add_lora(loaded.model, seed=seed),
        args=settings,
        train_dataset=held_in_spite(anchored) if WAYS[way] else anchored,
        processing_class=loaded.tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    last = [entry for entry in trainer.state.log_history if "loss" in entry][-1]
    return {**last, "recognized": sum(group.bases[0].rejected for group in anchored.groups)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    told = parser.parse_args()
    rows = []
    for seed in told.seeds:
        for way in WAYS:
            with tempfile.TemporaryDirectory() as folder:
                last = train(way, seed, told, Path(folder))
            shown = [f"{last[f'logratios/{side}']:+.1f}" for side in ("rejected", "chosen")]
            rows.append([way, str(seed), *shown])
            print(f"{way}, seed {seed}: {last['recognized']} of {len(QUESTIONS)} recognized", flush=True)
    print(markdown_table(["anchor on the rejected response", "seed", "rejected", "chosen"], rows))


if __name__ == "__main__":
    main()
