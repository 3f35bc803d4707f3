"""`bapo recipe`: a recipe with every key and what it means."""

from __future__ import annotations

from typing import Annotated

import typer

from bapo.cli import options


def recipe(
    name: Annotated[
        str | None, typer.Argument(help="A shipped recipe or a YAML file; the defaults where none is named.")
    ] = None,
    settings: options.Set = None,
) -> None:
    """Print a recipe with every key, its value and what it means: `bapo recipe > mine.yaml` is a file to start from."""
    from bapo.jobs.recipe import commented

    typer.echo(commented(options.recipe_from(name, settings)), nl=False)
