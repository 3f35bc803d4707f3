"""Models whose weights are divided over processes (FSDP2): hooks of the modules that hold them put them together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

Result = TypeVar("Result")


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP2 takes care of weights of the model, which are whole only while the module that holds them computes,
    and a while longer; or any are `DTensor`."""
    if not torch.distributed.is_available():
        return False
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

    return any(isinstance(module, FSDPModule) for module in model.modules()) or any(
        isinstance(parameter, DTensor) for parameter in model.parameters()
    )


def sharded_root(model: nn.Module, inner: nn.Module) -> nn.Module | None:
    """The outermost module of a model that FSDP2 takes care of and that has ``inner`` in it; None where none has.

    Weights of no other group are put together when it is called, and FSDP2 takes for the root what is called first.
    """
    if not is_sharded(model):
        return None
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule) and any(part is inner for part in module.modules()):
            return module
    return None


def through_hooks(module: nn.Module, function: Callable[..., Result], *arguments: Any) -> Result:
    """What a function gives, computed inside of a call of a module, between the hooks that it has.

    Args:
        module: whose weights the function reads; its forward is as it was when the function begins, and afterwards.
        function: gives tensors, alone or in a tuple or dictionary.
        arguments: of the function.
    """
    before = vars(module).get("forward")

    def put_back() -> None:
        if before is None:
            vars(module).pop("forward", None)
        else:
            module.forward = before

    def instead(*arguments: Any) -> Result:
        put_back()
        return function(*arguments)

    module.forward = instead
    try:
        result: Result = module(*arguments)
        return result
    finally:
        put_back()
