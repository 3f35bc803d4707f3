"""The models that are evaluated beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bapo.errors import BapoError
from bapo.jobs.recipe import Recipe
from bapo.results import record_of, shared_name, shared_names


@dataclass(frozen=True, slots=True)
class Variant:
    """What is evaluated: the base, or the base with an adapter, or with a preference as its system prompt."""

    name: str
    adapter: str | None = None
    system: str | None = None

    @property
    def is_reference(self) -> bool:
        """Whether it is what log-ratios are counted from, so that all of its own are zero."""
        return self.adapter is None and self.system is None


def variants_of(adapters: Sequence[str]) -> list[Variant]:
    """Of adapters, by names that lead to no place of this machine."""
    return [Variant(name, adapter) for name, adapter in zip(shared_names(adapters), adapters, strict=True)]


def check_split(recipe: Recipe, variants: Sequence[Variant]) -> None:
    """Refuse held-out prompts that an adapter was trained on, because it was trained on another split."""
    asked = recipe.preferences.model_dump()
    for variant in variants:
        run = record_of(variant.adapter)
        trained_on = run["recipe"].get("preferences") if run else None
        if trained_on is None or shared_name(trained_on["source"]) != shared_name(asked["source"]):
            continue
        other = {
            key: trained_on[key] for key in ("protocol", "held_out", "split_seed") if trained_on[key] != asked[key]
        }
        if other:
            settings = " ".join(f"--set preferences.{key}={value}" for key, value in other.items() if value is not None)
            raise BapoError(
                f"The adapter {variant.adapter} was trained on another split of {asked['source']}, so prompts that it "
                f"was trained on would be asked: use {settings or 'the recipe that it was trained with'}."
            )
