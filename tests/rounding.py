"""A stand-in for GPUs and AMX: products whose rounding depends on the number of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

SWITCH = "BAPO_TEST_ROUNDING_BY_ROWS"
"""Environment variable by which a command in another process gets such products; see `tests.command`."""


Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""Of left (rows, inner) and right (inner, columns): their product, or it added to a third (rows, columns) in place."""


@contextmanager
def products(product: Product) -> Iterator[None]:
    """Inside, matrices are multiplied by ``product``, whoever asks: `torch.mm`, `addmm_` and linear layers."""
    mm, addmm_, linear = torch.mm, Tensor.addmm_, F.linear

    def own_mm(left: Tensor, right: Tensor, *, out: Tensor | None = None) -> Tensor:
        found = product(left, right, None)
        return found if out is None else out.copy_(found)

    def own_addmm_(self: Tensor, left: Tensor, right: Tensor, **factors: Any) -> Tensor:
        return addmm_(self, left, right, **factors) if factors else product(left, right, self)

    def own_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if not x.is_floating_point() or x.dtype != weight.dtype:
            return linear(x, weight, bias)
        found = product(x.reshape(-1, x.shape[-1]), weight.mT, None).view(*x.shape[:-1], weight.shape[0])
        return found if bias is None else found + bias

    torch.mm, Tensor.addmm_, F.linear = own_mm, own_addmm_, own_linear
    try:
        yield
    finally:
        torch.mm, Tensor.addmm_, F.linear = mm, addmm_, linear


MM, ADDMM_ = torch.mm, Tensor.addmm_


def rounding_by_rows() -> AbstractContextManager[None]:
    """Inside, every product of matrices is added up in two parts, and where it is parted depends on its rows."""

    def by_rows(left: Tensor, right: Tensor, onto: Tensor | None) -> Tensor:
        inner = left.shape[1]
        at = max(1, inner * (1 + left.shape[0] % 7) // 9)
        found = MM(left[:, :at], right[:at]) if onto is None else ADDMM_(onto, left[:, :at], right[:at])
        return ADDMM_(found, left[:, at:], right[at:]) if at < inner else found

    return products(by_rows)
