"""The main job: preferences and a model in, a personalized adapter out."""

from bapo.personalize.recipe import Recipe, known_keys, read_recipe, shipped_recipes
from bapo.personalize.run import Personalization, SideBySide, personalize

__all__ = ["Personalization", "Recipe", "SideBySide", "known_keys", "personalize", "read_recipe", "shipped_recipes"]
