"""`bapo delete`: a run, with all that was derived from its data."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bapo.cli import options
from bapo.errors import BapoError

if TYPE_CHECKING:
    from bapo.jobs.deleting import Deletion


def delete(
    folder: Annotated[Path, typer.Argument(help="Of a run, a personalization, or an evaluation (its --records).")],
    records: Annotated[
        list[Path] | None, typer.Option(help="Another folder of an evaluation's --records to look through; repeatable.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Delete without asking.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be deleted, and delete nothing.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Delete a run with all that was derived from its data: adapter, answers, base responses, scores and records.

    What another run uses is kept and listed. Stopped at any moment, the same command goes on.
    """
    from bapo.cli.console import out, print_json, quieten_libraries

    quieten_libraries()
    from bapo.jobs.deleting import carry_out, plan

    deletion = plan(folder, records or [])
    if not as_json:
        _show(deletion)
    elif dry_run or not yes:
        print_json({**_as_dict(deletion), "deleted": False})
    if dry_run:
        return
    if not yes and (as_json or not sys.stdin.isatty()):
        raise BapoError("Nothing was deleted, because nobody can be asked: say --yes, or --dry-run to see what it is.")
    if not (yes or typer.confirm("Delete this for good?")):
        out.print("nothing was deleted")
        return
    carry_out(deletion)
    if as_json:
        print_json({**_as_dict(deletion), "deleted": True})
    else:
        out.print(f"{folder} is deleted", soft_wrap=True)


def _show(deletion: Deletion) -> None:
    from bapo.cli.console import out

    kept = deletion.kept
    out.print(f"{kept.kind} {kept.folder}: {_named([path.name for path in (*kept.runs, *kept.own)])}", soft_wrap=True)
    for part in deletion.stores:
        out.print(
            f"anchored store {part.folder}: base responses to {len(part.prompts):,} prompts, "
            f"{len(part.scores):,} scores",
            soft_wrap=True,
        )
    for path in deletion.records:
        out.print(f"derived from it: {path}", soft_wrap=True)
    if not deletion.is_known:
        out.print(
            "no anchored store knows it: what was made for it by an earlier version or in another cache (BAPO_CACHE) "
            "stays there",
            soft_wrap=True,
        )
    for owner, prompts in deletion.shared.items():
        out.print(f"kept: what was made of {prompts:,} prompts, which {owner} uses too", soft_wrap=True)
    for path in kept.others:
        out.print(f"kept: {path}, which bapo did not write", soft_wrap=True)


def _named(names: list[str]) -> str:
    return ", ".join(names) or "nothing in it"


def _as_dict(deletion: Deletion) -> dict[str, Any]:
    return {
        "folder": str(deletion.kept.folder),
        "kind": deletion.kept.kind,
        "files": [str(path) for path in (*deletion.kept.runs, *deletion.kept.own)],
        "stores": {
            str(part.folder): {"prompts": len(part.prompts), "scores": len(part.scores)} for part in deletion.stores
        },
        "records": [str(path) for path in deletion.records],
        "kept": {
            "used": dict(deletion.shared),
            "others": [str(path) for path in deletion.kept.others],
        },
    }
