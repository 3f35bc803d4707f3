"""The stages of a personalization, each usable alone: read, anchor, train, evaluate, answer."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bapo.errors import BapoError, foreign
from bapo.files import make_folder
from bapo.kernels import Kernels, chosen
from bapo.personalize.recipe import Recipe, TrainingSection
from bapo.personalize.run_folder import (
    DONE,
    Run,
    alone,
    check_settings,
    dated,
    finish,
    read_run,
    record_of,
    start,
)
from bapo.preferences import Preferences, Split, read_preferences, read_split

if TYPE_CHECKING:
    from bapo.anchoring import AnchoredPreferences, AnchorStore
    from bapo.evaluation import PreferenceReport
    from bapo.evaluation.preference import Logps
    from bapo.models import LoadedModel

OnProgress = Callable[[str, int, int, str], None]
"""Told the stage, how many are done, of how many, and a note to show beside it."""

ENOUGH_STEPS = 40
"""Optimizer steps that a run takes at least, where the recipe says neither epochs nor steps."""


def silent(stage: str, done: int, total: int, note: str) -> None:
    """Progress that nobody watches."""


def counting(on_progress: OnProgress, stage: str) -> Callable[[int, int], None]:
    """For what tells only how many are done, and of how many."""
    return lambda done, total: on_progress(stage, done, total, "")


@dataclass(frozen=True)
class Anchored:
    """Both sides of a split, anchored to the same reference."""

    train: AnchoredPreferences
    held_out: AnchoredPreferences


def check(recipe: Recipe, adapters: Sequence[str] = ()) -> None:
    """Find out what cannot work before anything costly is done.

    Raises:
        BapoError: an unknown objective or a setting that it does not have, or an adapter that is not there.
    """
    from bapo.models import check_adapter
    from bapo.objectives import make_objective

    for objective in (recipe.training.objective, *recipe.compare):
        told = _settings_for(recipe, objective)
        make_objective(
            objective,
            beta=told.beta,
            anchor=told.anchor,
            anchor_strength=told.anchor_strength,
            anchor_control=told.anchor_control,
            **told.objective_settings,
        )
    if recipe.training.full and recipe.model.precision == "nf4":
        raise BapoError(
            "4-bit weights cannot be trained themselves: leave out training.full, or take another precision."
        )
    for adapter in (*adapters, *([recipe.model.adapter] if recipe.model.adapter else [])):
        check_adapter(adapter)


def read(recipe: Recipe) -> Split:
    """Read the preferences and split them."""
    own = recipe.preferences
    split = read_split(
        own.source,
        protocol=own.protocol,
        held_out=own.held_out,
        seed=own.seed,
        data_folder=Path(own.data_folder) if own.data_folder else None,
        chat=not own.plain,
    )
    if own.max_train_prompts is None or own.max_train_prompts >= len(split.train.groups):
        return split
    train = split.train
    kept = Preferences(train.name, train.groups[: own.max_train_prompts], train.rows, train.dropped)
    return Split(kept, split.held_out)


def read_all(recipe: Recipe) -> Preferences:
    """Read the preferences, unsplit."""
    own = recipe.preferences
    return read_preferences(
        own.source, data_folder=Path(own.data_folder) if own.data_folder else None, chat=not own.plain
    )


def load(recipe: Recipe, *, adapter: str | None = None, trainable: bool = False) -> LoadedModel:
    """The recipe's model; ``adapter`` replaces the recipe's own one.

    Raises:
        BapoError: it cannot be loaded, or the adapter was trained on another model.
    """
    from bapo.models import load_model

    own, adapter = recipe.model, adapter or recipe.model.adapter
    record = record_of(adapter)
    if record is not None and record["recipe"]["model"]["name"] != own.name:
        without = recipe.model_copy(update={"model": own.model_copy(update={"adapter": None})})
        check_base(without, adapter, load(without))
    loaded = load_model(
        own.name,
        precision=own.precision,
        adapter=adapter,
        adapter_trainable=trainable,
        trust_remote_code=own.trust_remote_code,
    )
    return replace(loaded, kernels=own.kernels)


def check_base(recipe: Recipe, adapter: str | None, base: LoadedModel) -> None:
    """Refuse an adapter of bapo's that was trained on other weights than a base model's.

    It cannot be told in another precision, nor where training went on from an adapter that is not part of the base.
    """
    from bapo.models import model_fingerprint

    run = record_of(adapter)
    if run is None:
        return
    trained_on = run["recipe"]["model"]
    if run.get("precision", trained_on["precision"]) != base.precision or trained_on["adapter"] != recipe.model.adapter:
        return
    if run["reference"] != model_fingerprint(base.model):
        raise BapoError(
            f"The adapter {adapter} was trained on another model ({trained_on['name']}) than {recipe.model.name}: "
            "name that one with --model."
        )


def open_store(recipe: Recipe, model: LoadedModel) -> AnchorStore:
    """The model's store in the recipe's folder or the user's cache."""
    from bapo.anchoring import AnchorStore

    folder = recipe.anchoring.folder
    return AnchorStore(Path(folder), model) if folder else AnchorStore.in_cache(model)


def anchor_preferences(
    recipe: Recipe,
    preferences: Preferences,
    model: LoadedModel,
    on_progress: OnProgress = silent,
    *,
    today: datetime | None = None,
) -> AnchoredPreferences:
    """Anchor preferences to the model as it is, in the recipe's folder or the user's cache.

    ``today`` is what a chat template that writes the date takes for now (`day_of` a run); the store's day by default.
    """
    from bapo.anchoring import GenerationSettings, LengthPolicy, anchor

    how = recipe.anchoring
    return anchor(
        preferences,
        model,
        open_store(recipe, model),
        generation=GenerationSettings(
            max_new_tokens=how.max_new_tokens, temperature=how.temperature, responses=how.responses, seed=how.seed
        ),
        lengths=LengthPolicy(recipe.preferences.max_prompt_tokens, recipe.preferences.max_response_tokens),
        today=today,
        on_progress=lambda stage, done, total: on_progress(stage, done, total, ""),
    )


def anchor_split(
    recipe: Recipe,
    split: Split,
    model: LoadedModel,
    on_progress: OnProgress = silent,
    *,
    today: datetime | None = None,
) -> Anchored:
    """Anchor both sides of a split in one go, so that prompts are batched together; ``today`` as above."""
    together = anchor_preferences(recipe, split.whole, model, on_progress, today=today)
    del together  # kept on disk; reading each side from there is instant
    return Anchored(
        anchor_preferences(recipe, split.train, model, today=today),
        anchor_preferences(recipe, split.held_out, model, today=today),
    )


def train(
    recipe: Recipe,
    objective: str,
    anchored: AnchoredPreferences,
    folder: Path,
    on_progress: OnProgress = silent,
) -> Run:
    """Train one objective into a folder, going on where a killed run stopped; a finished run is read, not repeated.

    Raises:
        BapoError: the folder holds a run with other settings, or cannot be written.
    """
    settings = _settings_for(recipe, objective)
    identity = _identity(recipe, settings, anchored)
    with alone(make_folder(folder), lambda note: on_progress(f"training {objective}", 0, 1, note)):
        start(folder, identity, _that_count(recipe, settings), anchored.today)
        if (folder / DONE).is_file():
            return read_run(folder)
        on_progress(f"checks before {objective}", 0, 1, "")
        trainer = _trainer(recipe, settings, anchored, folder, on_progress)
        trainer.train(resume_from_checkpoint=True)
        steps, asked = trainer.state.global_step, trainer.state.max_steps
        if steps < asked:
            raise BapoError(f"Training into {folder} ended after {steps} of {asked} steps: start the command again.")
        on_progress(f"saving {objective}", 0, 1, "")
        _save(recipe, settings, anchored, trainer, folder, identity)
        on_progress(f"saving {objective}", 1, 1, "")
        return read_run(folder)


def _save(
    recipe: Recipe, settings: TrainingSection, anchored: AnchoredPreferences, trainer: Any, folder: Path, identity: str
) -> None:
    """Write what was trained, and last the record by which the run counts as finished."""
    from bapo.anchoring import few_tokens
    from bapo.models import resolve_precision

    if trainer.is_world_process_zero():
        with foreign(
            f"What was trained could not be written to {folder}",
            "see that there is room and that you may, and start again: it goes on from the last checkpoint",
        ):
            trainer.save_model(str(folder))
        finish(
            folder,
            {
                "identity": identity,
                **dated(anchored.today),
                "objective": settings.objective,
                "recipe": recipe.model_copy(update={"training": settings}).model_dump(),
                "reference": anchored.reference,
                "precision": resolve_precision(recipe.model.precision),
                "pairs": anchored.pair_count,
                "made_on": trainer.scorer.made_on(few_tokens(anchored)),
                "steps": trainer.state.global_step,
                "log": [entry for entry in trainer.state.log_history if "loss" in entry],
            },
        )
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    trainer.accelerator.wait_for_everyone()


def load_run(recipe: Recipe, run: Run) -> LoadedModel:
    """The model as a run left it: with its adapter, or with all weights trained."""
    if recipe.training.full:
        return load(recipe.model_copy(update={"model": recipe.model.model_copy(update={"name": str(run.folder)})}))
    return load(recipe, adapter=str(run.folder))


def evaluate(
    model: LoadedModel, held_out: AnchoredPreferences, reference: Logps, name: str, on_progress: OnProgress = silent
) -> PreferenceReport:
    """Reward accuracy, margin and drift on held-out prompts; ``reference`` is `held_out_logps` of the model's base."""
    from bapo.evaluation import evaluate_preferences

    tell = counting(on_progress, f"evaluating {name}")
    found, _ = evaluate_preferences(model.model, held_out, reference=reference, kernels=model.kernels, on_progress=tell)
    return found


def answer(
    model: LoadedModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[str]:
    """The model's answers to prompts given as token ids, greedy or sampled."""
    from bapo.anchoring import GenerationSettings, generate_batch
    from bapo.models import check_vocabulary

    if not prompts:
        return []
    check_vocabulary(model.model, model.tokenizer, (*prompts, model.chat.end_ids[:1]))
    settings = GenerationSettings(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
    asked = [tuple(prompt) for prompt in prompts]
    responses = generate_batch(model.model, asked, settings, model.chat.end_ids, model.kernels)
    return [shown(model, own[0].ids, own[0].ended) for own in responses]


def shown(model: LoadedModel, response: Sequence[int], ended: bool) -> str:
    """A response for people, which see whether it had come to its end."""
    return model.chat.response_text(response) + ("" if ended else " ...")


def _trainer(
    recipe: Recipe, settings: TrainingSection, anchored: AnchoredPreferences, folder: Path, on_progress: OnProgress
) -> Any:
    from transformers import PrinterCallback

    from bapo.models import add_lora
    from bapo.training import BAPOTrainer

    loaded = load(recipe, trainable=True)
    policy = loaded.model
    if settings.full:
        policy.requires_grad_(True)
    elif recipe.model.adapter is None:
        policy = add_lora(policy, settings.rank, settings.alpha, settings.dropout, settings.seed)
    trainer = BAPOTrainer(
        policy,
        args=_arguments(settings, anchored.pair_count, folder, recipe.model.kernels),
        train_dataset=anchored,
        processing_class=loaded.tokenizer,
        callbacks=[_progress_callback(settings.objective, on_progress)],
    )
    trainer.remove_callback(PrinterCallback)  # it would print every log entry to standard output
    return trainer


def _arguments(settings: TrainingSection, pairs: int, folder: Path, kernels: Kernels = "auto") -> Any:
    from bapo.training import BAPOConfig

    return BAPOConfig(
        output_dir=str(folder / "checkpoints"),
        objective=settings.objective,
        beta=settings.beta,
        anchor=settings.anchor,
        anchor_strength=settings.anchor_strength,
        anchor_control=settings.anchor_control,
        objective_settings=dict(settings.objective_settings),
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.schedule,
        warmup_steps=settings.warmup_steps,
        max_grad_norm=settings.max_grad_norm,
        per_device_train_batch_size=min(settings.batch_pairs, pairs),
        gradient_accumulation_steps=settings.accumulate,
        max_batch_tokens=settings.max_batch_tokens,
        strands=settings.strands,
        kernels=kernels if isinstance(kernels, str) else ",".join(kernels) or "off",
        num_train_epochs=settings.epochs or _enough_epochs(settings, pairs),
        max_steps=settings.steps or -1,
        sampler=settings.sampler,
        seed=settings.seed,
        data_seed=settings.seed,
        track_base=settings.track_base,
        part_gradient_steps=settings.part_gradient_steps,
        activation_checkpointing=settings.gradient_checkpointing,
        save_strategy="steps",
        save_steps=settings.save_steps,
        save_total_limit=2,
        report_to=list(settings.report_to) or "none",
        disable_tqdm=True,
        log_level="error",
    )


def _enough_epochs(settings: TrainingSection, pairs: int) -> float:
    """As many passes as make `ENOUGH_STEPS` steps, and at least one."""
    steps_per_epoch = math.ceil(pairs / (settings.batch_pairs * settings.accumulate))
    return max(1, math.ceil(ENOUGH_STEPS / steps_per_epoch))


def _progress_callback(objective: str, on_progress: OnProgress) -> Any:
    from transformers import TrainerCallback

    stage = f"training {objective}"

    class Progress(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            on_progress(f"checks before {objective}", 1, 1, "")
            on_progress(stage, state.global_step, state.max_steps, "")

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            logs = logs or {}
            shown = {"loss": "loss", "rewards/accuracies": "batch accuracy", "logratios/base": "drift, nats"}
            note = ", ".join(f"{label} {logs[key]:.2f}" for key, label in shown.items() if key in logs)
            on_progress(stage, state.global_step, state.max_steps, note)

    return Progress()


def _identity(recipe: Recipe, settings: TrainingSection, anchored: AnchoredPreferences) -> str:
    """Hash of every setting, as it was asked for, that can change the adapter, and of the data."""
    groups = [(g.tokens.prompt, g.tokens.responses, g.pairs, [b.ids for b in g.bases]) for g in anchored.groups]
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    content = json.dumps([_that_count(recipe, settings), processes, recipe.model.adapter, anchored.reference, groups])
    return hashlib.sha256(content.encode()).hexdigest()


def check_run(recipe: Recipe, objective: str, folder: Path) -> None:
    """Find out before anything costly is done that a folder holds a run with other settings.

    Raises:
        BapoError: it does; says which settings.
    """
    check_settings(folder, _that_count(recipe, _settings_for(recipe, objective)))


def _settings_for(recipe: Recipe, objective: str) -> TrainingSection:
    """The recipe's own settings; for another objective without those that are special to the recipe's own one."""
    if objective == recipe.training.objective:
        return recipe.training
    special = ("anchor", "anchor_strength", "anchor_control", "objective_settings")
    defaults = {name: TrainingSection.model_fields[name].get_default(call_default_factory=True) for name in special}
    return recipe.training.model_copy(update={"objective": objective, **defaults})


def _that_count(recipe: Recipe, settings: TrainingSection) -> dict[str, Any]:
    """Settings that can change the adapter.

    When checkpoints are saved and where is reported cannot. How much is computed at once and by which kernels can:
    strands, passes and fused adapters have dropout draws of their own, and the number of processes has its batches.
    """
    counted = settings.model_dump(exclude={"save_steps", "report_to"})
    return counted | {"kernels": sorted(chosen(recipe.model.kernels))}
