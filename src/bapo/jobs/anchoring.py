"""The stage that anchors preferences to a recipe's model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from bapo.jobs.recipe import Recipe
from bapo.preferences import Preferences, Split
from bapo.progress import OnProgress, silent

if TYPE_CHECKING:
    from bapo.anchoring import AnchoredPreferences, AnchorStore, User
    from bapo.models import LoadedModel


@dataclass(frozen=True)
class Anchored:
    """Both sides of a split, anchored to the same reference."""

    train: AnchoredPreferences
    held_out: AnchoredPreferences


def open_store(recipe: Recipe, model: LoadedModel) -> AnchorStore:
    """The model's store in the recipe's folder or the user's cache."""
    from bapo.anchoring import AnchorStore

    folder = recipe.anchoring.anchored_store
    return AnchorStore(Path(folder), model) if folder else AnchorStore.in_cache(model)


def anchor_preferences(
    recipe: Recipe,
    preferences: Preferences,
    model: LoadedModel,
    on_progress: OnProgress = silent,
    *,
    today: datetime | None = None,
    store: AnchorStore | None = None,
    data: str | None = None,
) -> AnchoredPreferences:
    """Anchor preferences to the model as it is, in the recipe's folder or the user's cache.

    ``today`` is what a chat template that writes the date takes for now (`day_of` a run); the store's day by default.
    ``data`` is the preferences' fingerprint, where that is known.
    """
    return _anchor(recipe, (preferences,), model, on_progress, today, _user(None, data), store)[0]


def anchor_split(
    recipe: Recipe,
    split: Split,
    model: LoadedModel,
    on_progress: OnProgress = silent,
    *,
    today: datetime | None = None,
    folder: Path | None = None,
    data: str | None = None,
) -> Anchored:
    """Anchor both sides of a split in one go, so that prompts are batched together.

    ``today`` as above; ``folder`` is that of the run or personalization that goes on to use them, and ``data`` the
    fingerprint of the split, where that is known.
    """
    parts = (split.train, split.held_out)
    return Anchored(*_anchor(recipe, parts, model, on_progress, today, _user(folder, data)))


def _user(folder: Path | None, data: str | None) -> User | None:
    from bapo.anchoring import User

    return None if data is None else User(folder, data)


def _anchor(
    recipe: Recipe,
    parts: Sequence[Preferences],
    model: LoadedModel,
    on_progress: OnProgress,
    today: datetime | None,
    user: User | None,
    store: AnchorStore | None = None,
) -> tuple[AnchoredPreferences, ...]:
    from bapo.anchoring import GenerationSettings, LengthPolicy, anchor_together

    how = recipe.anchoring
    return anchor_together(
        parts,
        model,
        store or open_store(recipe, model),
        generation=GenerationSettings(
            max_new_tokens=how.base_max_new_tokens,
            temperature=how.base_temperature,
            responses=how.base_responses,
            seed=how.base_seed,
        ),
        lengths=LengthPolicy(recipe.preferences.max_prompt_tokens, recipe.preferences.max_response_tokens),
        today=today,
        user=user,
        on_progress=on_progress,
    )
