"""Records: finished work as data, versioned, with what it was made from.

A record is a JSON file with a checksum. What it was made of item by item (prompts, questions) lies in a Parquet file
beside it, which is opened when it is asked for. Work is done when its record is there and whole; there is no other list
of what is done.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from bapo.errors import BapoError, foreign
from bapo.files import checksum, make_folder, read_bytes, read_record, write_bytes, write_record
from bapo.results.places import without_places

if TYPE_CHECKING:
    from pydantic import TypeAdapter

Content = TypeVar("Content")

_READERS: dict[type[Any], TypeAdapter[Any]] = {}
"""By kind of content, made once: of a study's records there are thousands."""

_AGAIN = "delete it, and it is made again"


@dataclass(frozen=True, slots=True)
class Provenance:
    """What a record was made from, enough to make it again; a file says it without the places of this machine.

    Attributes:
        model: the model's name, and ``weights`` its fingerprint, with any adapter that it had.
        adapter: the adapter in question, if there is one, and ``adapter_weights`` the checksums of its files.
        data: fingerprints of the data by what they are.
        settings: all that can change the outcome.
        made_on: processor, instruction set, device, threads, package versions, and the model's noise floor there.
    """

    model: str
    weights: str
    adapter: str | None = None
    adapter_weights: str | None = None
    data: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    made_on: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Record(Generic[Content]):
    """A record as it was read or written.

    Attributes:
        path: its file.
        identity: hash of every setting that can change the outcome, and of the data.
        made_from: its provenance.
        content: what was found out.
    """

    path: Path
    identity: str
    made_from: Provenance
    content: Content
    _items: str | None = None

    def items(self) -> list[dict[str, Any]]:
        """What the content was made of, one row an item, opened now.

        Raises:
            BapoError: the file is gone or damaged.
        """
        import pyarrow.parquet as pq

        if self._items is None:
            return []
        path = _items_of(self.path)
        stored = read_bytes(path)
        if checksum(stored) != self._items:
            raise BapoError(f"{path} is damaged: delete it and {self.path.name}, and both are made again.")
        with foreign(f"{path} cannot be read", "delete it, and it is made again"):
            rows: list[dict[str, Any]] = pq.read_table(io.BytesIO(stored)).to_pylist()
        return rows


@dataclass(frozen=True)
class Kind(Generic[Content]):
    """A kind of record.

    Attributes:
        name: what it is called, also in its files.
        version: of its content. A file of another version is refused by a sentence.
        content: the type that its content has: a dataclass of numbers, texts and other such dataclasses.
        todo: what to do where a file cannot be used.
    """

    name: str
    version: int
    content: type[Content]
    todo: str = _AGAIN

    def write(
        self,
        path: Path,
        content: Content,
        *,
        identity: str,
        made_from: Provenance,
        items: Sequence[Mapping[str, Any]] = (),
    ) -> Record[Content]:
        """Write a record, its items first, so that a record that is there is whole; what it was made from, by names.

        Raises:
            BapoError: it cannot be written.
        """
        make_folder(path.parent)
        stored = _write_items(_items_of(path), items) if items else None
        made_from = Provenance(**without_places(asdict(made_from)))
        header = {"kind": self.name, "version": self.version, "identity": identity, "made_from": asdict(made_from)}
        write_record(path, {**header, "items": stored, "content": asdict(content)})  # type: ignore[call-overload]
        return Record(path, identity, made_from, content, stored)

    def read(self, path: Path) -> Record[Content]:
        """The record in a file.

        Raises:
            BapoError: there is none, or it is damaged, of another kind or of another version.
        """
        if not path.is_file():
            raise BapoError(f"There is no file {path} with {self.name}: make it first, or check the path.")
        stored = read_record(path, self.todo)
        if stored.get("kind") != self.name:
            raise BapoError(f"{path} holds {shown(stored.get('kind'))}, not {self.name}: name another file.")
        if stored.get("version") != self.version:
            raise BapoError(
                f"{path} holds {self.name} in version {stored.get('version')}, and this bapo reads version "
                f"{self.version}: {self.todo}."
            )
        content = typed(self.content, stored.get("content"), path, self.todo)
        with foreign(f"{path} is damaged", self.todo):
            made_from = Provenance(**stored["made_from"])
            return Record(path, stored["identity"], made_from, content, stored["items"])

    def find(self, path: Path, identity: str) -> Record[Content] | None:
        """The record in a file, if one is there and is of this identity: then its work is done.

        Raises:
            BapoError: a file is there and is damaged, of another kind or of another version.
        """
        if not path.is_file():
            return None
        record = self.read(path)
        whole = record._items is None or _items_of(path).is_file()
        return record if whole and record.identity == identity else None


def typed(content: type[Content], value: Any, path: Path, todo: str) -> Content:
    """What a file of ours holds, as a dataclass.

    Raises:
        BapoError: it is something else; says what the first fault is.
    """
    from pydantic import TypeAdapter, ValidationError

    reader: TypeAdapter[Content] = _READERS.get(content) or TypeAdapter(content)
    _READERS[content] = reader
    try:
        return reader.validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part)[:40] for part in first["loc"][:4]) or "content"
        raise BapoError(f"{path} is damaged ({place}: {first['msg'].lower()}): {todo}.") from error


def identity_of(**settings: Any) -> str:
    """Hash of all that can change an outcome, by name."""
    return checksum(json.dumps(settings, sort_keys=True, default=str).encode())


def shown(kind: Any) -> str:
    """A record's kind in a sentence."""
    return repr(kind)[:40] if kind is not None else "something else"


def _items_of(path: Path) -> Path:
    return path.with_suffix(".parquet")


def _write_items(path: Path, items: Sequence[Mapping[str, Any]]) -> str:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = dict.fromkeys(name for item in items for name in item)  # pyarrow takes those of the first row alone
    stored = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([{name: item.get(name) for name in columns} for item in items]), stored)
    write_bytes(path, stored.getvalue())
    return checksum(stored.getvalue())
