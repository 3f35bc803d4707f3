"""The exception and the warning that a user is meant to read, and the door through which foreign errors become it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bapo.visible import visible

LONGEST_SENTENCE, LONGEST_REASON = 700, 200
"""Characters of a sentence, and of what another library says in one: a damaged file can hold values of any length."""


class BapoError(Exception):
    """Something the user can mend, in one sentence: what is wrong, where, and what to do.

    The command line prints the message alone, without a traceback, and exits with code 2 (``BAPO_DEBUG=1`` shows the
    traceback, with the error that it came from). The sentence is one line; a very long one is cut in its middle, since
    what went wrong stands at its beginning and what to do at its end.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(_cut_middle(visible(" ".join(sentence.split()), lines=False), LONGEST_SENTENCE))


class BapoWarning(UserWarning):
    """Something that is not wrong but that the user should know, in one sentence."""


@contextmanager
def foreign(failed: str, todo: str) -> Iterator[None]:
    """Code of other libraries, which may raise anything: what it raises becomes a sentence.

    Args:
        failed: what failed and where, e.g. ``The tokenizer of mine/model could not be read``.
        todo: what to do, e.g. ``download the model again``.

    Raises:
        BapoError: ``failed (the error's first line): todo.``; an error that is one already stays as it is.
    """
    try:
        yield
    except BaseException as error:
        is_panic = type(error).__name__ == "PanicException"  # of Rust code, which no common class catches
        if isinstance(error, BapoError) or not (is_panic or isinstance(error, Exception)):
            raise
        raise BapoError(f"{failed} ({first_line(error)}): {todo}.") from error


def first_line(error: BaseException) -> str:
    """What an error says, its first line; its type where it says nothing."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, MemoryError):
        return "there is not enough memory for it"
    if isinstance(error, KeyError) and len(error.args) == 1:
        return _cut_middle(f"it lacks {error}", LONGEST_REASON)
    lines = str(error).strip().splitlines()
    if len(lines) > 1 and lines[0].endswith(":"):
        lines[0] += f" {lines[1].strip()}"
    return _cut_middle(lines[0].strip().removesuffix("."), LONGEST_REASON) if lines else type(error).__name__


def _cut_middle(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    return f"{text[: longest * 2 // 3]} ... {text[-longest // 3 :]}"
