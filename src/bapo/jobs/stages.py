"""The stages of a personalization, each usable alone: read, anchor, train, evaluate, answer."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bapo.errors import BapoError, foreign
from bapo.files import checksum, make_folder
from bapo.jobs.anchoring import Anchored, anchor_preferences, anchor_split, open_store
from bapo.jobs.recipe import Recipe, TrainingSection
from bapo.jobs.run_folder import Asked, alone, as_asked, check_asked, dated, finish, start
from bapo.kernels import Kernels, chosen
from bapo.preferences import Preferences, Split, read_preferences, read_split
from bapo.progress import OnProgress, silent
from bapo.results import Run, read_run, record_of
from bapo.results.runs import DONE

if TYPE_CHECKING:
    from bapo.anchoring import AnchoredPreferences
    from bapo.models import LoadedModel, SharedModel

__all__ = [
    "Anchored",
    "anchor_preferences",
    "anchor_split",
    "as_trained",
    "asked_of",
    "check",
    "check_base",
    "check_run",
    "data_fingerprint",
    "load",
    "open_store",
    "read",
    "read_all",
    "shared_model",
    "train",
]

ENOUGH_STEPS = 40
"""Optimizer steps that a run takes at least, where the recipe says neither epochs nor steps."""


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


def shared_model(recipe: Recipe) -> SharedModel:
    """The recipe's model without its adapter, loaded when it is first needed, for adapters to be put on and off."""
    from bapo.models import SharedModel

    bare = recipe.model_copy(update={"model": recipe.model.model_copy(update={"adapter": None})})
    return SharedModel(lambda adapter, trainable: load(bare, adapter=adapter, trainable=trainable))


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


def train(
    recipe: Recipe,
    objective: str,
    anchored: AnchoredPreferences,
    folder: Path,
    on_progress: OnProgress = silent,
    *,
    shared: SharedModel | None = None,
    data: str | None = None,
    mark: str | None = None,
) -> Run:
    """Train one objective into a folder, going on where a killed run stopped; a finished run is read, not repeated.

    Args:
        recipe, objective, anchored, folder: what is trained, on what, and where to.
        on_progress: told how far it is.
        shared: the recipe's model, to put the adapter on; one is loaded where there is none, and where an adapter
            cannot be taken off again.
        data: fingerprint of the preferences, by which others are refused before a model is loaded.
        mark: what the run is known by before a model is loaded, beside its settings and its data.

    Raises:
        BapoError: the folder holds a run with other settings, or cannot be written.
    """
    settings = _settings_for(recipe, objective)
    identity, asked = _identity(recipe, settings, anchored), asked_of(recipe, objective, data)
    with alone(make_folder(folder), lambda note: on_progress(f"training {objective}", 0, 1, note)):
        start(folder, identity, asked, anchored.today)
        if (folder / DONE).is_file():
            return read_run(folder)
        on_progress(f"checks before {objective}", 0, 1)
        with _policy(recipe, settings, shared) as policy:
            trainer = _trainer(recipe, settings, policy, anchored, folder, on_progress)
            trainer.train(resume_from_checkpoint=True)
            steps, wanted = trainer.state.global_step, trainer.state.max_steps
            if steps < wanted:
                raise BapoError(
                    f"Training into {folder} ended after {steps} of {wanted} steps: start the command again."
                )
            on_progress(f"saving {objective}", 0, 1)
            _save(recipe, settings, anchored, trainer, folder, {"identity": identity, "mark": mark, **as_asked(asked)})
            on_progress(f"saving {objective}", 1, 1)
        return read_run(folder)


@contextmanager
def _policy(recipe: Recipe, settings: TrainingSection, shared: SharedModel | None) -> Iterator[LoadedModel]:
    """The model that is trained: with a fresh adapter, with its own one, or with all weights."""
    from bapo.models import add_lora

    def put(model: Any) -> Any:
        return add_lora(model, settings.rank, settings.alpha, settings.dropout, settings.seed)

    is_fresh = not settings.full and recipe.model.adapter is None
    alone_here = int(os.environ.get("WORLD_SIZE", "1")) == 1
    if shared is not None and is_fresh and alone_here and not settings.gradient_checkpointing:
        with shared.fresh(put) as policy:
            yield policy
        return
    if shared is not None:
        shared.drop()  # two of them may not fit into memory
    policy = load(recipe, trainable=True)
    if settings.full:
        policy.model.requires_grad_(True)
    yield replace(policy, model=put(policy.model)) if is_fresh else policy


def _save(
    recipe: Recipe,
    settings: TrainingSection,
    anchored: AnchoredPreferences,
    trainer: Any,
    folder: Path,
    known: Mapping[str, Any],
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
                **known,
                **dated(anchored.today),
                "objective": settings.objective,
                "recipe": recipe.model_copy(update={"training": settings}).model_dump(),
                "reference": anchored.reference,
                "precision": resolve_precision(recipe.model.precision),
                "pairs": anchored.pair_count,
                "counts": dict(anchored.counts),
                "made_on": trainer.scorer.made_on(few_tokens(anchored)),
                "steps": trainer.state.global_step,
                "log": [entry for entry in trainer.state.log_history if "loss" in entry],
            },
        )
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    trainer.accelerator.wait_for_everyone()


@contextmanager
def as_trained(recipe: Recipe, run: Run, shared: SharedModel) -> Iterator[LoadedModel]:
    """The model as a run left it: with its adapter, or with all weights trained."""
    if recipe.training.full:
        yield load(recipe.model_copy(update={"model": recipe.model.model_copy(update={"name": str(run.folder)})}))
        return
    with shared.wearing(run.folder) as loaded:
        yield loaded


def _trainer(
    recipe: Recipe,
    settings: TrainingSection,
    policy: LoadedModel,
    anchored: AnchoredPreferences,
    folder: Path,
    on_progress: OnProgress,
) -> Any:
    from transformers import PrinterCallback

    from bapo.training import BAPOTrainer

    trainer = BAPOTrainer(
        policy.model,
        args=_arguments(settings, anchored.pair_count, folder, recipe.model.kernels),
        train_dataset=anchored,
        processing_class=policy.tokenizer,
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
    content = json.dumps(
        [_that_count(settings), _kernels(recipe), processes, recipe.model.adapter, anchored.reference, groups]
    )
    return hashlib.sha256(content.encode()).hexdigest()


def check_run(recipe: Recipe, objective: str, folder: Path, data: str | None = None) -> None:
    """Find out before anything costly is done that a folder holds a run with other settings or on other data.

    Raises:
        BapoError: it does; says which settings.
    """
    check_asked(folder, asked_of(recipe, objective, data))


def asked_of(recipe: Recipe, objective: str, data: str | None = None) -> Asked:
    """All that can change an adapter and is known before a model is loaded."""
    counted = _that_count(_settings_for(recipe, objective))
    training = {f"training.{key}": value for key, value in counted.items()} | {"model.kernels": _kernels(recipe)}
    anchoring = {f"anchoring.{key}": value for key, value in recipe.anchoring.model_dump(exclude={"folder"}).items()}
    lengths = recipe.preferences.model_dump(include={"max_prompt_tokens", "max_response_tokens"})
    return Asked({**training, **anchoring, **{f"preferences.{key}": value for key, value in lengths.items()}}, data)


def data_fingerprint(split: Split) -> str:
    """Hash of what is trained on and of what is held out, in words."""
    return checksum(f"{split.train.fingerprint()}{split.held_out.fingerprint()}".encode())


def _settings_for(recipe: Recipe, objective: str) -> TrainingSection:
    """The recipe's own settings; for another objective without those that are special to the recipe's own one."""
    if objective == recipe.training.objective:
        return recipe.training
    special = ("anchor", "anchor_strength", "anchor_control", "objective_settings")
    defaults = {name: TrainingSection.model_fields[name].get_default(call_default_factory=True) for name in special}
    return recipe.training.model_copy(update={"objective": objective, **defaults})


def _that_count(settings: TrainingSection) -> dict[str, Any]:
    """Settings that can change the adapter.

    When checkpoints are saved and where is reported cannot. How much is computed at once can: strands and passes have
    dropout draws of their own, and so has the number of processes its batches.
    """
    return settings.model_dump(exclude={"save_steps", "report_to"})


def _kernels(recipe: Recipe) -> list[str]:
    """Kernels that may be used: fused adapters have dropout draws of their own."""
    return sorted(chosen(recipe.model.kernels))
