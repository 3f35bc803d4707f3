"""A recipe: everything that determines a personalization, in sections with strict keys."""

from __future__ import annotations

import difflib
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from bapo.errors import BapoError, foreign
from bapo.files import read_text
from bapo.kernels import chosen, help_text
from bapo.preferences import examples
from bapo.registry import names
from bapo.settings import ANCHOR_CONTROL, ANCHOR_STRENGTH, LEARNING_RATE, RANGES, shortened

Schedule = Literal[
    "cosine", "linear", "constant", "constant_with_warmup", "cosine_with_restarts", "polynomial", "inverse_sqrt"
]


class Section(BaseModel):
    """A part of a recipe. An unknown key is an error, and a number outside of its range (`bapo.settings`)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    @field_validator("*", mode="before")
    @classmethod
    def _number_in_range(cls, value: Any, info: ValidationInfo) -> Any:
        known = RANGES.get(info.field_name or "")
        return value if known is None or value is None else known.number(value, text=True)


class ModelSection(Section):
    """Which model is personalized."""

    name: str = Field("smollm2", description="smollm2 (embedded), a local folder, a GGUF file or a hub id")
    precision: Literal["auto", "bf16", "float32", "nf4"] = Field(
        "auto",
        description="how weights lie in memory; auto: bf16, but float32 on a CPU without bf16 instructions",
    )
    adapter: str | None = Field(None, description="an adapter to train further; the model with it is the reference")
    trust_remote_code: bool = Field(False, description="whether code that comes with the model may run")
    kernels: str | list[str] = Field("auto", description=help_text())

    @field_validator("kernels")
    @classmethod
    def _known_kernels(cls, value: str | list[str]) -> str | list[str]:
        chosen(value)
        return value


class PreferenceSection(Section):
    """Which preferences it learns, and what is held out."""

    source: str = Field("starter:concise", description=f"such as {examples()}")
    data_folder: str | None = Field(None, description="where raw data files lie; BAPO_DATA by default")
    protocol: Literal["by-prompt", "paper"] = Field("by-prompt", description="how training and held-out data are split")
    plain: bool = Field(False, description="plain-text prompts stay plain instead of becoming a user turn")
    held_out: int | None = Field(None, description="prompts held out; a fifth, at most 100, by default")
    seed: int = Field(0, description="seed of the split")
    max_train_prompts: int | None = Field(None, description="train on so many prompts only; all by default")
    max_prompt_tokens: int = Field(1024, description="a longer prompt is dropped and counted")
    max_response_tokens: int = Field(1024, description="a longer response is cut and counted")


class AnchoringSection(Section):
    """How base responses are generated."""

    max_new_tokens: int = Field(256, description="longest base response, tokens")
    temperature: float = Field(0.0, description="0 is greedy")
    responses: int = Field(1, description="base responses per prompt")
    seed: int = Field(0, description="seed of the sampling")
    folder: str | None = Field(None, description="folder of the anchored data; the user's cache folder by default")


class TrainingSection(Section):
    """How the adapter is trained."""

    objective: str = Field("bapo", description=f"the pair loss: {', '.join(names('pair_losses'))}")
    beta: float | None = Field(None, description="temperature; None is the objective's own default")
    anchor: str | None = Field(
        None, description=f"{', '.join(names('anchors'))}, with any objective; None is the objective's own"
    )
    anchor_strength: float | None = Field(
        None, description=f"lambda of equation 6, in the first step; None is {ANCHOR_STRENGTH:g}"
    )
    anchor_control: str = Field(
        ANCHOR_CONTROL, description=f"how the strength moves: {', '.join(names('anchor_controls'))}"
    )
    objective_settings: dict[str, float] = Field(
        default_factory=dict, description="of objective and control, e.g. penalty: 50 for dpop"
    )
    learning_rate: float = Field(LEARNING_RATE, description="peak learning rate")
    schedule: Schedule = Field("cosine", description="how the learning rate falls")
    warmup_steps: int = Field(0, description="steps of linear warm-up")
    max_grad_norm: float = Field(1.0, description="gradient norm clip; 0 does not clip")
    batch_pairs: int = Field(8, description="pairs per optimizer step and process")
    max_batch_tokens: int | None = Field(
        None, description="input tokens in memory at once; None is 2,048 on a CPU, else 4,096"
    )
    strands: int | None = Field(
        None, description="parts of a pass side by side on a CPU; changes only which elements dropout draws"
    )
    accumulate: int = Field(1, description="micro-batches per optimizer step, each of batch_pairs pairs")
    epochs: float | None = Field(None, description="passes over the pairs; enough for 40 steps by default")
    steps: int | None = Field(None, description="optimizer steps; overrides epochs")
    rank: int = Field(32, description="LoRA rank")
    alpha: int | None = Field(None, description="LoRA alpha; None is twice the rank")
    dropout: float = Field(0.05, description="LoRA dropout")
    full: bool = Field(False, description="train all weights instead of an adapter")
    sampler: Literal["by-prompt", "by-pair"] = Field("by-prompt", description="what stays together in a batch")
    seed: int = Field(0, description="seed of adapter, order and dropout")
    track_base: bool = Field(True, description="log the base responses' drift also without an anchor")
    part_gradient_steps: int = Field(0, description="log the gradient norms of the parts every so many steps")
    gradient_checkpointing: bool = Field(False, description="less memory, more time")
    save_steps: int = Field(20, description="steps between checkpoints")
    report_to: list[str] = Field(default_factory=list, description="trackers, e.g. tensorboard, wandb")


class AnswerSection(Section):
    """The answers shown side by side at the end."""

    prompts: int = Field(3, description="held-out prompts that every model answers")
    max_new_tokens: int = Field(160, description="longest answer, tokens")


class Recipe(Section):
    """The whole recipe."""

    model: ModelSection = ModelSection()
    preferences: PreferenceSection = PreferenceSection()
    anchoring: AnchoringSection = AnchoringSection()
    training: TrainingSection = TrainingSection()
    compare: list[str] = Field(
        default_factory=list, description="objectives trained beside the main one, with defaults of their own"
    )
    answers: AnswerSection = AnswerSection()


def read_recipe(
    name: str | None, overrides: dict[str, Any] | None = None, defaults: dict[str, Any] | None = None
) -> Recipe:
    """A recipe by the name of a shipped one or the path of a YAML file, with single values overridden.

    Args:
        name: a shipped recipe's name, a path, or None for the defaults.
        overrides: dotted keys to values, e.g. ``{"training.steps": 50}``; values of None are left out.
        defaults: sections, in place of the defaults where there is no recipe.

    Raises:
        BapoError: no such recipe, an unknown key (names the nearest known one), or a value out of range.
    """
    where, content = ("the command", dict(defaults or {})) if name is None else _content(name)
    for key, value in (overrides or {}).items():
        if value is not None:
            _put(content, key, value)
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise BapoError(_sentence(where, error)) from error


def shipped_recipes() -> list[str]:
    """Names of the recipes in the package."""
    return sorted(p.name.removesuffix(".yaml") for p in files("bapo.recipes").iterdir() if p.name.endswith(".yaml"))


def known_keys(section: type[BaseModel] = Recipe, prefix: str = "") -> dict[str, str]:
    """Dotted keys of a recipe and what they mean."""
    keys: dict[str, str] = {}
    for name, info in section.model_fields.items():
        inner = info.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            keys |= known_keys(inner, f"{prefix}{name}.")
        else:
            keys[f"{prefix}{name}"] = info.description or ""
    return keys


def read_yaml(text: str, what: str) -> Any:
    """The value of a YAML text; what it is, is for the sentence.

    Raises:
        BapoError: it is not valid, or a key repeats.
    """
    with foreign(f"{what} is not valid YAML", "mend it"):
        try:
            return yaml.load(text, _EachKeyOnce)
        except yaml.MarkedYAMLError as error:
            line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
            raise BapoError(f"{what} is not valid YAML ({error.problem}{line}): mend it.") from error


class _EachKeyOnce(yaml.SafeLoader):
    """Of two equal keys YAML's own loader silently takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.MarkedYAMLError(problem=f"the key {key!r} repeats", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


def _content(name: str) -> tuple[str, dict[str, Any]]:
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise BapoError(
                f"There is no recipe file {name}: check the path, or use one of {', '.join(shipped_recipes())}."
            )
        text = read_text(path)
    elif name in shipped_recipes():
        text = (files("bapo.recipes") / f"{name}.yaml").read_text("utf-8")
    else:
        raise BapoError(
            f"There is no recipe {name!r}: use one of {', '.join(shipped_recipes())}, or the path of a .yaml file."
        )
    content = read_yaml(text, f"The recipe {name}") or {}
    if not isinstance(content, dict):
        raise BapoError(f"The recipe {name} must hold sections such as 'training:', not a {type(content).__name__}.")
    return name, content


def _put(content: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        inner = content.setdefault(section, {})
        if not isinstance(inner, dict):
            raise BapoError(f"{key!r} is no key of a recipe: {section!r} holds a value, not a section.")
        content = inner
    content[last] = value


def _sentence(where: str, error: ValidationError) -> str:
    problem = error.errors()[0]
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key[:80], [*known_keys(), *Recipe.model_fields], n=1, cutoff=0.4)
        return f"Unknown key {shortened(key)} in {where}" + (f": did you mean {near[0]!r}?" if near else ".")
    if problem["type"] == "value_error":  # of our own ranges
        must = f"must be {problem['ctx']['error']}"
    else:
        must = f"does not fit: {problem['msg'].lower()}"
    return f"{key!r} in {where} is {shortened(problem['input'])}, and it {must}."
