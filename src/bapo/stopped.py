"""What a signal that asks to stop says, and what meets it while a command is still being imported."""

from __future__ import annotations

# What `signal` is made of; that imports others first.
import _signal as signals  # type: ignore[import-not-found]
import os

STOPPED = "stopped; what was finished is kept, and the same command goes on from there."

BY_SIGNAL = 128
"""What shells add to the number of the signal that ended a command."""


def meet_signals() -> None:
    """Until the command itself meets them: nothing has begun yet that would have to be put in order."""
    for number in (signals.SIGINT, signals.SIGTERM):
        if signals.getsignal(number) is not signals.SIG_IGN:  # as in a shell's background jobs
            signals.signal(number, _end)


def _end(number: int, frame: object) -> None:
    try:
        os.write(2, f"bapo: {STOPPED}\n".encode())
    finally:
        os._exit(BY_SIGNAL + number)
