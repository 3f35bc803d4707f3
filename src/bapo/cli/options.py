"""Options that several commands share, and how they become a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bapo.errors import BapoError
from bapo.kernels import help_text
from bapo.preferences import examples
from bapo.registry import names
from bapo.settings import check_number, shortened

if TYPE_CHECKING:
    from bapo.jobs import Recipe

Model = Annotated[
    str | None,
    typer.Option("--model", "-m", help="smollm2 (embedded, the default), a folder, a .gguf file or a hub id."),
]
Precision = Annotated[str | None, typer.Option(help="auto (default), bf16, float32, or nf4 (4-bit).")]
Adapter = Annotated[
    str | None, typer.Option(help="An adapter that the model already has; it is part of the reference.")
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
Data = Annotated[str | None, typer.Option("--data", help="Folder of raw data files; BAPO_DATA by default.")]
Plain = Annotated[
    bool, typer.Option("--plain", help="Leave plain-text prompts plain instead of making them a user turn.")
]
HeldOut = Annotated[int | None, typer.Option(help="Prompts held out for evaluation; a fifth, at most 100, by default.")]
Seed = Annotated[int | None, typer.Option(help="Seed of split, adapter, order and dropout.")]
RecipeName = Annotated[
    str | None, typer.Option("--recipe", "-r", help="A shipped recipe (demo, paper) or a .yaml file.")
]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="Any key of the recipe, e.g. --set training.rank=16; repeatable.")
]
Anchors = Annotated[str | None, typer.Option(help="Folder of the anchored data; the user's cache folder by default.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Objective = Annotated[
    str | None, typer.Option(help=f"The pair loss: {', '.join(names('pair_losses'))}. By default bapo.")
]
Beta = Annotated[float | None, typer.Option(help="Temperature of the objective.")]
AnchorStrength = Annotated[
    float | None, typer.Option(help="Lambda of the base anchor; --set training.anchor names the anchor itself.")
]
LearningRate = Annotated[float | None, typer.Option(help="Peak learning rate.")]
Steps = Annotated[int | None, typer.Option(help="Optimizer steps; overrides --epochs.")]
Epochs = Annotated[float | None, typer.Option(help="Passes over the training pairs; enough for 40 steps by default.")]
MaxNewTokens = Annotated[int | None, typer.Option(help="Longest response that is generated, tokens.")]


def recipe_from(
    name: str | None, settings: list[str] | None, *, as_trained: Sequence[str] = (), **values: Any
) -> Recipe:
    """The recipe of a command: shipped or own file, then the command's options, then ``--set``.

    Keyword names are recipe keys with ``__`` for the dot; values of None and False are left to the recipe. What nobody
    says of preferences and base responses is as it was when the first of some adapters was trained.
    """
    from bapo.jobs.recipe import read_recipe, read_yaml

    overrides = {
        key.replace("__", "."): value for key, value in values.items() if value is not None and value is not False
    }
    for setting in settings or []:
        key, equals, text = setting.partition("=")
        if not equals:
            raise BapoError(f"--set takes key=value, such as --set training.rank=16, not {shortened(setting)}.")
        overrides[key.strip()] = read_yaml(text, f"The value of --set {key.strip()[:80]}")
    return read_recipe(name, overrides, _of_runs(as_trained, overrides, name))


def _of_runs(adapters: Sequence[str], overrides: Mapping[str, Any], recipe: str | None) -> dict[str, Any]:
    """What the first adapter that has a record says of its preferences, if they are those that are asked for."""
    from bapo.jobs.recipe import AnchoringSection, PreferenceSection
    from bapo.results import record_of

    records = (record_of(adapter) for adapter in adapters)
    run = next((record for record in records if record is not None and "preferences" in record["recipe"]), None)
    if run is None or recipe is not None:
        return {}
    known = run["recipe"]
    if overrides.get("preferences.source", known["preferences"].get("source")) != known["preferences"].get("source"):
        return {}
    fields = {"preferences": set(PreferenceSection.model_fields), "anchoring": set(AnchoringSection.model_fields)}
    places = {"folder", "data_folder"}  # where things lie
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
