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
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from bapo.anchoring.generate import GENERATION_VERSION, GenerationSettings, Response
from bapo.anchoring.index import INDEX, Names, StoreIndex
from bapo.anchoring.kept import exact, shared_ids
from bapo.anchoring.known import MANIFEST, STORES, note_store
from bapo.anchoring.probe import Probe
from bapo.errors import BapoError, foreign
from bapo.files import LOCK, is_hidden, locked, make_folder, read_record, remove_staged, write_record
from bapo.journal import Journal
from bapo.likelihood import TokenIds
from bapo.models import LoadedModel, cache_folder, machine, model_fingerprint, tokenizer_fingerprint
from bapo.settings import SCORING_VERSION

FORMAT = 3
"""Of the files in a store."""

_PROBE = "probe.json"
_BESIDE = ("uses", "records")
"""Folders that say whom a store is for, and what was found in it."""

_AGAIN = "delete that file, and it is made again"
_ALL_AGAIN = "delete that file, and all of it is generated or scored again, which takes as long as it did"


@dataclass(frozen=True, slots=True)
class Score:
    """Reference log-prob of a response: the sum, and each token's where it was asked for (nats)."""

    logp: float
    tokens: array[float] | None = None


def group_key(*ids: TokenIds) -> str:
    """Key of a prompt, or of a prompt and a response, by their token ids."""
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:32]


class AnchorStore:
    """The folder with a model's base responses and scores.

    Args:
        folder: where it lies, made on first use; None for the user's cache folder.
        model: the reference model. A store of another model is refused.

    Attributes:
        today: the moment that a chat template takes for now; None where the template writes no date.

    Raises:
        BapoError: the folder holds something else, or belongs to another model or scoring version.
    """

    def __init__(self, folder: Path | None, model: LoadedModel) -> None:
        self.identity = {
            "format": FORMAT,
            "model": model_fingerprint(model.model),
            "tokenizer": tokenizer_fingerprint(model.tokenizer),
            "scoring_version": SCORING_VERSION,
        }
        self.folder = folder or cache_folder() / STORES / self._name
        self.end_ids = model.chat.end_ids
        self.today = model.chat.today
        self._about = {"model_name": model.name, "precision": model.precision, "machine": machine(model.model.device)}
        self._check_or_create()
        note_store(self.folder, cache_folder())
        self._journals: dict[str, Journal] = {}
        self._index: StoreIndex | None = None

    @classmethod
    def in_cache(cls, model: LoadedModel) -> AnchorStore:
        """The model's store in the user's cache folder."""
        return cls(None, model)

    @property
    def _name(self) -> str:
        """Of its folder in the cache."""
        parts = (self.identity["model"], self.identity["tokenizer"])
        return hashlib.sha256(f"{parts}{SCORING_VERSION}{FORMAT}".encode()).hexdigest()[:16]

    @contextmanager
    def writing(self, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
        """Hold the store, for all that is read from it and written to it; another process waits, then sees that.

        Args:
            on_wait: called once where another process holds the store.

        Raises:
            BapoError: the folder cannot be locked, or was changed or deleted meanwhile.
        """
        with locked(self.folder / LOCK, on_wait):
            for folder in (self.folder, self.folder / "uses"):  # all that is written with this lock
                remove_staged(folder)
            if not (self.folder / MANIFEST).is_file():  # the folder was deleted meanwhile, and the lock made it again
                self._create()
            self._journals, self._index = {}, StoreIndex(self.folder)
            try:
                yield
                self._check_written()
            except BaseException:
                with suppress(Exception):  # the index can be made again, and what went wrong is to be told
                    self._index.commit(last=True)
                raise
            else:
                self._index.commit(last=True)
            finally:
                self._index.close()
                self._index = None

    @property
    def index(self) -> StoreIndex:
        """Of what the store holds; inside of `writing`."""
        assert self._index is not None, "the store is not held"
        return self._index

    def _check_written(self) -> None:
        """What was kept is there: nobody deleted the folder, or wrote into it in spite of the lock."""
        for journal in self._journals.values():
            journal.check()
        if not (self.folder / MANIFEST).is_file():
            raise BapoError(f"{self.folder} was deleted while anchored data were written: start the command again.")

    def answered(self, settings: GenerationSettings, prompts: Collection[str]) -> set[str]:
        """Those prompts, by their keys, that have base responses by one way of generating."""
        journal = self._base_journal(settings)
        with foreign(f"{journal.path} is damaged", _ALL_AGAIN):
            return {name.hex() for name in self.index.known(journal, _names(prompts))}

    def bases(self, settings: GenerationSettings, prompts: Collection[str]) -> dict[str, tuple[Response, ...]]:
        """Base responses to those of the prompts that have some, by their keys, for one way of generating."""
        journal = self._base_journal(settings)
        with foreign(f"{journal.path} is damaged", _ALL_AGAIN):
            return {
                name.hex(): tuple(Response(_ids(r["ids"]), bool(r["ended"])) for r in record["responses"])
                for name, record in self.index.records(journal, _names(prompts))
            }

    def add_bases(self, settings: GenerationSettings, batch: dict[str, tuple[Response, ...]]) -> None:
        """Keep the base responses of one batch of prompts."""
        self.index.append(
            self._base_journal(settings),
            [
                {"prompt": key, "responses": [{"ids": list(r.ids), "ended": r.ended} for r in responses]}
                for key, responses in batch.items()
            ],
        )

    def unscored(self, keys: Collection[str], as_base: Collection[str] = ()) -> set[str]:
        """Those prompts with a response, by their keys, that have no score; of base responses none of each token."""
        journal, names = self._score_journal(), {_score_name(key, key in as_base): key for key in keys}
        with foreign(f"{journal.path} is damaged", _ALL_AGAIN):
            return {names[name] for name in names.keys() - self.index.known(journal, names)}

    def scores(self, keys: Collection[str], as_base: Collection[str] = ()) -> dict[str, Score]:
        """Reference log-probs of those that have one, by the keys of prompt and response.

        Args:
            keys: which.
            as_base: those whose tokens' log-probs are wanted too.
        """
        journal, names = self._score_journal(), {_score_name(key, key in as_base): key for key in keys}
        with foreign(f"{journal.path} is damaged", _ALL_AGAIN):
            return {
                names[name]: _score(record, with_tokens=names[name] in as_base)
                for name, record in self.index.records(journal, names)
            }

    def add_scores(self, batch: dict[str, Score]) -> None:
        """Keep the scores of one batch of responses."""
        self.index.append(
            self._score_journal(),
            [
                {"key": key, "logp": score.logp} | ({} if score.tokens is None else {"tokens": list(score.tokens)})
                for key, score in batch.items()
            ],
        )

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
        return self._journal(f"base-{mark}.jsonl", names_of_record)

    def _score_journal(self) -> Journal:
        return self._journal("logps.jsonl", names_of_record)

    def _journal(self, name: str, names: Names) -> Journal:
        if name not in self._journals:
            journal = Journal(self.folder / name)
            self.index.add_journal(journal, names)
            self._journals[name] = journal
        return self._journals[name]

    def read_journals(self, settings: GenerationSettings) -> None:
        """Find out whether the journals are what the index knows of them.

        Raises:
            BapoError: one cannot be read, or is damaged.
        """
        self._base_journal(settings), self._score_journal()

    def _check_or_create(self) -> None:
        path = self.folder / MANIFEST
        if not path.is_file():
            with locked(make_folder(self.folder) / LOCK):  # two at once: the second takes the day of the first
                if not path.is_file():
                    self._create()
        identity = read_record(path, "delete the folder, and it is made again, or name another one")
        for part, meaning in (
            ("model", f"of another model ({identity.get('model_name', 'unknown')}, {identity.get('precision', '?')})"),
            ("tokenizer", "made with another tokenizer or chat template"),
            ("scoring_version", "made by another version of the scoring code"),
            ("format", "in another format"),
        ):
            if identity.get(part) != self.identity[part]:
                raise BapoError(
                    f"The anchored data in {self.folder} are {meaning} and cannot serve {self._about['model_name']} "
                    f"({self._about['precision']}): name another folder with --anchored-store, or leave it out."
                )
        if self.today is not None and "today" in identity:
            self.today = _day(path, identity["today"])
        elif self.today is not None:
            write_record(path, {**identity, "today": self.today.isoformat()})

    def _create(self) -> None:
        beside = (
            path.name in _BESIDE or is_hidden(path) or path.name.startswith(INDEX) for path in self.folder.iterdir()
        )
        if not all(beside):
            raise BapoError(f"{self.folder} is not empty and holds no anchored data: name an empty folder.")
        for left in self.folder.glob(f"{INDEX}*"):  # of a store that was deleted, which may have been another model's
            left.unlink()
        dated = {} if self.today is None else {"today": self.today.isoformat()}
        write_record(self.folder / MANIFEST, {**self.identity, **self._about, **dated})


def _names(keys: Iterable[str]) -> list[bytes]:
    return [bytes.fromhex(key) for key in keys]


def _score_name(key: str, with_tokens: bool) -> bytes:
    return bytes.fromhex(key) + b"+" * with_tokens


def names_of_record(record: Mapping[str, Any]) -> tuple[bytes, ...]:
    """By which a journal's record is found; a score with each token's is found as such, and as one of the sum."""
    if "prompt" in record:
        return (bytes.fromhex(record["prompt"]),)
    name = bytes.fromhex(record["key"])
    return (name, name + b"+") if "tokens" in record else (name,)


def _score(record: Mapping[str, Any], *, with_tokens: bool) -> Score:
    return Score(_logp(record["logp"]), exact([_logp(logp) for logp in record["tokens"]]) if with_tokens else None)


def _ids(value: Any) -> TokenIds:
    if not value or not all(type(number) is int and number >= 0 for number in value):
        raise ValueError("token ids that are none")
    return shared_ids(value)


def _logp(value: Any) -> float:
    if type(value) is not float or not math.isfinite(value):
        raise ValueError("a log-prob that is no number")
    return value


def forget(folder: Path, prompts: Collection[str], scores: Collection[str]) -> int:
    """Take base responses to prompts, and scores, out of a store, by their keys; its lock is held.

    The index, which has token ids, and what the reference said to a few responses go with them: they are made again.

    Returns:
        How many there were.

    Raises:
        BapoError: a journal is damaged, or cannot be written.
    """
    if prompts or scores:
        for path in (*folder.glob(f"{INDEX}*"), folder / _PROBE):
            path.unlink(missing_ok=True)
    forgotten = Journal(folder / "logps.jsonl").keep(lambda record: record["key"] not in scores)
    for path in sorted(folder.glob("base-*.jsonl")):
        forgotten += Journal(path).keep(lambda record: record["prompt"] not in prompts)
    return forgotten


def _day(path: Path, text: Any) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except (ValueError, TypeError) as error:
        raise BapoError(f"{path} is damaged: delete the folder, and it is made again.") from error
