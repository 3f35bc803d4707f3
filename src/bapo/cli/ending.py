"""How a command begins and ends: what it prints to, what stops it, and the exit codes of all that can happen.

Nothing is imported here that takes time, so that Ctrl-C is met from the start.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
import traceback
from types import FrameType
from typing import Any, TextIO

from bapo.errors import BapoError, first_line
from bapo.stopped import BY_SIGNAL, STOPPED, meet_signals
from bapo.visible import visible

ERROR = 2
"""Exit code of every error; 1 and 3 are what a gate says of a model."""

CLOSED_PIPE = BY_SIGNAL + 13
"""As if SIGPIPE had ended the command, which Python ignores."""

_ROOM = "see that there is room and that you may use it, and start the same command again; what was finished is kept."

NO_TELEMETRY = {"HF_HUB_DISABLE_TELEMETRY": "1", "RAY_USAGE_STATS_ENABLED": "0"}
"""What libraries are told, unless the user's environment tells them something else."""

DEBUG = "BAPO_DEBUG=1 shows where, for a report of it."


class _Stopped(BaseException):
    """A signal that asks to stop. Not a KeyboardInterrupt, which libraries turn into what they like."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class _ReaderGone(BaseException):
    """Who read what is printed has gone, as `head` does. Not an OSError: other pipes and sockets break too."""


class _Printed(io.TextIOWrapper):
    """Standard output or error: codes are shown, and a letter that the terminal cannot print becomes a question mark.

    Attributes:
        obeyed: the same stream for who writes codes that are meant.
    """

    def __init__(self, stream: Any) -> None:
        super().__init__(
            stream.buffer, encoding=stream.encoding, errors="replace", line_buffering=stream.line_buffering
        )
        self._stream = stream  # whose end would close the buffer
        self.obeyed = _Obeyed(self)

    def write(self, text: str) -> int:
        again = text.startswith("\r")  # a bar of a library, which begins its line anew
        self.write_obeyed("\r" * again + visible(text[again:]))
        return len(text)

    def write_obeyed(self, text: str) -> int:
        try:
            return super().write(text)
        except BrokenPipeError:
            raise _ReaderGone from None

    def flush(self) -> None:
        try:
            super().flush()
        except BrokenPipeError:
            raise _ReaderGone from None


class _Obeyed:
    def __init__(self, printed: _Printed) -> None:
        self._printed, self.write = printed, printed.write_obeyed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._printed, name)


def main() -> None:
    """Run the command. What the user can mend is one sentence and exit code 2, never a traceback.

    So is an error that nobody foresaw; ``BAPO_DEBUG=1`` shows the traceback of either. What the command writes, itself
    or by a library, is for its user alone, and no library sends home what it does.
    """
    os.umask(0o077)
    for name, value in NO_TELEMETRY.items():
        os.environ.setdefault(name, value)
    sys.stdout, sys.stderr = _printed(sys.stdout), _printed(sys.stderr)
    sys.unraisablehook = _stop_again
    code = _run()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (_ReaderGone, OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # the interpreter flushes once more
            code = code or CLOSED_PIPE
    sys.exit(code)


def _run() -> int:
    try:
        try:
            _work()
        except SystemExit as ended:
            sys.stdout.flush()
            return _code(ended)
    except _ReaderGone:
        return CLOSED_PIPE
    except _Stopped as stopped:
        meet_signals()  # it may have come before they were
        _say(STOPPED)
        return BY_SIGNAL + stopped.number
    except BapoError as error:
        _say(str(error))
    except OSError as error:
        where = "The disk or the network" if error.filename is None else str(error.filename)
        _say(f"{where} cannot be used ({error.strerror or first_line(error)}): {_ROOM}")
    except BaseException as error:  # what breaks off in Rust, for one, is no Exception
        _say(f"stopped by an error that nobody foresaw ({type(error).__name__}: {first_line(error)}): {DEBUG}")
    return ERROR


def _work() -> None:
    """What was asked for. Until it is over a signal is raised, so that all is put in order; later it ends all."""
    try:
        _on_signals(_stop)
        from bapo.cli.app import app

        app()
    finally:
        meet_signals()


def _code(ended: SystemExit) -> int:
    """The exit code that the command gave; what others end with must not look like a gate's word."""
    import typer

    why = ended.__context__
    if isinstance(why, typer.Exit) or ended.code in (None, 0, ERROR):
        return ended.code if isinstance(ended.code, int) else 0
    said = ended.code if isinstance(ended.code, str) else first_line((why and why.__cause__) or why or ended)
    _say(f"stopped ({said}): {DEBUG}")
    return ERROR


def _printed(stream: Any) -> TextIO:
    if stream is None:  # closed by who started the command
        return open(os.devnull, "w")
    return _Printed(stream) if hasattr(stream, "buffer") else stream


def _on_signals(do: Any) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as in a shell's background jobs
            signal.signal(number, do)


def _stop(number: int, frame: FrameType | None) -> None:
    raise _Stopped(number)


def _stop_again(unraisable: sys.UnraisableHookArgs) -> None:
    """Where nothing can be raised, in a finalizer say, a signal's exception would be printed and forgotten."""
    if isinstance(unraisable.exc_value, _Stopped):
        main, number = threading.main_thread().ident, unraisable.exc_value.number
        threading.Timer(0.01, signal.pthread_kill, (main, number)).start()  # which wakes it, if it sleeps
    else:
        sys.__unraisablehook__(unraisable)


def _say(sentence: str) -> None:
    try:
        if os.environ.get("BAPO_DEBUG"):
            traceback.print_exc()
        print(f"bapo: {sentence}", file=sys.stderr, flush=True)
    except (_ReaderGone, OSError):  # standard error may lie on a disk that is full
        pass
