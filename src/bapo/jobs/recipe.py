"""A recipe: everything that determines a personalization, in sections with strict keys."""

from __future__ import annotations

import difflib
import textwrap
from collections import Counter
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

from bapo.errors import BapoError, foreign
from bapo.files import read_text
from bapo.kernels import chosen, help_text
from bapo.preferences import examples
from bapo.registry import names
from bapo.settings import RANGES, SETTINGS, default_of, shortened

Schedule = Literal[
    "cosine", "linear", "constant", "constant_with_warmup", "cosine_with_restarts", "polynomial", "inverse_sqrt"
]


OF_ONE_OBJECTIVE = ("anchor", "anchor_strength", "anchor_control", "objective_settings")
"""Keys that other objectives do not share."""


LONGEST_YAML, MOST_YAML = 200_000, 100_000
"""Letters of a YAML text, and values that it stands for with its aliases."""


class Section(BaseModel):
    """A part of a recipe. An unknown key is an error, and a number outside of its range (`bapo.settings`)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    @field_validator("*", mode="before")
    @classmethod
    def _number_in_range(cls, value: Any, info: ValidationInfo) -> Any:
        known = RANGES.get(info.field_name or "")
        return value if known is None or value is None else known.number(value, text=True)


def shared(name: str, *, choices: str | None = None, more: str = "") -> Any:
    """The key of a setting that `BAPOConfig` has too.

    Args:
        name: the setting, a key of `bapo.settings.SETTINGS`.
        choices: the kind of registered things that it names, which the help text lists.
        more: what recipes add to its meaning.
    """
    listed = f" ({', '.join(names(choices))})" if choices else ""
    return Field(default_factory=lambda: default_of(name), description=SETTINGS[name].meaning + listed + more)


class ModelSection(Section):
    """Which model is personalized."""

    name: str = Field("smollm2", description="smollm2 (embedded), a local folder, a GGUF file or a hub id")
    precision: Literal["auto", "bf16", "float32", "nf4"] = Field(
        "auto",
        description="how weights lie in memory; auto: bf16, but float32 on a CPU without bf16 instructions",
    )
    reference_adapter: str | None = Field(
        None,
        description="an adapter that the model comes with: the model with it is the reference, and it is trained on",
    )
    trust_remote_code: bool = shared("trust_remote_code")
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
    split_seed: int = Field(0, description="seed of the split")
    max_train_prompts: int | None = Field(None, description="train on so many prompts only; all by default")
    max_prompt_tokens: int = shared("max_prompt_tokens")
    max_response_tokens: int = shared("max_response_tokens")


class AnchoringSection(Section):
    """How base responses are generated, and where they are kept."""

    base_max_new_tokens: int = shared("base_max_new_tokens")
    base_temperature: float = shared("base_temperature")
    base_responses: int = shared("base_responses")
    base_seed: int = shared("base_seed")
    anchored_store: str | None = shared("anchored_store")


class LoraSection(Section):
    """The adapter that is trained, or none."""

    enabled: bool = Field(True, description="false trains all weights instead of an adapter")
    rank: int = Field(32, description="LoRA rank")
    alpha: int | None = Field(None, description="LoRA alpha; None is twice the rank")
    dropout: float = Field(0.05, description="LoRA dropout")


class TrainingSection(Section):
    """How it is trained. Each key is a field of `BAPOConfig`."""

    objective: str = shared("objective", choices="pair_losses")
    beta: float | None = shared("beta")
    anchor: str | None = shared("anchor", choices="anchors")
    anchor_strength: float | None = shared("anchor_strength")
    anchor_control: str = shared("anchor_control", choices="anchor_controls")
    objective_settings: dict[str, float] = shared("objective_settings")
    learning_rate: float = shared("learning_rate")
    lr_scheduler_type: Schedule = shared("lr_scheduler_type")
    warmup_steps: int = shared("warmup_steps")
    max_grad_norm: float = shared("max_grad_norm")
    num_train_epochs: float | None = shared("num_train_epochs", more="; enough for 40 steps by default")
    max_steps: int | None = shared("max_steps")
    per_device_train_batch_size: int = shared("per_device_train_batch_size")
    gradient_accumulation_steps: int = shared("gradient_accumulation_steps")
    seed: int = shared("seed")
    sampler: Literal["by-prompt", "by-pair"] = shared("sampler")
    max_batch_tokens: int | None = shared("max_batch_tokens")
    strands: int | None = shared("strands")
    gradient_checkpointing: bool = shared("gradient_checkpointing")
    track_base: bool = shared("track_base")
    part_gradient_steps: int = shared("part_gradient_steps")
    save_steps: int = shared("save_steps")
    report_to: list[str] = shared("report_to")


class GenerationSection(Section):
    """What every model answers at the end, side by side."""

    questions: list[str] = Field(default_factory=list, description="prompts of one's own that every model answers")
    prompts: int = Field(3, description="held-out prompts that every model answers after those")
    max_new_tokens: int = Field(160, description="longest of these responses, tokens")


class Recipe(Section):
    """The whole recipe."""

    model: ModelSection = ModelSection()
    preferences: PreferenceSection = PreferenceSection()
    anchoring: AnchoringSection = AnchoringSection()
    lora: LoraSection = LoraSection()
    training: TrainingSection = TrainingSection()
    also_train: list[str] = Field(
        default_factory=list, description="objectives trained beside the main one, with defaults of their own"
    )
    generations: GenerationSection = GenerationSection()

    def training_of(self, objective: str) -> TrainingSection:
        """The training's settings; for another objective than the recipe's without those of that one alone."""
        if objective == self.training.objective:
            return self.training
        defaults = {name: default_of(name) for name in OF_ONE_OBJECTIVE}
        return self.training.model_copy(update={"objective": objective, **defaults})


def read_recipe(
    name: str | None, overrides: dict[str, Any] | None = None, defaults: dict[str, Any] | None = None
) -> Recipe:
    """A recipe by the name of a shipped one or the path of a YAML file, with single values overridden.

    Args:
        name: a shipped recipe's name, a path, or None for the defaults.
        overrides: dotted keys to values, e.g. ``{"training.max_steps": 50}``; values of None are left out.
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
        raise BapoError(sentence_of(where, error, [*known_keys(), *Recipe.model_fields])) from error


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


def commented(recipe: Recipe) -> str:
    """A recipe as a YAML file with every key, each with what it means."""
    lines: list[str] = []
    for name, info in Recipe.model_fields.items():
        value = getattr(recipe, name)
        if isinstance(value, Section):
            lines += ["", f"# {(type(value).__doc__ or '').strip()}", f"{name}:"]
            lines += [line for key, inner in type(value).model_fields.items() for line in _key(value, key, inner, "  ")]
        else:
            lines += ["", *_key(recipe, name, info, "")]
    return "\n".join(lines).strip() + "\n"


def _key(section: Section, key: str, info: FieldInfo, before: str) -> list[str]:
    shown = yaml.safe_dump({key: section.model_dump(mode="json")[key]}, default_flow_style=False, allow_unicode=True)
    return [textwrap.indent(f"# {info.description}\n{shown.rstrip()}", before)]


def read_yaml(text: str, what: str) -> Any:
    """The value of a YAML text; what it is, is for the sentence.

    Raises:
        BapoError: it is not valid, or a key repeats.
    """
    if len(text) > LONGEST_YAML:
        raise BapoError(f"{what} has more than {LONGEST_YAML:,} letters: name a YAML file of settings, or shorten it.")
    with foreign(f"{what} is not valid YAML", "mend it"):
        try:
            _check_aliases(text, what)
            return yaml.load(text, _EachKeyOnce)
        except yaml.MarkedYAMLError as error:
            line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
            raise BapoError(f"{what} is not valid YAML ({error.problem}{line}): mend it.") from error
        except (AttributeError, TypeError) as error:  # of the constructor of a tag
            raise BapoError(
                f"{what} is not valid YAML (a value is not what its tag, !!..., says): leave tags out."
            ) from error


def _check_aliases(text: str, what: str) -> None:
    """What aliases stand for is not too much, which a few lines of them can be, nor without end."""
    if "*" not in text:
        return
    sizes: dict[int, int] = {}

    def size_of(node: Any) -> int:
        if id(node) not in sizes:
            sizes[id(node)] = MOST_YAML  # of a node that holds itself
            inner = [
                part
                for entry in getattr(node, "value", ())
                for part in (entry if isinstance(entry, tuple) else (entry,))
            ]
            sizes[id(node)] = 1 + sum(size_of(part) for part in inner if isinstance(part, yaml.Node))
        return sizes[id(node)]

    if size_of(yaml.compose(text, yaml.SafeLoader)) > MOST_YAML:
        raise BapoError(
            f"{what} stands for more than {MOST_YAML:,} values by its aliases (*name): write out what is meant."
        )


class _EachKeyOnce(yaml.SafeLoader):
    """Of two equal keys YAML's own loader silently takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        for key, count in keys.items():
            if count > 1:
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
        raise BapoError(
            f"The recipe {name} holds no sections such as 'training:': write them as `bapo recipe` prints them."
        )
    return name, content


def _put(content: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        inner = content.setdefault(section, {})
        if not isinstance(inner, dict):
            raise BapoError(f"{key!r} is no key of a recipe: {section!r} holds a value, not a section.")
        content = inner
    content[last] = value


def sentence_of(where: str, error: ValidationError, known: Iterable[str]) -> str:
    """The first of the errors in a file of strict keys, as a sentence.

    Args:
        where: the file.
        error: what pydantic found.
        known: dotted keys that there are, of which the nearest to an unknown one is named.
    """
    problems = error.errors()
    problem = next((one for one in problems if one["type"] == "extra_forbidden"), problems[0])
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key[:80], list(known), n=1, cutoff=0.4)
        return f"Unknown key {shortened(key)} in {where}" + (f": did you mean {near[0]!r}?" if near else ": remove it.")
    if problem["type"] == "value_error":  # of our own ranges
        must = f"must be {problem['ctx']['error']}"
    else:
        must = f"does not fit: {problem['msg'].lower()}"
    return f"{key!r} in {where} is {shortened(problem['input'])}, and it {must}."
