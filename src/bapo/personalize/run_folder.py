"""The folder of a training run: who may write it, which run it holds, and what is known of that."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from bapo.errors import BapoError
from bapo.files import checksum_of_file, locked, read_bytes, read_record, write_record, write_text

STARTED, DONE = "started.json", "run.json"
_PEFTS_PAGE, _OWN_PAGE = "# Model Card for Model ID", "Trained with bapo on"
_AGAIN = "delete the folder and train again, or name another with --output"


@dataclass(frozen=True)
class Run:
    """One finished training run.

    Attributes:
        name: the objective.
        folder: where adapter, settings and log lie.
        log: what the trainer logged, one entry per logging step.
    """

    name: str
    folder: Path
    log: tuple[dict[str, float], ...]


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

    with locked(folder / ".lock", wait):
        yield


def check_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Refuse to go on with a run of other settings; a run of which nothing is kept yet is forgotten.

    Args:
        folder: of the run, if there is one.
        settings: by name, all that can change the adapter.

    Raises:
        BapoError: the settings differ; says which.
    """
    found = _kept(folder)
    if found is None:
        return
    known = found.get("settings") or found.get("recipe", {}).get("training", {})
    other = [
        f"{name} {known[name]!r} there and {value!r} here"
        for name, value in json.loads(json.dumps(settings)).items()
        if name in known and known[name] != value
    ]
    if other:
        raise BapoError(
            f"{folder} holds a run with other settings ({', '.join(other)}): name another with --output, or delete it."
        )


def start(folder: Path, identity: str, settings: Mapping[str, Any], today: datetime | None) -> None:
    """Say which run the folder holds from now on.

    Args:
        folder: of the run.
        identity: hash of settings and data.
        settings: see `check_settings`.
        today: what the chat template took for now, where it writes the date.

    Raises:
        BapoError: it holds another run.
    """
    check_settings(folder, settings)
    found = _kept(folder)
    if found is not None and found["identity"] != identity:
        raise BapoError(
            f"{folder} holds a run with other data, another model or another number of processes: name another with "
            "--output, or delete it."
        )
    if found is None or not (folder / DONE).is_file():
        write_record(folder / STARTED, {"identity": identity, "settings": dict(settings), **dated(today)})


def _kept(folder: Path) -> dict[str, Any] | None:
    """The record of the folder's run, if anything of it is worth keeping."""
    if (folder / DONE).is_file():
        return read_record(folder / DONE, _AGAIN)
    if (folder / STARTED).is_file() and any((folder / "checkpoints").glob("checkpoint-*")):
        return read_record(folder / STARTED, _AGAIN)
    return None


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
    there = page.read_text(encoding="utf-8", errors="replace") if page.is_file() else ""
    if not there or _PEFTS_PAGE in there or _OWN_PAGE in there:  # the user's own page stays
        write_text(page, _page(record))
    write_record(folder / DONE, {**record, "weights": weights})


def read_run(folder: Path) -> Run:
    """A finished run.

    Raises:
        BapoError: the folder holds none, or its record or its weights are not what was written.
    """
    path = folder / DONE
    if not path.is_file():
        raise BapoError(f"{folder} holds no finished run (no {DONE}): train it first.")
    content = read_record(path, _AGAIN)
    for name, checksum in content["weights"].items():
        if checksum_of_file(folder / name) != checksum:
            raise BapoError(f"{folder / name} is not what was trained, but damaged or replaced: {_AGAIN}.")
    return Run(content["objective"], folder, tuple(content["log"]))


def record_of(adapter: str | None) -> dict[str, Any] | None:
    """What is known of how an adapter of bapo's was trained; None of one that was made elsewhere.

    Raises:
        BapoError: its record is damaged.
    """
    path = Path(adapter or "") / DONE
    if adapter is None or not path.is_file():
        return None
    try:
        run = json.loads(read_bytes(path))
        complete = "name" in run["recipe"]["model"] and "reference" in run
    except (ValueError, KeyError, TypeError, AttributeError):
        complete = False
    if complete and "checksum" in run:
        return read_record(path, "train it again, or delete that file, and nothing is known of how it was trained")
    return run if complete else None


def day_of(folder: Path) -> datetime | None:
    """What the chat template took for now when the prompts of a run were written; None where that is not known.

    A run that goes on, or is evaluated, on a later day or with another store keeps the prompts that it was trained on.
    """
    for path in (folder / DONE, folder / STARTED):
        if path.is_file():
            try:
                return datetime.fromisoformat(json.loads(path.read_text())["today"])
            except (ValueError, KeyError, TypeError):
                continue
    return None


def _page(record: Mapping[str, Any]) -> str:
    """What hubs and people read first of a folder: what it is, of which model, and how it is used."""
    told, model, objective = record["recipe"]["training"], record["recipe"]["model"]["name"], record["objective"]
    source = record["recipe"]["preferences"]["source"]
    is_hub_id = model.count("/") == 1 and not Path(model).exists()
    base = f"base_model: {model}\n" if is_hub_id else ""
    what, library = ("weights", "transformers") if told["full"] else ("adapter", "peft")
    lines = [
        f"---\nlibrary_name: {library}\n{base}tags: [{', '.join(dict.fromkeys(('bapo', objective)))}]\n---\n",
        f"# {objective.upper()} {what} for {model}\n",
        f"{_OWN_PAGE} {record['pairs']:,} pairs of {source} in {record['steps']:,} steps, in "
        f"{record['precision']}. `{DONE}` has every setting, the log and the machine.\n",
    ]
    if record["recipe"]["model"]["adapter"]:
        lines.append(
            f"It went on from the adapter {record['recipe']['model']['adapter']}, which it takes the place of.\n"
        )
    if told["full"]:
        lines.append('    bapo generate "..." --model this-folder\n')
    else:
        lines += [
            f'    bapo generate "..." --model {model} --adapter this-folder\n',
            "    from bapo.models import load_model",
            "    from peft import PeftModel",
            f'    base = load_model("{model}").model  # or as transformers loads it',
            '    PeftModel.from_pretrained(base, "this-folder")\n',
        ]
    return "\n".join(lines)
