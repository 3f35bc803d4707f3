"""Files: reading what users and other programs wrote, and writing what a killed process leaves whole."""

from __future__ import annotations

import codecs
import errno
import hashlib
import io
import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
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

CHECKSUM_DIGITS = 16  # of a checksum

NO_LINK = getattr(os, "O_NOFOLLOW", 0)
"""Flag of `os.open`, where the system has it: a link is not followed."""

DEEPEST = 100
"""Levels in which what is read may be nested."""

LOCK = ".lock"
"""The lock of a folder."""

_STAGED = ".part-"
"""How the name of a file begins that is not written to its end."""

UNREADABLE = "\ufffd"
"""What stands where a letter could not be read."""


# ---- what disks say -------------------------------------------------------------------------------------------------


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Reading a file, by whatever code: what the system says against it becomes a sentence.

    Raises:
        BapoError: an `OSError` came; names the path and what to do.
    """
    try:
        yield
    except OSError as error:
        raise BapoError(f"{path} cannot be read ({reason(error)}): see that it is a file that you may read.") from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """`reading` for writing a file, or into a folder."""
    try:
        yield
    except OSError as error:
        raise BapoError(
            f"{path} could not be written ({reason(error)}): see that there is room, and that you may write there."
        ) from error


def reason(error: OSError) -> str:
    """What the system says, without the path."""
    return error.strerror or first_line(error)


# ---- reading --------------------------------------------------------------------------------------------------------


def read_bytes(path: Path) -> bytes:
    """A file's content.

    Raises:
        BapoError: it cannot be read.
    """
    with reading(path):
        return path.read_bytes()


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
    start, number = 0, 0
    while start <= len(text):  # a list of all lines would hold the whole text once more
        end = text.find("\n", start)
        line = text[start : end if end >= 0 else len(text)]
        start, number = start + len(line) + 1, number + 1
        if line.strip():
            where = f"{name} line {number}"
            yield where, parse_json(line, where)


def parse_json(text: str, where: str) -> Any:
    """A JSON value; halves of surrogate pairs in it become `UNREADABLE`.

    Raises:
        BapoError: it is not valid, `is_deep`, or a key repeats, of which `json` silently takes the last; names the
            place.
    """
    try:
        value = json.loads(text, object_pairs_hook=_each_key_once)
        if text.count("[") + text.count("{") > DEEPEST and is_deep(value):
            raise RecursionError
    except (ValueError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else first_line(error)
        if isinstance(error, json.JSONDecodeError) and "\n" not in text.strip():
            why = f"{error.msg}, at character {error.colno}"  # the line is named already
        raise BapoError(f"{where} is not valid JSON ({why}): mend or remove it.") from error
    return readable(value) if _ESCAPED_SURROGATE.search(text) else value


def is_deep(value: Any) -> bool:
    """Whether a value is nested in more than `DEEPEST` levels, which what looks into it would break off at."""
    level = [value]
    for _ in range(DEEPEST):
        if not level:
            return False
        level = [
            inner
            for outer in level
            if isinstance(outer, Mapping | list | tuple)
            for inner in (outer.values() if isinstance(outer, Mapping) else outer)
        ]
    return any(isinstance(inner, Mapping | list | tuple) for inner in level)


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        raise ValueError(f"the key {next(name for name in content if counts[name] > 1)!r} repeats")
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


def make_folder(path: Path, todo: str = "name another one", *, above: bool = True) -> Path:
    """The folder, made with those above it where it is not there, for the user alone; one that is there stays as it is.

    Args:
        path: the folder.
        todo: what to do where it cannot be made.
        above: whether those above it are made too. Where one must be there, it was deleted meanwhile, and half of it
            made again would be in the way of the next start.

    Raises:
        BapoError: it cannot be made.
    """
    try:
        folders = (path, *path.parents) if above else (path,)
        for missing in reversed([folder for folder in folders if not folder.exists()]):
            missing.mkdir(mode=0o700, exist_ok=True)
        path.mkdir(exist_ok=True)
    except OSError as error:
        in_its_way = isinstance(error, FileExistsError | NotADirectoryError)
        why = "a file is in its way" if in_its_way else reason(error)
        raise BapoError(f"The folder {path} cannot be made ({why}): {todo}.") from error
    return path


@contextmanager
def private() -> Iterator[None]:
    """What any code of this process makes meanwhile is for its user alone: other libraries know no modes.

    The command is so from its start to its end. In a process of somebody else's it is only so while a library writes.
    """
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: a reader, or a start after a kill or a power cut, finds the old or the new.

    Only its owner may read it, and where a link lies in its place, the link is replaced and not what it leads to.

    Raises:
        BapoError: it cannot be written.
    """
    with writing(path):
        descriptor, name = tempfile.mkstemp(prefix=_STAGED, dir=path.parent)
        staged = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            staged.replace(path)
        except BaseException:
            staged.unlink(missing_ok=True)
            raise
        _flush(path.parent)


def save_figure(figure: Any, path: Path, **how: Any) -> None:
    """`write_bytes` of a figure of matplotlib's, in the format that the file's name ends with; its folder is made.

    Raises:
        BapoError: it cannot be written.
    """
    drawn = io.BytesIO()
    figure.savefig(drawn, format=path.suffix.removeprefix("."), **how)
    make_folder(path.parent)
    write_bytes(path, drawn.getvalue())


def flush_folder(folder: Path) -> None:
    """Wait until all files that others wrote below a folder are on the disk, so that a power cut takes none of them.

    Raises:
        BapoError: the disk refuses.
    """
    with writing(folder):
        for path in folder.rglob("*"):
            _flush(path)
        _flush(folder)


def flush_name(path: Path) -> None:
    """Wait until the disk knows that a file or a folder, which is on it, has this name.

    Raises:
        BapoError: the disk refuses.
    """
    with writing(path):
        _flush(path.parent)


def remove_staged(folder: Path) -> None:
    """Remove what killed processes had begun to write into a folder; who calls this holds the lock of its writers."""
    for path in folder.glob(f"{_STAGED}*"):
        with suppress(OSError):
            path.unlink()


def is_hidden(path: Path) -> bool:
    """Whether a file is none of a folder's content, but a lock or something that was not written to its end."""
    return path.name == LOCK or path.name.startswith(_STAGED)


def _flush(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY | NO_LINK)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.ELOOP):  # a folder that may only be written, or a link
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EROFS, errno.ENOTSUP, errno.EBADF):  # some disks flush no folders
            raise
    finally:
        os.close(descriptor)


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
    record = record_in(read_bytes(path))
    if record is None:
        raise BapoError(f"{path} is damaged, or of another version of bapo: {todo}.")
    return record


def record_in(content: bytes) -> dict[str, Any] | None:
    """What `write_record` wrote, in the content of its file; None where that is damaged."""
    try:
        record: dict[str, Any] = json.loads(content)
        whole = record.pop("checksum") == _checksum_of_record(record)
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError):
        whole = False
    return record if whole else None


def checksum(content: bytes) -> str:
    """By which a damaged file, or a part of one, is known: hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()[:CHECKSUM_DIGITS]


def checksum_of_file(path: Path) -> str:
    """`checksum` of a file of any size.

    Raises:
        BapoError: it cannot be read.
    """
    with reading(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:CHECKSUM_DIGITS]


def _checksum_of_record(content: Mapping[str, Any]) -> str:
    return checksum(json.dumps(content, sort_keys=True).encode())


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
