"""Options that several commands share, and how they become a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bapo.errors import BapoError
from bapo.kernels import help_text
from bapo.preferences import examples
from bapo.registry import names
from bapo.settings import SETTINGS, check_number, shortened

if TYPE_CHECKING:
    from bapo.jobs import Recipe

Model = Annotated[
    str | None,
    typer.Option("--model", "-m", help="smollm2 (embedded, the default), a folder, a .gguf file or a hub id."),
]
Precision = Annotated[str | None, typer.Option(help="auto (default), bf16, float32, or nf4 (4-bit).")]
ReferenceAdapter = Annotated[
    str | None, typer.Option(help="An adapter that the model comes with; the model with it is the reference.")
]
TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Let code that comes with the model run.")]
Kernels = Annotated[str | None, typer.Option(help=f"{help_text().capitalize()} (with commas).")]
Source = Annotated[
    str | None,
    typer.Argument(
        help=f"What is learned: {examples(whole=True)}.",
        show_default=False,
    ),
]
DataFolder = Annotated[str | None, typer.Option(help="Folder of raw data files; BAPO_DATA by default.")]
Plain = Annotated[
    bool, typer.Option("--plain", help="Leave plain-text prompts plain instead of making them a user turn.")
]
HeldOut = Annotated[int | None, typer.Option(help="Prompts held out for evaluation; a fifth, at most 100, by default.")]
SplitSeed = Annotated[int | None, typer.Option(help="Seed of the choice of held-out prompts.")]
RecipeName = Annotated[
    str | None, typer.Option("--recipe", "-r", help="A shipped recipe (demo, paper) or a .yaml file.")
]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="Any key of the recipe, e.g. --set lora.rank=16; repeatable.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Objective = Annotated[
    str | None, typer.Option(help=f"The pair loss: {', '.join(names('pair_losses'))}. By default bapo.")
]


def _shared(name: str, more: str = "") -> Any:
    """The option of a setting that has its meaning from the table."""
    meaning = SETTINGS[name].meaning + more
    return typer.Option(help=f"{meaning[0].upper()}{meaning[1:]}.")


Beta = Annotated[float | None, _shared("beta")]
AnchorStrength = Annotated[float | None, _shared("anchor_strength")]
LearningRate = Annotated[float | None, _shared("learning_rate")]
MaxSteps = Annotated[int | None, _shared("max_steps")]
NumTrainEpochs = Annotated[float | None, _shared("num_train_epochs", "; enough for 40 steps by default")]
Seed = Annotated[int | None, _shared("seed")]
AnchoredStore = Annotated[str | None, _shared("anchored_store")]
BaseMaxNewTokens = Annotated[int | None, _shared("base_max_new_tokens")]
BaseTemperature = Annotated[float | None, _shared("base_temperature")]
BaseResponses = Annotated[int | None, _shared("base_responses")]
BaseSeed = Annotated[int | None, _shared("base_seed")]
SamplingSeed = Annotated[int, typer.Option(help="Seed of the sampling.")]

KEYS = {
    "model": "model.name",
    **{name: f"model.{name}" for name in ("precision", "kernels", "reference_adapter", "trust_remote_code")},
    **{name: f"preferences.{name}" for name in ("source", "data_folder", "plain", "held_out", "split_seed")},
    **{
        name: f"anchoring.{name}" for name in ("base_max_new_tokens", "base_temperature", "base_responses", "base_seed")
    },
    "anchored_store": "anchoring.anchored_store",
    **{name: f"training.{name}" for name in ("objective", "beta", "anchor_strength", "learning_rate", "seed")},
    **{name: f"training.{name}" for name in ("max_steps", "num_train_epochs")},
    "also_train": "also_train",
}
"""Options that are keys of the recipe, by their names with underscores."""


def recipe_of(context: typer.Context, *, as_trained: Sequence[str] = ()) -> Recipe:
    """The recipe of a command: shipped or own file, then the command's options, then ``--set``.

    What nobody says of preferences and base responses is as it was when the first of some adapters was trained.
    """
    params = context.params
    given = {key: params[name] for name, key in KEYS.items() if name in params}
    # What nobody gave is None, False, or an empty list or tuple, by the version of Typer.
    options = {
        key: value for key, value in given.items() if value is not None and value is not False and value not in ([], ())
    }
    return recipe_from(params.get("recipe"), params.get("settings"), options, as_trained=as_trained)


def recipe_from(
    name: str | None,
    settings: Sequence[str] | None,
    overrides: Mapping[str, Any] | None = None,
    *,
    as_trained: Sequence[str] = (),
) -> Recipe:
    """As `recipe_of`, of a recipe's name, the values of ``--set``, and what options give to keys."""
    from bapo.jobs.recipe import read_recipe, read_yaml

    values = dict(overrides or {})
    for setting in settings or []:
        key, equals, text = setting.partition("=")
        if not equals:
            raise BapoError(f"--set takes key=value, such as --set lora.rank=16, not {shortened(setting)}.")
        values[key.strip()] = read_yaml(text, f"The value of --set {key.strip()[:80]}")
    return read_recipe(name, values, _of_runs(as_trained, values, name))


def _of_runs(adapters: Sequence[str], overrides: Mapping[str, Any], recipe: str | None) -> dict[str, Any]:
    """What the first adapter that has a record says of its preferences, if they are those that are asked for."""
    from bapo.jobs.places import recipe_as_placed
    from bapo.jobs.recipe import AnchoringSection, PreferenceSection
    from bapo.results import record_of, shared_name

    records = {adapter: record_of(adapter) for adapter in adapters}
    runs = [name for name, record in records.items() if record is not None and "preferences" in record["recipe"]]
    if not runs or recipe is not None:
        return {}
    known = recipe_as_placed(Path(runs[0]), (records[runs[0]] or {})["recipe"])
    source = known["preferences"].get("source")
    if shared_name(overrides.get("preferences.source", source)) != shared_name(source):
        return {}
    fields = {"preferences": set(PreferenceSection.model_fields), "anchoring": set(AnchoringSection.model_fields)}
    places = {"anchored_store", "data_folder"}  # where things lie
    return {
        section: {key: value for key, value in known.get(section, {}).items() if key in keys - places}
        for section, keys in fields.items()
    }


def check_numbers(**values: Any) -> None:
    """Options that are no keys of a recipe, by their names with underscores; those that were not given are None.

    Raises:
        BapoError: a number is out of range.
    """
    for name, value in values.items():
        if value is not None:
            check_number(name, value, shown="--" + name.replace("_", "-"))
