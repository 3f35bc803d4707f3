"""The stages of a personalization before its training, each usable alone: check, read, load, anchor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bapo.errors import BapoError
from bapo.files import checksum
from bapo.jobs.anchoring import Anchored, anchor_preferences, anchor_split, open_store
from bapo.jobs.marks import adapter_mark
from bapo.jobs.places import REFERENCE_MARK
from bapo.jobs.recipe import Recipe
from bapo.preferences import Preferences, Split, read_preferences, read_split
from bapo.results import record_of

if TYPE_CHECKING:
    from bapo.models import LoadedModel, SharedModel

__all__ = [
    "Anchored",
    "anchor_preferences",
    "anchor_split",
    "bare",
    "check",
    "check_base",
    "data_fingerprint",
    "load",
    "open_store",
    "read",
    "read_all",
    "shared_model",
]


def check(recipe: Recipe, adapters: Sequence[str] = ()) -> None:
    """Find out what cannot work before anything costly is done.

    Raises:
        BapoError: an unknown objective or a setting that it does not have, or an adapter that is not there.
    """
    from bapo.models import check_adapter
    from bapo.objectives import objective_of

    for objective in (recipe.training.objective, *recipe.also_train):
        objective_of(recipe.training_of(objective))
    if not recipe.lora.enabled and recipe.model.precision == "nf4":
        raise BapoError(
            "4-bit weights cannot be trained themselves: leave out lora.enabled=false, or take another precision."
        )
    for adapter in (*adapters, *([recipe.model.reference_adapter] if recipe.model.reference_adapter else [])):
        check_adapter(adapter)


def read(recipe: Recipe) -> Split:
    """Read the preferences and split them."""
    asked = recipe.preferences
    split = read_split(
        asked.source,
        protocol=asked.protocol,
        held_out=asked.held_out,
        seed=asked.split_seed,
        data_folder=Path(asked.data_folder) if asked.data_folder else None,
        plain=asked.plain,
    )
    if asked.max_train_prompts is None or asked.max_train_prompts >= len(split.train.groups):
        return split
    train = split.train
    kept = Preferences(train.name, train.groups[: asked.max_train_prompts], train.rows, train.dropped)
    return Split(kept, split.held_out)


def read_all(recipe: Recipe) -> Preferences:
    """Read the preferences, unsplit."""
    asked = recipe.preferences
    return read_preferences(
        asked.source, data_folder=Path(asked.data_folder) if asked.data_folder else None, plain=asked.plain
    )


def load(recipe: Recipe, *, adapter: str | None = None, trainable: bool = False) -> LoadedModel:
    """The recipe's model; ``adapter`` replaces the recipe's own one.

    Raises:
        BapoError: it cannot be loaded, or the adapter was trained on another model.
    """
    from bapo.models import load_model

    asked, adapter = recipe.model, adapter or recipe.model.reference_adapter
    record = record_of(adapter)
    if record is not None and record["recipe"]["model"]["name"] != asked.name:
        without = bare(recipe)
        check_base(without, adapter, load(without))
    loaded = load_model(
        asked.name,
        precision=asked.precision,
        adapter=adapter,
        adapter_trainable=trainable,
        trust_remote_code=asked.trust_remote_code,
    )
    return replace(loaded, kernels=asked.kernels)


def shared_model(recipe: Recipe) -> SharedModel:
    """The recipe's model without its adapter, loaded when it is first needed, for adapters to be put on and off."""
    from bapo.models import SharedModel

    without = bare(recipe)
    return SharedModel(lambda adapter, trainable: load(without, adapter=adapter, trainable=trainable))


def bare(recipe: Recipe) -> Recipe:
    """The recipe with its model as it is without the adapter that it already had."""
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"reference_adapter": None})})


def check_base(recipe: Recipe, adapter: str | None, base: LoadedModel) -> None:
    """Refuse an adapter of bapo's that was trained on other weights than a base model's.

    It cannot be told in another precision, nor where training went on from an adapter that is not part of the base.
    """
    from bapo.models import model_fingerprint

    run = record_of(adapter)
    if run is None:
        return
    trained_on = run["recipe"]["model"]
    if run.get("precision", trained_on["precision"]) != base.precision or not _had(
        trained_on, recipe.model.reference_adapter
    ):
        return
    if run["reference"] != model_fingerprint(base.model):
        raise BapoError(
            f"The adapter {adapter} was trained on another model ({trained_on['name']}) than {recipe.model.name}: "
            "name that one with --model."
        )


def _had(trained_on: Mapping[str, Any], adapter: str | None) -> bool:
    """Whether the model of a run had this adapter, or none; earlier records know it by its name alone."""
    if REFERENCE_MARK in trained_on:
        return bool(trained_on[REFERENCE_MARK] == adapter_mark(adapter))
    return bool(trained_on["reference_adapter"] == adapter)


def data_fingerprint(split: Split) -> str:
    """Hash of what is trained on and of what is held out, in words."""
    return checksum(f"{split.train.fingerprint()}{split.held_out.fingerprint()}".encode())
