"""Kernels of single layers in use for a while: they take the place of a layer's forward, and give it back."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any

from torch import nn

from bapo.kernels.choice import Kernels, chosen
from bapo.kernels.fused_lora import fused_forwards
from bapo.kernels.lean_layers import lean_forwards
from bapo.models import bare_model, is_sharded

Forwards = dict[nn.Module, Callable[..., Any]]

FINDERS: dict[str, Callable[[nn.Module], Forwards]] = {"fused-lora": fused_forwards, "lean-layers": lean_forwards}
"""Kernels of single layers: each gives the layers of a model that it fits, and their other forwards.

A layer that has a forward of its own already, set by whomever, is none of them.
"""


class FastLayers:
    """The layers of a model that kernels fit, found and probed once. Inside of a ``with`` they are in use.

    Entering again inside changes nothing.

    Args:
        model: a model; changed inside of a ``with`` only.
        kernels: which may be used; those that are none of single layers do not matter here.
    """

    def __init__(self, model: nn.Module, kernels: Kernels = "auto") -> None:
        self._below = _modules_below(model)
        self._forwards: Forwards = {}
        self._in_use: list[nn.Module] = []
        self._depth = 0
        names = chosen(kernels)
        for name, find in FINDERS.items():
            if name in names:
                self._forwards |= find(model)

    def __len__(self) -> int:
        return len(self._forwards)

    def are_of(self, model: nn.Module) -> bool:
        """Whether the model has the modules that it had when they were found."""
        now = _modules_below(model)
        return len(now) == len(self._below) and all(
            forward is known for forward, known in zip(now, self._below, strict=True)
        )

    def __enter__(self) -> FastLayers:
        self._depth += 1
        if self._depth == 1:
            for module, forward in self._forwards.items():
                if "forward" not in vars(module):
                    module.forward = forward
                    self._in_use.append(module)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._depth -= 1
        if self._depth == 0:
            for module in self._in_use:
                if vars(module).get("forward") is self._forwards[module]:
                    del module.forward
            self._in_use.clear()


def layers_by_kernel(model: Any, kernels: Kernels = "auto") -> dict[str, int]:
    """How many layers of a model each kernel of single layers fits, of those that may be used."""
    names, bare = chosen(kernels), bare_model(model)
    return {name: 0 if is_sharded(bare) else len(find(bare)) for name, find in FINDERS.items() if name in names}


_found: weakref.WeakKeyDictionary[nn.Module, dict[frozenset[str], FastLayers]] = weakref.WeakKeyDictionary()


def fast_layers(model: Any, kernels: Kernels = "auto") -> FastLayers:
    """The `FastLayers` of a model, which are found again only where its modules have changed since.

    No kernel of a layer fits a model whose weights are sharded: they are whole only between hooks of the modules that
    hold them, and kernels read them elsewhere too.
    """
    model, names = bare_model(model), frozenset[str]() if is_sharded(model) else chosen(kernels)
    known = _found.setdefault(model, {})
    if names not in known or not known[names].are_of(model):
        known[names] = FastLayers(model, names)
    return known[names]


def _modules_below(model: nn.Module) -> tuple[nn.Module, ...]:
    """Without the model itself, which lives no longer because of what is known of it."""
    return tuple(model.modules())[1:]
