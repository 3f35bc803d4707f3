"""How large the models and data of a study are, as its file states them, so that a plan needs neither."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from bapo.jobs.recipe import Section


class ModelSize(Section):
    """Of a model."""

    parameters: float = Field(gt=0, description="all of them")
    layers: int = Field(gt=0, description="transformer layers")
    hidden: int = Field(gt=0, description="width of the hidden state")
    vocabulary: int = Field(gt=0, description="tokens that it knows")
    bytes_per_parameter: float = Field(2.0, gt=0, description="in memory; 2 in bf16, about 0.56 in nf4")
    source: str = Field(description="where the numbers are from")


class PreferenceSize(Section):
    """Of preferences, whole: training and held-out prompts."""

    prompts: int = Field(gt=0, description="how many")
    pairs: int = Field(gt=0, description="how many")
    prompt_tokens: float = Field(gt=0, description="mean length, as the model is asked")
    response_tokens: float = Field(gt=0, description="mean length of chosen and rejected responses")
    base_tokens: float = Field(gt=0, description="mean length of base responses")
    shared: Literal["nothing", "prompts", "responses"] = Field(
        "nothing", description="what all preferences that this stands for have in common; responses means prompts too"
    )
    source: str = Field(description="where the numbers are from")


class BenchmarkSize(Section):
    """Of a benchmark."""

    questions: int = Field(gt=0, description="how many")
    tokens: float = Field(gt=0, description="mean tokens of a question that are computed, its choices and examples too")
    source: str = Field(description="where the numbers are from")


class SizesSection(Section):
    """What a plan estimates from; names are those of the study, `psoups:*` stands for all of a source."""

    models: dict[str, ModelSize] = Field(default_factory=dict, description="by label")
    preferences: dict[str, PreferenceSize] = Field(default_factory=dict, description="by source")
    benchmarks: dict[str, BenchmarkSize] = Field(default_factory=dict, description="by name")


def size_of(sizes: dict[str, PreferenceSize], preference: str) -> PreferenceSize | None:
    """Of a preference: its own, or that of all of its source."""
    return sizes.get(preference) or sizes.get(f"{preference.partition(':')[0]}:*")
