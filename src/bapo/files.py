"""Files: reading what users and other programs wrote, and writing what a killed process leaves whole."""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bapo.errors import BapoError, first_line, foreign

_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)
"""What a file of another encoding than UTF-8 begins with. UTF-32's mark begins with UTF-16's."""

_DIGITS = 16  # of a checksum

UNREADABLE = "\ufffd"
"""What stands where a letter could not be read."""


# ---- reading --------------------------------------------------------------------------------------------------------


def read_bytes(path: Path) -> bytes:
    """A file's content.

    Raises:
        BapoError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise _not_read(path, error) from error


def read_text(path: Path) -> str:
    """A text file in UTF-8, or in the UTF-16 or UTF-32 that its first bytes announce; line ends as they are.

    No other encoding can be told from its bytes for certain, so none is guessed.

    Raises:
        BapoError: it cannot be read, or is in another encoding; names the line.
    """
    content = read_bytes(path)
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        kind = encoding.removesuffix("-sig").upper()
        raise BapoError(f"{path} is not {kind} text (line {line}, byte {error.start}): save it as UTF-8.") from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise BapoError(
            f"{path} holds a NUL character (line {line}), so it is damaged or UTF-16 that does not say so: "
            "save it as UTF-8."
        )
    return text


def json_lines(text: str, name: str | Path) -> Iterator[tuple[str, Any]]:
    """The values of a text with one JSON value a line, with their places; empty lines are passed over.

    Lines end at line feeds only: what else Unicode calls a line end may stand inside a JSON string.

    Raises:
        BapoError: a line is no JSON; names it.
    """
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"{name} line {number}"
            yield where, parse_json(line, where)


def parse_json(text: str, where: str) -> Any:
    """A JSON value; halves of surrogate pairs in it become `UNREADABLE`.

    Raises:
        BapoError: it is not valid, or a key repeats, of which `json` silently takes the last; names the place.
    """
    try:
        value = json.loads(text, object_pairs_hook=_each_key_once)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else first_line(error)
        if isinstance(error, json.JSONDecodeError) and "\n" not in text.strip():
            reason = f"{error.msg}, at character {error.colno}"  # the line is named already
        raise BapoError(f"{where} is not valid JSON ({reason}): mend or remove it.") from error
    return readable(value) if _ESCAPED_SURROGATE.search(text) else value


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in content if names.count(name) > 1)!r} repeats")
    return content


_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def readable(value: Any) -> Any:
    """A value in whose texts `UNREADABLE` stands for each half of a surrogate pair, which no tokenizer takes.

    Emojis that something cut in two leave such halves in data; a letter less in one text is no reason to refuse it.
    """
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        return value
    if isinstance(value, Mapping):
        return {readable(key): readable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [readable(inner) for inner in value]
    return value


# ---- writing --------------------------------------------------------------------------------------------------------


def make_folder(path: Path, todo: str = "name another one") -> Path:
    """The folder, made with those above it where it is not there.

    Args:
        path: the folder.
        todo: what to do where it cannot be made.

    Raises:
        BapoError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "a file is in its way" if isinstance(error, FileExistsError | NotADirectoryError) else _reason(error)
        raise BapoError(f"The folder {path} cannot be made ({reason}): {todo}.") from error
    return path


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: a reader, or a start after a kill, finds the old content or the new.

    Raises:
        BapoError: it cannot be written.
    """
    staging = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        try:
            with staging.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            staging.replace(path)
        finally:
            staging.unlink(missing_ok=True)
    except OSError as error:
        raise _not_written(path, error) from error


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of text in UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, content: Any) -> None:
    """`write_text` of content as JSON."""
    write_text(path, json.dumps(content, indent=1, default=str) + "\n")


def write_record(path: Path, content: Mapping[str, Any]) -> None:
    """`write_json` of an object, with a checksum of the rest under ``checksum``."""
    written = json.loads(json.dumps(content, default=str))
    write_json(path, {**written, "checksum": _checksum_of_record(written)})


def read_record(path: Path, todo: str) -> dict[str, Any]:
    """What `write_record` wrote.

    Args:
        path: the file.
        todo: what to do where it is damaged, e.g. ``delete the folder, and it is made again``.

    Raises:
        BapoError: it cannot be read, or is not what was written.
    """
    try:
        content = json.loads(read_bytes(path))
        whole = content.pop("checksum") == _checksum_of_record(content)
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError):
        whole = False
    if not whole:
        raise BapoError(f"{path} is damaged, or of another version of bapo: {todo}.")
    return content


def checksum(content: bytes) -> str:
    """By which a damaged file, or a part of one, is known: hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()[:_DIGITS]


def checksum_of_file(path: Path) -> str:
    """`checksum` of a file of any size.

    Raises:
        BapoError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:_DIGITS]
    except OSError as error:
        raise _not_read(path, error) from error


def _checksum_of_record(content: Mapping[str, Any]) -> str:
    return checksum(json.dumps(content, sort_keys=True).encode())


class Journal:
    """An append-only file of batches of records, a batch a line of JSON with its checksum.

    A line is written whole or, after a kill, not at all. Many may read; who appends holds a lock.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._size = self._whole = 0  # as it was last read or written: all of it, and without a torn last line

    def read(self) -> Iterator[list[dict[str, Any]]]:
        """All batches; a torn last line is passed over.

        Raises:
            BapoError: the file cannot be read, or a line is not what was written.
        """
        content = read_bytes(self.path) if self.path.exists() else b""
        self._size, self._whole = len(content), content.rfind(b"\n") + 1
        for number, line in enumerate(content[: self._whole].split(b"\n")[:-1], start=1):
            parsed = _LINE.fullmatch(line)
            if parsed is None or checksum(parsed["records"]) != parsed["checksum"].decode():
                raise BapoError(f"{self.path} is damaged at line {number}: delete that line, and it is made again.")
            yield json.loads(parsed["records"])

    def append(self, batch: list[dict[str, Any]]) -> None:
        """Write one batch behind all that was read, in place of a torn last line, and wait until it is on the disk.

        Raises:
            BapoError: it cannot be written, or the file is not as this process read or wrote it.
        """
        records = json.dumps(batch, separators=(",", ":")).encode()
        self.check()
        try:
            with self.path.open("ab") as file:
                file.truncate(self._whole)
                file.write(b'{"checksum":"%s","records":%s}\n' % (checksum(records).encode(), records))
                file.flush()
                os.fsync(file.fileno())
                self._size = self._whole = file.tell()
        except OSError as error:
            raise _not_written(self.path, error) from error

    def check(self) -> None:
        """Find out whether the file is still as this process read or wrote it.

        Raises:
            BapoError: it is not; somebody else changed or deleted it.
        """
        if (self.path.stat().st_size if self.path.is_file() else 0) != self._size:
            raise BapoError(
                f"{self.path} was changed or deleted by something else while it was written: start the command again."
            )


_LINE = re.compile(rb'\{"checksum":"(?P<checksum>[0-9a-f]{%d})","records":(?P<records>.*)\}' % _DIGITS)


@contextmanager
def locked(path: Path, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock at a path, which no other process holds meanwhile; the lock of a killed process is free.

    Args:
        path: the lock's file; its folder is there.
        on_wait: called once where another process holds it.

    Raises:
        BapoError: the folder cannot be written, or knows no locks.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    with foreign(f"{path} cannot be locked", "name a folder that can be written, on a disk that knows locks"):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if on_wait is not None:
                on_wait()
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _not_read(path: Path, error: OSError) -> BapoError:
    return BapoError(f"{path} cannot be read ({_reason(error)}): see that it is a file, and that you may.")


def _not_written(path: Path, error: OSError) -> BapoError:
    return BapoError(f"{path} could not be written ({_reason(error)}): see that there is room and that you may.")


def _reason(error: OSError) -> str:
    return error.strerror or first_line(error)
