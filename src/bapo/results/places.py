"""Names of places, which say who works where and on what machine, in what is meant to be shared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

_TEXTS = ("system",)
"""Keys of texts, which may begin like a path."""


def shared_name(name: str | Path) -> str:
    """The name of a model, an adapter or a source as others may read it: of a path that leads out of here its end.

    ``/home/anna/models/tiny`` is ``tiny``, and ``user:~/people.jsonl#anna`` is ``user:people.jsonl#anna``.
    """
    kind, colon, place = str(name).partition(":")
    if colon and kind.isidentifier() and _leads_out(place):
        return f"{kind}:{PurePath(place).name}"
    return PurePath(name).name if _leads_out(str(name)) else str(name)


def shared_names(names: Sequence[str]) -> list[str]:
    """`shared_name` of each, with as many folders before all of them as tell one from another."""
    paths = {name: PurePath(name).parts[1:] for name in names if _leads_out(name)}
    for length in range(1, max(map(len, paths.values()), default=0) + 1):
        shared = {name: "/".join(paths[name][-length:]) if name in paths else name for name in names}
        if len(set(shared.values())) == len(shared):
            return [shared[name] for name in names]
    return list(names)


def without_places(value: Any) -> Any:
    """A value as JSON has it, with `shared_name` of all its texts that are paths."""
    if isinstance(value, str | Path):
        return shared_name(value)
    if isinstance(value, Mapping):
        return {key: inner if key in _TEXTS else without_places(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_places(inner) for inner in value]
    return value


def _leads_out(name: str) -> bool:
    path = PurePath(name)
    return bool(path.name) and (path.is_absolute() or ".." in path.parts or name.startswith("~"))
