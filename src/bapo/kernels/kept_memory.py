"""Memory that is freed at one training step and asked for again at the next."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -2, -3, -8  # of mallopt(3)
_LARGEST_MMAP_THRESHOLD = 32 * 2**20

_lock = threading.Lock()
_users = 0


@contextmanager
def kept_memory(device: torch.device, wanted: bool = True) -> Iterator[bool]:
    """Inside, this process keeps the memory that it frees, for use by later tensors on the CPU.

    The C library of Linux (glibc) gives large pieces back to the system as soon as they are freed. A training step
    frees and asks for gigabytes, and the system hands them out anew a page of 4 KB at a time, zeroed. Afterwards what
    is free is given back, and the C library is as it makes itself once a process has freed a large piece.

    Args:
        device: where tensors lie; nothing is done for an accelerator.
        wanted: whether anything is done.

    Yields:
        Whether memory is kept: the C library has such a setting and took it.
    """
    if not wanted or device.type != "cpu":
        yield False
        return
    global _users
    with _lock:
        _users += 1
        kept = _set(trim=-1, pad=64 * 2**20, arenas=1)  # what one thread frees, another can have
    try:
        yield kept
    finally:
        with _lock:
            _users -= 1
            if kept and not _users:
                _set(trim=2 * _LARGEST_MMAP_THRESHOLD, pad=2**17, arenas=0)
                ctypes.CDLL(None).malloc_trim(0)


def _set(*, trim: int, pad: int, arenas: int) -> bool:
    """How much may lie free at the end, how much more is asked for at once (bytes), and the arenas; 0 for its own."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    mallopt(_TRIM_THRESHOLD, trim)
    mallopt(_TOP_PAD, pad)
    mallopt(_ARENA_MAX, arenas)
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD) == 1)


def reusable_empty(like: Tensor, shape: Sequence[int] | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """``torch.empty_like``, contiguous, from memory in which, once freed, another of the same size finds room.

    On a CPU, torch asks for memory that begins at a multiple of 64 bytes. The C library of Linux (glibc before 2.39)
    takes a larger piece for it and frees the edges, in which small things settle, so that no request of the same kind
    and size fits there again: a pass that frees and asks for tensors of one size layer by layer grows and grows. A
    request without that wish, which this is, fits.
    """
    size, dtype = like.shape if shape is None else torch.Size(shape), dtype or like.dtype
    if like.device.type != "cpu" or torch.compiler.is_compiling() or not size.numel():
        return torch.empty(size, dtype=dtype, device=like.device)
    memory = torch.from_numpy(np.empty(size.numel() * dtype.itemsize, np.uint8))
    return memory.view(dtype).view(size).detach()  # no view to autograd, so that models may change it in place
