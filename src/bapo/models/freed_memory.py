"""Memory that is freed at one training step and asked for again at the next."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

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
