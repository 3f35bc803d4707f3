"""Where a run's data and anchored store lie: kept for this machine in the cache, and not in the run's folder."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bapo.files import checksum, make_folder, write_json
from bapo.jobs.recipe import Recipe
from bapo.results import shared_name


def as_shared(recipe: Recipe) -> dict[str, Any]:
    """A recipe for a record that goes with an adapter: names of what it was trained on, and no places of it.

    The base model is named as it was, as PEFT does.
    """
    content = recipe.model_dump()
    content["preferences"] |= {"source": shared_name(recipe.preferences.source), "data_folder": None}
    content["anchoring"]["anchored_store"] = None
    return content


def remember(folder: Path, recipe: Recipe) -> None:
    """Keep where the data and the store of a run or a personalization lie.

    Raises:
        BapoError: it cannot be written.
    """
    store = recipe.anchoring.anchored_store
    content = {
        "folder": os.path.abspath(folder),
        "source": recipe.preferences.source,
        "anchored_store": None if store is None else os.path.abspath(store),
    }
    path = place_of(folder)
    if _kept(path) != content:
        write_json(path, content)


def place_of(folder: Path) -> Path:
    """The file that says where those of a run lie."""
    from bapo.models import cache_folder

    return make_folder(cache_folder() / "places") / f"{checksum(os.path.abspath(folder).encode())}.json"


def store_of(folder: Path) -> Path | None:
    """The store of a run that was told one; None of one that uses the cache, and where it is not known."""
    store = _kept(place_of(folder)).get("anchored_store")
    return Path(store) if store else None


def recipe_as_placed(folder: Path, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe of a run's record, with its source where it lies on this machine, if that is known here."""
    preferences, source = dict(recipe["preferences"]), _kept(place_of(folder)).get("source")
    if source and shared_name(source) == preferences.get("source"):
        preferences["source"] = source
    return {**recipe, "preferences": preferences}


def _kept(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
