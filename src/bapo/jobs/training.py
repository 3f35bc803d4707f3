"""The stage that trains one objective into a folder."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bapo.errors import BapoError, foreign
from bapo.files import make_folder
from bapo.jobs import stages
from bapo.jobs.places import as_shared
from bapo.jobs.recipe import Recipe, TrainingSection
from bapo.jobs.run_folder import Asked, alone, as_asked, check_asked, dated, finish, start
from bapo.kernels import chosen
from bapo.progress import OnProgress, silent
from bapo.results import Run, read_run
from bapo.results.runs import DONE

if TYPE_CHECKING:
    from bapo.anchoring import AnchoredPreferences
    from bapo.models import LoadedModel, SharedModel
    from bapo.training import BAPOConfig

ENOUGH_STEPS = 40
"""Optimizer steps that a run takes at least, where the recipe says neither epochs nor steps."""


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
    settings = recipe.training_of(objective)
    identity, asked = adapter_identity(recipe, settings, anchored), asked_of(recipe, objective, data)
    with alone(make_folder(folder), lambda note: on_progress(f"training {objective}", 0, 1, note)):
        start(folder, identity, asked, anchored.today)
        if (folder / DONE).is_file():
            _drop_checkpoints(folder)
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

    lora = recipe.lora

    def put(model: Any) -> Any:
        return add_lora(model, lora.rank, lora.alpha, lora.dropout, settings.seed)

    is_fresh = lora.enabled and recipe.model.reference_adapter is None
    alone_here = int(os.environ.get("WORLD_SIZE", "1")) == 1
    if shared is not None and is_fresh and alone_here and not settings.gradient_checkpointing:
        with shared.fresh(put) as policy:
            yield policy
        return
    if shared is not None:
        shared.drop()  # two of them may not fit into memory
    policy = stages.load(recipe, trainable=True)
    if not lora.enabled:
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
            "see that there is room and that you may write there, and start again: it goes on from the last checkpoint",
        ):
            trainer.save_model(str(folder))
        finish(
            folder,
            {
                **known,
                **dated(anchored.today),
                "objective": settings.objective,
                "recipe": as_shared(recipe.model_copy(update={"training": settings})),
                "reference": anchored.reference,
                "precision": resolve_precision(recipe.model.precision),
                "pairs": anchored.pair_count,
                "counts": dict(anchored.counts),
                "made_on": trainer.scorer.made_on(few_tokens(anchored)),
                "steps": trainer.state.global_step,
                "log": [entry for entry in trainer.state.log_history if "loss" in entry],
            },
        )
        _drop_checkpoints(folder)
    trainer.accelerator.wait_for_everyone()


def _drop_checkpoints(folder: Path) -> None:
    """They are of no use to a run that is finished."""
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def tidy(folder: Path, on_progress: OnProgress) -> None:
    """What a process left of a finished run that was killed before it had cleared up."""
    if (folder / "checkpoints").is_dir():
        with alone(folder, lambda note: on_progress("training", 0, 1, note)):
            _drop_checkpoints(folder)


@contextmanager
def as_trained(recipe: Recipe, run: Run, shared: SharedModel) -> Iterator[LoadedModel]:
    """The model as a run left it: with its adapter, or with all weights trained."""
    if not recipe.lora.enabled:
        yield stages.load(
            recipe.model_copy(update={"model": recipe.model.model_copy(update={"name": str(run.folder)})})
        )
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
        args=training_arguments(
            recipe, settings, anchored.pair_count, folder, use_cpu=policy.model.device.type == "cpu"
        ),
        train_dataset=anchored,
        processing_class=policy.tokenizer,
        callbacks=[_progress_callback(settings.objective, on_progress)],
    )
    trainer.remove_callback(PrinterCallback)  # it would print every log entry to standard output
    return trainer


def training_arguments(
    recipe: Recipe, settings: TrainingSection, pairs: int, folder: Path, *, use_cpu: bool
) -> BAPOConfig:
    """The section of a recipe as the trainer's settings, which have the same names; None is left to their defaults."""
    from bapo.training import BAPOConfig

    asked = {name: value for name, value in settings.model_dump().items() if value is not None}
    asked["activation_checkpointing"] = asked.pop("gradient_checkpointing")  # the name without a warning
    kernels = recipe.model.kernels
    arguments: dict[str, Any] = {
        "num_train_epochs": _enough_epochs(settings, pairs),
        **asked,
        "per_device_train_batch_size": min(settings.per_device_train_batch_size, pairs),
        "kernels": kernels if isinstance(kernels, str) else ",".join(kernels) or "off",
        "save_strategy": "steps",
        "use_cpu": use_cpu,  # else several processes on CPUs would each train alone
        "save_total_limit": 2,
        "disable_tqdm": True,
        "log_level": "error",
    }
    return BAPOConfig(output_dir=str(folder / "checkpoints"), **arguments)


def _enough_epochs(settings: TrainingSection, pairs: int) -> float:
    """As many passes as make `ENOUGH_STEPS` steps, and at least one."""
    per_step = settings.per_device_train_batch_size * settings.gradient_accumulation_steps
    return max(1, math.ceil(ENOUGH_STEPS / math.ceil(pairs / per_step)))


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


def adapter_identity(recipe: Recipe, settings: TrainingSection, anchored: AnchoredPreferences) -> str:
    """Hash of every setting, as it was asked for, that can change the adapter, and of the data."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    asked = [_that_count(recipe, settings), _kernels(recipe), processes, recipe.model.reference_adapter]
    digest = hashlib.sha256(f"{json.dumps([*asked, anchored.reference])[:-1]}, [".encode())
    for at, g in enumerate(anchored.groups):  # one by one: all of them as text would be larger than they are
        group = g.tokens.prompt, g.tokens.responses, g.pairs, [base.ids for base in g.bases]
        digest.update(f"{', ' if at else ''}{json.dumps(group)}".encode())
    digest.update(b"]]")
    return digest.hexdigest()


def check_run(recipe: Recipe, objective: str, folder: Path, data: str | None = None) -> None:
    """Find out before anything costly is done that a folder holds a run with other settings or on other data.

    Raises:
        BapoError: it does; says which settings.
    """
    check_asked(folder, asked_of(recipe, objective, data))


def asked_of(recipe: Recipe, objective: str, data: str | None = None) -> Asked:
    """All that can change an adapter and is known before a model is loaded."""
    training = {**_that_count(recipe, recipe.training_of(objective)), "model.kernels": _kernels(recipe)}
    anchoring = {
        f"anchoring.{key}": value for key, value in recipe.anchoring.model_dump(exclude={"anchored_store"}).items()
    }
    lengths = recipe.preferences.model_dump(include={"max_prompt_tokens", "max_response_tokens"})
    return Asked({**training, **anchoring, **{f"preferences.{key}": value for key, value in lengths.items()}}, data)


def _that_count(recipe: Recipe, settings: TrainingSection) -> dict[str, Any]:
    """Settings that can change the adapter.

    When checkpoints are saved and where is reported cannot. How much is computed at once can: strands and passes have
    dropout draws of their own, and so has the number of processes its batches.
    """
    training = settings.model_dump(exclude={"save_steps", "report_to"})
    sections = {"training": training, "lora": recipe.lora.model_dump()}
    return {f"{name}.{key}": value for name, section in sections.items() for key, value in section.items()}


def _kernels(recipe: Recipe) -> list[str]:
    """Kernels that may be used: fused adapters have dropout draws of their own."""
    return sorted(chosen(recipe.model.kernels))
