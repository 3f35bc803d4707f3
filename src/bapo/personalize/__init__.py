"""The main job: preferences and a model in, a personalized adapter out."""

import sys
from types import ModuleType
from typing import Any

from bapo.personalize.evaluation import evaluate
from bapo.personalize.recipe import Recipe, known_keys, read_recipe, shipped_recipes
from bapo.personalize.run import personalize
from bapo.personalize.variants import Variant

__all__ = [
    "Recipe",
    "Variant",
    "evaluate",
    "known_keys",
    "personalize",
    "read_recipe",
    "shipped_recipes",
]


class _Room(ModuleType):
    """This room can be called: `from bapo import personalize` gives the room once it has been imported."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return personalize(*args, **kwargs)


sys.modules[__name__].__class__ = _Room
