"""The main job: preferences and a model in, a personalized adapter out."""

from bapo.jobs.evaluation import evaluate
from bapo.jobs.recipe import Recipe, known_keys, read_recipe, shipped_recipes
from bapo.jobs.run import personalize
from bapo.jobs.variants import Variant

__all__ = [
    "Recipe",
    "Variant",
    "evaluate",
    "known_keys",
    "personalize",
    "read_recipe",
    "shipped_recipes",
]
