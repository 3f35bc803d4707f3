"""Base responses and reference log-probs on disk, shared by every preference, objective and run over a model.

A number's key is what determines it: the model's fingerprint and the scoring version (the store's manifest), the token
ids (the record's key), and for generated responses the generation settings and the ids that end a response (the
journal's name). Never a learning rate, a seed of training, a folder or an objective.

Where the chat template writes the date, the store says which: the day on which it was made. So prompts keep their ids,
and what was made of them is found again on every later day.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from bapo.anchoring.generate import GENERATION_VERSION, GenerationSettings, Response
from bapo.anchoring.probe import Probe
from bapo.errors import BapoError, foreign
from bapo.files import locked, make_folder, read_record, write_record
from bapo.journal import Journal
from bapo.likelihood import TokenIds
from bapo.models import LoadedModel, cache_folder, machine, model_fingerprint, tokenizer_fingerprint
from bapo.settings import SCORING_VERSION

FORMAT = 3
"""Of the files in a store."""

_MANIFEST, _PROBE = "manifest.json", "probe.json"
_AGAIN = "delete that file, and it is made again"


@dataclass(frozen=True, slots=True)
class Score:
    """Reference log-prob of a response: the sum, and each token's where it was asked for (nats)."""

    logp: float
    tokens: tuple[float, ...] | None = None


def group_key(*ids: TokenIds) -> str:
    """Key of a prompt, or of a prompt and a response, by their token ids."""
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:32]


class AnchorStore:
    """The folder with a model's base responses and scores.

    Args:
        folder: where it lies; made on first use.
        model: the reference model. A store of another model is refused.

    Attributes:
        today: the moment that a chat template takes for now; None where the template writes no date.

    Raises:
        BapoError: the folder holds something else, or belongs to another model or scoring version.
    """

    def __init__(self, folder: Path, model: LoadedModel) -> None:
        self.folder = folder
        self.identity = {
            "format": FORMAT,
            "model": model_fingerprint(model.model),
            "tokenizer": tokenizer_fingerprint(model.tokenizer),
            "scoring_version": SCORING_VERSION,
        }
        self.end_ids = model.chat.end_ids
        self.today = model.chat.today
        about = {"model_name": model.name, "precision": model.precision, "machine": machine(model.model.device)}
        self._check_or_create(about)
        self._scores: dict[str, Score] | None = None
        self._bases: dict[str, dict[str, tuple[Response, ...]]] = {}
        self._journals: dict[str, Journal] = {}

    @classmethod
    def in_cache(cls, model: LoadedModel) -> AnchorStore:
        """The model's store in the user's cache folder."""
        parts = (model_fingerprint(model.model), tokenizer_fingerprint(model.tokenizer))
        identity = f"{parts}{SCORING_VERSION}{FORMAT}"
        return cls(cache_folder() / "anchors" / hashlib.sha256(identity.encode()).hexdigest()[:16], model)

    @contextmanager
    def writing(self, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
        """Hold the store for writing; another process that wants to write waits, then sees what was written.

        Args:
            on_wait: called once where another process holds the store.

        Raises:
            BapoError: the folder cannot be locked, or was changed or deleted meanwhile.
        """
        with locked(self.folder / ".lock", on_wait):
            self._scores, self._bases, self._journals = None, {}, {}
            yield
            self._check_written()

    def _check_written(self) -> None:
        """What was kept is there: nobody deleted the folder, or wrote into it in spite of the lock."""
        for journal in self._journals.values():
            journal.check()
        if not (self.folder / _MANIFEST).is_file():
            raise BapoError(f"{self.folder} was deleted while anchored data were written: start the command again.")

    def bases(self, settings: GenerationSettings) -> dict[str, tuple[Response, ...]]:
        """Base responses by prompt key, for one way of generating."""
        journal = self._base_journal(settings)
        name = journal.path.name
        if name not in self._bases:
            with foreign(f"{journal.path} is damaged", _AGAIN):
                self._bases[name] = {
                    record["prompt"]: tuple(Response(_ids(r["ids"]), bool(r["ended"])) for r in record["responses"])
                    for batch in journal.read()
                    for record in batch
                }
        return self._bases[name]

    def add_bases(self, settings: GenerationSettings, batch: dict[str, tuple[Response, ...]]) -> None:
        """Keep the base responses of one batch of prompts."""
        known = self.bases(settings)
        self._base_journal(settings).append(
            [
                {"prompt": key, "responses": [{"ids": list(r.ids), "ended": r.ended} for r in responses]}
                for key, responses in batch.items()
            ]
        )
        known.update(batch)

    def scores(self) -> dict[str, Score]:
        """Reference log-probs by the key of prompt and response."""
        if self._scores is None:
            journal = self._score_journal()
            with foreign(f"{journal.path} is damaged", _AGAIN):
                self._scores = {
                    record["key"]: Score(
                        _logp(record["logp"]), tuple(map(_logp, record["tokens"])) if "tokens" in record else None
                    )
                    for batch in journal.read()
                    for record in batch
                }
        return self._scores

    def add_scores(self, batch: dict[str, Score]) -> None:
        """Keep the scores of one batch of responses."""
        known = self.scores()
        self._score_journal().append(
            [
                {"key": key, "logp": score.logp} | ({} if score.tokens is None else {"tokens": list(score.tokens)})
                for key, score in batch.items()
            ]
        )
        known.update(batch)

    def probe(self) -> Probe | None:
        """What the reference said to a few responses, once there are some.

        Raises:
            BapoError: the file is damaged.
        """
        path = self.folder / _PROBE
        if not path.is_file():
            return None
        content = read_record(path, _AGAIN)
        with foreign(f"{path} is damaged", _AGAIN):
            return Probe.from_dict(content)

    def add_probe(self, probe: Probe) -> None:
        """Keep it."""
        write_record(self.folder / _PROBE, probe.to_dict())

    def _base_journal(self, settings: GenerationSettings) -> Journal:
        key = {**asdict(settings), "end_ids": sorted(self.end_ids), "version": GENERATION_VERSION}
        mark = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:8]
        return self._journal(f"base-{mark}.jsonl")

    def _score_journal(self) -> Journal:
        return self._journal("logps.jsonl")

    def _journal(self, name: str) -> Journal:
        return self._journals.setdefault(name, Journal(self.folder / name))

    def _check_or_create(self, about: dict[str, Any]) -> None:
        path = self.folder / _MANIFEST
        if not path.is_file():
            with locked(make_folder(self.folder) / ".lock"):  # two at once: the second takes the day of the first
                if not path.is_file():
                    self._create(path, about)
        identity = read_record(path, "delete the folder, and it is made again, or name another one")
        for part, meaning in (
            ("model", f"of another model ({identity.get('model_name', 'unknown')}, {identity.get('precision', '?')})"),
            ("tokenizer", "made with another tokenizer or chat template"),
            ("scoring_version", "made by another version of the scoring code"),
            ("format", "in another format"),
        ):
            if identity.get(part) != self.identity[part]:
                raise BapoError(
                    f"The anchored data in {self.folder} are {meaning} and cannot serve {about['model_name']} "
                    f"({about['precision']}): name another folder with --anchored-store, or leave it out."
                )
        if self.today is not None and "today" in identity:
            self.today = _day(path, identity["today"])
        elif self.today is not None:
            write_record(path, {**identity, "today": self.today.isoformat()})

    def _create(self, path: Path, about: dict[str, Any]) -> None:
        if any(p.name != ".lock" and not p.name.startswith(f".{_MANIFEST}.") for p in self.folder.iterdir()):
            raise BapoError(f"{self.folder} is not empty and holds no anchored data: name an empty folder.")
        dated = {} if self.today is None else {"today": self.today.isoformat()}
        write_record(path, {**self.identity, **about, **dated})


def _ids(value: Any) -> TokenIds:
    if not value or not all(type(number) is int and number >= 0 for number in value):
        raise ValueError("token ids that are none")
    return tuple(value)


def _logp(value: Any) -> float:
    if type(value) is not float or not math.isfinite(value):
        raise ValueError("a log-prob that is no number")
    return value


def _day(path: Path, text: Any) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except (ValueError, TypeError) as error:
        raise BapoError(f"{path} is damaged: delete the folder, and it is made again.") from error
