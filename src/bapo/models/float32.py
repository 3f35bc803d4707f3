"""A model that computes in float32 for a while, with the weights that it has.

What a model's weights say is known to a few millionths of a nat that way, on every machine; bf16 arithmetic moves a
token's log-prob by hundredths, and differently on each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_SHORT = (torch.bfloat16, torch.float16)


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """Inside, weights of 16 bits are read as float32, so that everything is computed in it; without gradients.

    The layers of a stack take turns: a float32 copy of one of them is in memory at a time, beside one of all that is no
    layer (embeddings, norms, head). 4-bit weights are read to float32 as they are. Not for passes of several threads.
    """
    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    inner = {id(part) for stack in stacks for part in stack.modules() if part is not stack}
    layers = [layer for stack in stacks if id(stack) not in inner for layer in stack]
    in_layers = {id(parameter) for layer in layers for parameter in layer.parameters()}
    with ExitStack() as undo:
        for module in model.modules():
            if getattr(module, "compute_dtype", None) in _SHORT:
                undo.callback(setattr, module, "compute_dtype", module.compute_dtype)
                module.compute_dtype = torch.float32  # type: ignore[assignment]
        undo.enter_context(_as_float32(p for p in model.parameters() if id(p) not in in_layers))
        for layer in layers:
            _take_turns(layer, undo)
        yield


def _take_turns(layer: nn.Module, undo: ExitStack) -> None:
    """The layer's weights are float32 from the beginning of its forward to the end."""
    during: list[ExitStack] = []

    def begin(*_: Any) -> None:
        during.append(ExitStack())
        during[-1].enter_context(_as_float32(layer.parameters()))

    def end(*_: Any) -> None:
        during.pop().close()

    def break_off() -> None:
        for stack in during:
            stack.close()

    undo.callback(break_off)
    undo.callback(layer.register_forward_pre_hook(begin).remove)
    undo.callback(layer.register_forward_hook(end).remove)


@contextmanager
def _as_float32(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    kept: list[tuple[nn.Parameter, Tensor]] = []
    try:
        for parameter in parameters:
            if parameter.dtype in _SHORT:
                kept.append((parameter, parameter.data))
                parameter.data = parameter.data.float()
        yield
    finally:
        for parameter, data in kept:
            parameter.data = data
