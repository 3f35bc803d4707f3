"""The folder of a training run: who may write it, which run it holds, and what is known of that."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from bapo.errors import BapoError
from bapo.files import (
    LOCK,
    checksum_of_file,
    flush_folder,
    locked,
    read_record,
    remove_staged,
    write_record,
    write_text,
)
from bapo.reporting.escapes import in_markdown
from bapo.results import shared_name
from bapo.results.runs import AGAIN, DONE, STARTED, write_run
from bapo.visible import visible

_PEFTS_PAGE, _OWN_PAGE = "# Model Card for Model ID", "Trained with bapo on"


@contextmanager
def alone(folder: Path, on_wait: Callable[[str], None]) -> Iterator[None]:
    """Hold the folder of a run; the same command started twice waits here, and then finds the run finished.

    Of the processes of one run the first holds it for all.

    Args:
        folder: the folder, which is there.
        on_wait: told in words that another process holds it.

    Raises:
        BapoError: another process holds it, and this one is one of several.
    """
    if int(os.environ.get("RANK", "0")) > 0:
        yield
        return

    def wait() -> None:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # the others would wait for this one, and not for the lock
            raise BapoError(f"Another process trains into {folder}: wait for it, or name another with --output.")
        on_wait(f"waiting for another process that trains into {folder}")

    with locked(folder / LOCK, wait):
        remove_staged(folder)
        yield


@dataclass(frozen=True)
class Asked:
    """What a run was asked for, which is known before any model is loaded.

    Attributes:
        settings: by recipe key, all that can change the adapter.
        data: fingerprint of the preferences and of how they are split; None where that is not known.
    """

    settings: Mapping[str, Any]
    data: str | None = None


def check_asked(folder: Path, asked: Asked) -> None:
    """Refuse to go on with a run of other settings or other data; a run of which nothing is kept yet is forgotten.

    Args:
        folder: of the run, if there is one.
        asked: what is wanted of it.

    Raises:
        BapoError: settings or data differ; says which.
    """
    kept = _kept(folder)
    if kept is None:
        return
    known = kept.get("settings", {})
    other = [
        f"{name.removeprefix('training.')} {known[name]!r} there and {value!r} here"
        for name, value in json.loads(json.dumps(asked.settings)).items()
        if name in known and known[name] != value
    ]
    if other:
        raise BapoError(
            f"{folder} holds a run with other settings ({', '.join(other)}): name another with --output, or delete it."
        )
    if asked.data is not None and kept.get("data") not in (None, asked.data):
        raise BapoError(
            f"{folder} holds a run on other data (another source, other texts or another split): name another with "
            "--output, or delete it."
        )


def start(folder: Path, identity: str, asked: Asked, today: datetime | None) -> None:
    """Say which run the folder holds from now on.

    Args:
        folder: of the run.
        identity: hash of settings and data.
        asked: see `check_asked`.
        today: what the chat template took for now, where it writes the date.

    Raises:
        BapoError: it holds another run.
    """
    check_asked(folder, asked)
    kept = _kept(folder)
    if kept is not None and kept["identity"] != identity:
        raise BapoError(
            f"{folder} holds a run with other data, another model, another number of processes or by another version "
            "of bapo: name another with --output, or delete it."
        )
    if (kept is None or not (folder / DONE).is_file()) and not int(os.environ.get("RANK", "0")):
        write_record(folder / STARTED, {"identity": identity, **as_asked(asked), **dated(today)})


def as_asked(asked: Asked) -> dict[str, Any]:
    """The part of a record that says what was asked for."""
    return {"settings": dict(asked.settings), **({} if asked.data is None else {"data": asked.data})}


def _kept(folder: Path) -> dict[str, Any] | None:
    """The record of the folder's run, if anything of it is worth keeping."""
    started = (folder / STARTED).is_file() and any((folder / "checkpoints").glob("checkpoint-*"))
    path = folder / DONE if (folder / DONE).is_file() else folder / STARTED if started else None
    if path is None:
        return None
    kept = read_record(path, AGAIN)
    if not isinstance(kept.get("settings", {}), dict) or "identity" not in kept:
        raise BapoError(f"{path} is damaged, or of another version of bapo: {AGAIN}.")
    return kept


def dated(today: datetime | None) -> dict[str, str]:
    """The part of a record that says the day."""
    return {} if today is None else {"today": today.isoformat()}


def finish(folder: Path, record: Mapping[str, Any]) -> None:
    """Write the record by which the run counts as finished, with the checksums of its weights; and a page for people.

    Raises:
        BapoError: there are no weights.
    """
    weights = {path.name: checksum_of_file(path) for path in sorted(folder.glob("*.safetensors"))}
    if not weights:
        raise BapoError(f"Nothing that was trained lies in {folder} after it was written: start the command again.")
    page = folder / "README.md"
    if not page.is_file() or is_own_page(page):
        write_text(page, _page(record))
    flush_folder(folder)
    write_run(folder, record, weights)


def is_own_page(page: Path) -> bool:
    """Whether a page was written by bapo or by PEFT, or is empty; the user's own one stays."""
    there = page.read_text(encoding="utf-8", errors="replace")
    return not there or _PEFTS_PAGE in there or _OWN_PAGE in there


def _page(record: Mapping[str, Any]) -> str:
    """What hubs and people read first of a folder: what it is, of which model, and how it is used.

    It is Markdown behind YAML, of names that may hold anything, and shared: names lead to no place of this machine.
    """
    recipe, objective = record["recipe"], record["objective"]
    model, reference_adapter = recipe["model"]["name"], recipe["model"]["reference_adapter"]
    is_hub_id = model.count("/") == 1 and not Path(model).exists()
    base = f"base_model: {json.dumps(model)}\n" if is_hub_id else ""
    tags = ", ".join(map(json.dumps, dict.fromkeys(("bapo", objective))))
    model = visible(shared_name(model), lines=False)
    is_adapter = recipe["lora"]["enabled"]
    what, library = ("adapter", "peft") if is_adapter else ("weights", "transformers")
    lines = [
        f"---\nlibrary_name: {library}\n{base}tags: [{tags}]\n---\n",
        f"# {in_markdown(objective.upper())} {what} for {in_markdown(model)}\n",
        f"{_OWN_PAGE} {record['pairs']:,} pairs of {in_markdown(shared_name(recipe['preferences']['source']))} in "
        f"{record['steps']:,} steps, in {record['precision']}. `{DONE}` has every setting, the log and the machine.\n",
    ]
    if reference_adapter:
        adapter = in_markdown(shared_name(reference_adapter))
        lines.append(f"It went on from the adapter {adapter}, which it takes the place of.\n")
    if not is_adapter:
        lines.append('    bapo generate "..." --model this-folder\n')
    else:
        lines += [
            f'    bapo generate "..." --model {shlex.quote(model)} --adapter this-folder\n',
            "    from bapo.models import load_model",
            "    from peft import PeftModel",
            f"    base = load_model({json.dumps(model, ensure_ascii=False)}).model  # or as transformers loads it",
            '    PeftModel.from_pretrained(base, "this-folder")\n',
        ]
    return "\n".join(lines)
