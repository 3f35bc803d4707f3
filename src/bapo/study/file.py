"""A study file: YAML with strict keys, which names models, preferences, methods, seeds and what is varied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from bapo.errors import BapoError
from bapo.files import read_text
from bapo.jobs.recipe import Section, known_keys, read_yaml, sentence_of
from bapo.jobs.sampling import Sampling
from bapo.registry import names
from bapo.study.sizes import SizesSection

Overrides = dict[str, Any]
"""Dotted keys of a recipe to values."""


class GridSection(Section):
    """A product of what it lists. Equal cells of several grids are one run."""

    models: list[str] = Field(default_factory=list, description="labels of `models`, or models; none: the recipe's own")
    preferences: list[str] = Field(min_length=1, description="sources, such as dsp:academy")
    methods: list[str] = Field(min_length=1, description="labels of `methods`, or objectives themselves")
    seeds: list[int] = Field(default_factory=list, description="training seeds; none: the recipe's own")
    vary: dict[str, list[Any]] = Field(default_factory=dict, description="recipe keys, each with its values")

    @field_validator("vary")
    @classmethod
    def _not_of_the_model(cls, value: dict[str, list[Any]]) -> dict[str, list[Any]]:
        for key, values in value.items():
            if key.startswith("model.") or not values:
                raise ValueError(f"recipe keys with values, none of the model (list several under models), not {key!r}")
        return value


class SamplingSection(Section):
    """Of a method that trains on pairs which the model said itself (`bapo.jobs.sampling`)."""

    reward: str = Field(description="the method whose adapter of the same cell judges, such as dpo")
    candidates: int = Field(16, description="responses sampled for each prompt; 64 in RSO's paper")
    accept: int = Field(4, description="of these accepted, and paired two by two; 8 in the paper")
    temperature: float = Field(1.0, description="of the sampling; 1 samples from the model itself")
    max_new_tokens: int = Field(256, description="longest candidate, tokens")
    rejection_beta: float = Field(0.5, description="temperature of acceptance, in units of reward")

    @property
    def how(self) -> Sampling:
        """As the sampling is told; its seed is the same for all cells, so that they share candidates."""
        return Sampling(**self.model_dump(exclude={"reward"}))

    @model_validator(mode="after")
    def _possible(self) -> SamplingSection:
        try:
            _ = self.how
        except BapoError as error:
            raise PydanticCustomError("sampling", "{why}", {"why": str(error).rstrip(".")}) from error
        return self


class EvaluationSection(Section):
    """What every model is asked, trained or not."""

    benchmarks: list[str] = Field(default_factory=list, description="names of benchmarks, or all")
    limit: int | None = Field(None, description="questions of each benchmark, the same for all models; None is all")
    question_seed: int = Field(0, description="seed of the sample that limit draws")
    prompt_only: bool = Field(False, description="also the untrained model that is told the preference")
    few_shot: list[int] = Field(
        default_factory=list, description="also the untrained model that is shown so many training examples"
    )
    divergence: int = Field(0, description="held-out prompts, and prompts of other topics, for the divergence")
    other_topics: str = Field("starter:concise", description="preferences whose prompts are the other topics")
    answers: int = Field(0, description="held-out prompts that models answer for the judge; no text is kept")
    questions: list[str] = Field(default_factory=list, description="prompts of one's own; answers are kept in words")

    @field_validator("few_shot")
    @classmethod
    def _some_examples(cls, value: list[int]) -> list[int]:
        if any(examples < 1 for examples in value):
            raise ValueError("numbers of examples, 1 or more each")
        return value

    @field_validator("benchmarks")
    @classmethod
    def _known(cls, value: list[str]) -> list[str]:
        known = names("benchmarks")
        if value == ["all"]:
            return list(known)
        if not set(value) <= set(known):
            raise ValueError(f"[all], or some of {', '.join(known)}")
        return value


class StudyFile(Section):
    """The whole study."""

    about: str = Field("", description="what it is about, in words, for its page")
    recipe: dict[str, Any] = Field(default_factory=dict, description="sections of a recipe, for all runs")
    models: dict[str, Overrides] = Field(default_factory=dict, description="by label, recipe keys of a model")
    methods: dict[str, Overrides] = Field(default_factory=dict, description="by label, recipe keys of a method")
    sampling: dict[str, SamplingSection] = Field(
        default_factory=dict, description="by label of a method, which then trains on pairs sampled from the model"
    )
    grids: dict[str, GridSection] = Field(min_length=1, description="by name")
    evaluation: EvaluationSection = EvaluationSection()
    sizes: SizesSection = SizesSection()

    @field_validator("models", "methods")
    @classmethod
    def _dotted(cls, value: dict[str, Overrides]) -> dict[str, Overrides]:
        for label, overrides in value.items():
            for key in overrides:
                if "." not in key:
                    raise ValueError(
                        f"dotted recipe keys to values by label, such as training.beta, and not {label}'s {key!r}"
                    )
        return value


def read_study(path: Path) -> StudyFile:
    """Read a study file.

    Raises:
        BapoError: it is not there, not valid YAML, or has an unknown key or a value that does not fit; says which.
    """
    content = read_yaml(read_text(path), f"The study {path}")
    if not isinstance(content, dict):
        raise BapoError(f"The study {path} holds no sections such as 'grids:': write them as docs/study.md has them.")
    try:
        return StudyFile.model_validate(content)
    except ValidationError as error:
        known = [*known_keys(StudyFile), *StudyFile.model_fields]
        for part, section in (("grids", GridSection), ("sampling", SamplingSection)):
            named = content.get(part)
            known += [
                f"{part}.{n}.{key}" for n in (named if isinstance(named, dict) else ()) for key in section.model_fields
            ]
        raise BapoError(sentence_of(str(path), error, known)) from error
