"""A stand-in for GPUs and AMX: products whose rounding depends on the number of rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

SWITCH = "BAPO_TEST_ROUNDING_BY_ROWS"
"""Environment variable by which a command in another process gets such products; see `tests.command`."""


@contextmanager
def rounding_by_rows() -> Iterator[None]:
    """Inside, every product of matrices is added up in two parts, and where it is parted depends on its rows."""
    mm, addmm_, linear = torch.mm, Tensor.addmm_, F.linear

    def parting(left: Tensor) -> int:
        inner = left.shape[1]
        return max(1, inner * (1 + left.shape[0] % 7) // 9)

    def by_rows_mm(left: Tensor, right: Tensor, *, out: Tensor | None = None) -> Tensor:
        at = parting(left)
        product = mm(left[:, :at], right[:at])
        if at < left.shape[1]:
            addmm_(product, left[:, at:], right[at:])
        return product if out is None else out.copy_(product)

    def by_rows_addmm_(self: Tensor, left: Tensor, right: Tensor, **factors: Any) -> Tensor:
        if factors:
            return addmm_(self, left, right, **factors)
        at = parting(left)
        addmm_(self, left[:, :at], right[:at])
        return addmm_(self, left[:, at:], right[at:]) if at < left.shape[1] else self

    def by_rows_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if not x.is_floating_point() or x.dtype != weight.dtype:
            return linear(x, weight, bias)
        product = by_rows_mm(x.reshape(-1, x.shape[-1]), weight.mT).view(*x.shape[:-1], weight.shape[0])
        return product if bias is None else product + bias

    torch.mm, Tensor.addmm_, F.linear = by_rows_mm, by_rows_addmm_, by_rows_linear
    try:
        yield
    finally:
        torch.mm, Tensor.addmm_, F.linear = mm, addmm_, linear
