"""Pair losses, anchors, sources and benchmarks by name, one file each, of this package or of another one.

Of each kind there is a folder in this package, in which every file is a name, and a group of entry points, in which
other packages name theirs. Names are told without running anything: what stands behind them may import torch.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from bapo.errors import BapoError, foreign

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

T = TypeVar("T")


class Kind(NamedTuple):
    """A kind of things that have names.

    Attributes:
        called: what errors call one.
        decorator: what registers one.
        home: the package with those of this library.
        between: what stands between the words of a name, where a file has an underscore.
    """

    called: str
    decorator: str
    home: str
    between: str = "-"


KINDS = {
    "pair_losses": Kind("objective", "pair_loss", "objectives.losses"),
    "anchors": Kind("anchor", "anchor", "objectives.anchors"),
    "anchor_controls": Kind("anchor control", "anchor_control", "objectives.controls"),
    "sources": Kind("source", "source", "preferences.sources"),
    "benchmarks": Kind("benchmark", "benchmark", "evaluation.tasks", "_"),
}
"""By the end of their group of entry points, which begins with ``bapo.``."""


def names(group: str) -> tuple[str, ...]:
    """The names of one kind: this library's, then those of other packages. Nothing is imported."""
    return (*own_names(group), *(name for name in _brought(group) if name not in own_names(group)))


@cache  # reads a folder that does not change
def own_names(group: str) -> tuple[str, ...]:
    """The names of one kind that this library has itself."""
    kind = KINDS[group]
    folder = Path(__file__).parent.joinpath(*kind.home.split("."))
    stems = (path.stem for path in folder.glob("*.py"))
    return tuple(sorted(stem.replace("_", kind.between) for stem in stems if not stem.startswith("_")))


def nearest(name: object, known: Iterable[str], before: str = "") -> str:
    """A part of a sentence that asks whether the nearest known name, behind ``before``, was meant; or nothing."""
    near = difflib.get_close_matches(str(name)[:80], known, n=1, cutoff=0.5)
    return f" (did you mean {before + near[0]!r}?)" if near else ""


class Registry(Mapping[str, T]):
    """What is registered of one kind. A name's file or entry point is loaded when it is asked for.

    Args:
        group: a key of `KINDS`.
    """

    def __init__(self, group: str) -> None:
        self.group, self.kind = group, KINDS[group]
        self._found: dict[str, T] = {}
        self._where: dict[str, str] = {}

    def add(self, name: str, thing: T, made_of: Callable[..., Any]) -> None:
        """Register something; a function that is defined again, as in a notebook, takes its own place.

        Args:
            name: its name.
            thing: what is registered.
            made_of: the function or class that it is made of, by which it is known.

        Raises:
            BapoError: the name is taken.
        """
        where, home = f"{made_of.__module__}.{made_of.__qualname__}", f"bapo.{self.kind.home}."
        taken = self._where.get(name, where)
        if taken == where and name in own_names(self.group) and not where.startswith(home):
            taken = f"bapo.{self.kind.home}"
        if taken != where:
            raise BapoError(
                f"The {self.kind.called} {name!r} of {where} has a name that is taken by {taken}: give it another one."
            )
        self._found[name], self._where[name] = thing, where

    def find(self, name: object) -> T:
        """What has that name.

        Raises:
            BapoError: nothing has, or it cannot be loaded.
        """
        if name not in self:
            raise BapoError(f"Unknown {self.kind.called} {name!r}{nearest(name, self)}: use one of {', '.join(self)}.")
        return self[str(name)]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._names()

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def __len__(self) -> int:
        return len(self._names())

    def _names(self) -> dict[str, None]:
        return dict.fromkeys((*names(self.group), *self._found))

    def __getitem__(self, name: str) -> T:
        if name not in self._found:
            self._load(name)
        return self._found[name]

    def _load(self, name: str) -> None:
        entries = _brought(self.group).get(name, ())
        is_ours = name in own_names(self.group)
        if is_ours + len(entries) > 1:
            packages = " and ".join([*["bapo"] * is_ours, *map(_package, entries)])
            raise BapoError(
                f"The name of the {self.kind.called} {name!r} is taken: {packages} bring one each, so uninstall one."
            )
        if is_ours:
            module = f"bapo.{self.kind.home}.{name.replace(self.kind.between, '_')}"
            import_module(module)
            self._check(name, f"The {self.kind.called} {name!r}", module)
        for entry in entries:
            what = f"The {self.kind.called} {name!r} of the package {_package(entry)}"
            with foreign(f"{what} could not be loaded from {entry.value}", "mend or uninstall that package"):
                entry.load()
            self._check(name, what, entry.value)

    def _check(self, name: str, what: str, where: str) -> None:
        if name not in self._found:
            raise BapoError(f"{what} is not registered by {where}: @{self.kind.decorator}({name!r}) must stand there.")


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else entry.module


@cache
def _brought(group: str) -> Mapping[str, tuple[EntryPoint, ...]]:
    """Entry points of other packages by name."""
    by_name: dict[str, tuple[EntryPoint, ...]] = {}
    for entry in _all_entry_points().select(group=f"bapo.{group}"):
        by_name[entry.name] = (*by_name.get(entry.name, ()), entry)
    return by_name


@cache  # walks over everything that is installed
def _all_entry_points() -> Any:
    from importlib.metadata import entry_points

    return entry_points()
