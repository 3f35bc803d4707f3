"""Tensors that the backward pass makes again, from what is kept anyway, instead of keeping them too."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

_ATTRIBUTE = "_bapo_recipe"


class Recipe(NamedTuple):
    """How a tensor was made: ``make(*ingredients)`` gives it again, to the bit."""

    make: Callable[..., Tensor]
    ingredients: tuple[Tensor, ...]


def note_recipe(made: Tensor, make: Callable[..., Tensor], *ingredients: Tensor) -> Tensor:
    """The tensor itself, about which `recipe_of` now knows that ``make(*ingredients)`` gives it again.

    Worth noting where somebody keeps the ingredients for the backward pass already.
    """
    if torch.is_grad_enabled():
        recipe = Recipe(make, tuple(ingredient.detach() for ingredient in ingredients))
        setattr(made, _ATTRIBUTE, (made._version, recipe))
    return made


def recipe_of(tensor: Tensor) -> Recipe | None:
    """How the tensor can be made again; None where nobody has noted it, or the tensor has been changed since."""
    noted: tuple[int, Recipe] | None = getattr(tensor, _ATTRIBUTE, None)
    return noted[1] if noted is not None and noted[0] == tensor._version else None
