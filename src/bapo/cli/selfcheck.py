"""`bapo selfcheck`: is this model scored and trained right, on this machine?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from bapo.cli import options

if TYPE_CHECKING:
    from bapo.results import Selfcheck


def selfcheck(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(help="smollm2 (embedded, the default), a folder, a .gguf file or a hub id.", show_default=False),
    ] = None,
    adapter: Annotated[
        str | None, typer.Option("--adapter", "-a", help="An adapter to check with the model, instead of a fresh one.")
    ] = None,
    precision: options.Precision = None,
    kernels: options.Kernels = None,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.AsJson = False,
) -> None:
    """Look whether a model is scored and trained right on this machine.

    Every way to compute it is compared with the model's own code, and so are the start of training, the chat template
    and an adapter that was saved. Ends with 0 if all is right, with 1 if something is not.
    """
    from bapo.cli.console import live_progress, print_json

    wanted = options.recipe_of(context)
    with live_progress(quiet=as_json) as on_progress:
        from bapo.jobs.selfcheck import selfcheck as check

        checked = check(wanted, adapter, on_progress)
    if as_json:
        print_json(checked.to_dict())
    else:
        _show(checked)
    if not checked.right:
        raise typer.Exit(1)


def _show(checked: Selfcheck) -> None:
    from bapo.cli.console import out, print_table
    from bapo.reporting import SELFCHECK_HEADER, SELFCHECK_LEGEND, selfcheck_outcome, selfcheck_rows

    out.print(checked.model if checked.adapter is None else f"{checked.model} with {checked.adapter}", style="bold")
    for name, text in checked.facts.items():
        out.print(f"{name + ':':<16} {text}", soft_wrap=True)
    print_table(SELFCHECK_HEADER, selfcheck_rows(checked), title=f"\nChecked on {checked.sample}:")
    out.print(SELFCHECK_LEGEND)
    out.print(selfcheck_outcome(checked), style="bold")
