"""Memory that is freed at one training step and asked for again at the next."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -2, -3, -8  # of mallopt(3)
_LARGEST_MMAP_THRESHOLD = 32 * 2**20


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, for use by later tensors on the CPU; for the rest of its life.

    The C library of Linux (glibc) gives large pieces back to the system as soon as they are freed. A training step
    frees and asks for gigabytes, and the system hands them out anew a page of 4 KB at a time, zeroed.

    Returns:
        Whether the C library has such a setting and took it.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    mallopt(_TRIM_THRESHOLD, -1)  # never
    mallopt(_TOP_PAD, 64 * 2**20)
    mallopt(_ARENA_MAX, 1)  # what one thread frees, another can have
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD) == 1)
