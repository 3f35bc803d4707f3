"""Where a run's data lie and what its folder is: kept for this machine in the cache, and not in the run's folder."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bapo.files import checksum, make_folder, write_json
from bapo.jobs.marks import adapter_mark
from bapo.jobs.recipe import Recipe
from bapo.results import shared_name

RUN, PART, WHOLE = "run", "part", "personalization"
"""What a folder is: of a run by itself, of a run of a personalization, or of a personalization."""

REFERENCE_MARK = "reference_adapter_mark"
"""Of the model in a run's record, the mark of the adapter that it had."""


def as_shared(recipe: Recipe) -> dict[str, Any]:
    """A recipe for a record that goes with an adapter: names of what it was trained on, and no places of it.

    The base model is named as it was, as PEFT does. An adapter that it had is known by its mark. Questions of one's own
    are no part of how it was trained.
    """
    content = recipe.model_dump(exclude={"generations": {"questions"}})
    adapter = recipe.model.reference_adapter
    content["model"]["reference_adapter"] = None if adapter is None else shared_name(adapter)
    content["model"][REFERENCE_MARK] = adapter_mark(adapter)
    content["preferences"] |= {"source": shared_name(recipe.preferences.source), "data_folder": None}
    content["anchoring"]["anchored_store"] = None
    return content


def remember(folder: Path, recipe: Recipe, kind: str) -> None:
    """Keep what a folder is, and where its data lie.

    Raises:
        BapoError: it cannot be written.
    """
    content = {"folder": os.path.realpath(folder), "kind": kind, "source": recipe.preferences.source}
    path = place_of(folder)
    if _kept(path) != content:
        write_json(path, content)


def place_of(folder: Path) -> Path:
    """The file that says it of a folder."""
    from bapo.models import cache_folder

    return make_folder(cache_folder() / "places") / f"{checksum(os.path.realpath(folder).encode())}.json"


def kind_of(folder: Path) -> str:
    """What a folder is; nothing where that is not known here."""
    return str(_kept(place_of(folder)).get("kind", ""))


def recipe_as_placed(folder: Path, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe of a run's record, with its source where it lies on this machine, if that is known here."""
    preferences, source = dict(recipe["preferences"]), _kept(place_of(folder)).get("source")
    if isinstance(source, str) and shared_name(source) == preferences.get("source"):
        preferences["source"] = source
    return {**recipe, "preferences": preferences}


def _kept(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
