"""A caller's model, which is afterwards what it was: attributes, hooks, modes and configuration of all its modules."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

from torch import nn

_KEEP = ("_parameters", "_modules")  # what is trained, loaded or added is meant to stay


@contextmanager
def as_it_came(model: nn.Module, *, modules: bool = True) -> Iterator[None]:
    """Inside, anybody may change the model; afterwards all is as before but for its weights and its parts.

    Args:
        model: which is not moved to another device inside, unless
        modules: is false, and the configurations alone are put back.
    """
    holders: list[dict[str, Any]] = [vars(module) for module in model.modules()] if modules else []
    of_modules = (getattr(module, name, None) for module in model.modules() for name in ("config", "generation_config"))
    configs = {id(config): config for config in of_modules if config is not None}
    holders += [vars(part) for config in configs.values() for part in _with_parts(config)]
    before = [
        {name: (value, _copied(value)) for name, value in holder.items() if name not in _KEEP} for holder in holders
    ]
    try:
        yield
    finally:
        for holder, known in zip(holders, before, strict=True):
            for name in [name for name in holder if name not in known and name not in _KEEP]:
                del holder[name]
            for name, (value, content) in known.items():
                holder[name] = value
                if content is not None and not _holds(value, content):
                    value.clear()
                    value.update(content)


def _copied(value: Any) -> dict[Any, Any] | None:
    """What a table holds, such as one of hooks, which are changed in place; None of anything else."""
    return dict(value) if isinstance(value, MutableMapping) else None


def _holds(table: Any, content: dict[Any, Any]) -> bool:
    return len(table) == len(content) and all(key in table and table[key] is value for key, value in content.items())


def _with_parts(config: Any) -> Iterator[Any]:
    if hasattr(config, "__dict__"):
        yield config
    for name in getattr(config, "sub_configs", ()):
        part = getattr(config, name, None)
        if part is not None:
            yield from _with_parts(part)
