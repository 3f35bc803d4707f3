"""Pair losses, anchors and anchor controls by name, and the decorators that register them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from bapo.objectives.logps import BaseLogps
from bapo.registry import Registry
from bapo.settings import Range

Function = TypeVar("Function", bound=Callable[..., Tensor])
Control = TypeVar("Control", bound="type[AnchorControl]")


@dataclass(frozen=True, slots=True)
class PairLoss:
    """A registered pair loss.

    Attributes:
        function: from `PairLogps`, ``beta`` and settings of its own to (B,) losses.
        description: what it is, for people.
        beta: its default temperature.
        anchor: the anchor that it has where none is named; None for no anchor.
        needs_reference: whether it looks at reference log-probs.
        ranges: what its own settings may be; any number where nothing is said.
    """

    function: Callable[..., Tensor]
    description: str
    beta: float
    anchor: str | None
    needs_reference: bool
    ranges: Mapping[str, Range]


@dataclass(frozen=True, slots=True)
class Anchor:
    """A registered anchor: a function from `BaseLogps` to (K,) losses, and what it is, for people."""

    function: Callable[[BaseLogps], Tensor]
    description: str

    def __call__(self, base: BaseLogps) -> Tensor:
        """(K,) losses, nats."""
        return self.function(base)


class AnchorControl:
    """How the anchor strength moves from step to step. As it stands here: not at all.

    Attributes:
        strength: lambda of equation 6, in the step that comes next.
    """

    def __init__(self, strength: float) -> None:
        self.strength = strength

    def update(self, step: int, drift: float) -> None:
        """Set the strength of the next step.

        Args:
            step: steps taken so far.
            drift: of the base responses in the last one, nats per token, over all its micro-batches and processes,
                each counted as often as it is anchored.
        """

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint keeps: numbers by name. By default all attributes."""
        return dict(vars(self))

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on from what a checkpoint kept."""
        vars(self).update(state)


@dataclass(frozen=True, slots=True)
class RegisteredControl:
    """A registered anchor control: its class, what it is, and what its own settings may be."""

    made: Callable[..., AnchorControl]
    description: str
    ranges: Mapping[str, Range]


PAIR_LOSSES: Registry[PairLoss] = Registry("pair_losses")
ANCHORS: Registry[Anchor] = Registry("anchors")
ANCHOR_CONTROLS: Registry[RegisteredControl] = Registry("anchor_controls")


def pair_loss(
    name: str,
    description: str = "",
    *,
    beta: float = 0.1,
    anchor: str | None = None,
    needs_reference: bool = True,
    **ranges: Range,
) -> Callable[[Function], Function]:
    """Register a pair loss: a function of pairs (`PairLogps`), ``beta`` and perhaps settings of its own, all numbers.

    Args:
        name: by which it is asked for as an objective.
        description, beta, anchor, needs_reference: see `PairLoss`; the description is the docstring's first line
            where none is given.
        ranges: by the names of its settings.
    """

    def register(function: Function) -> Function:
        loss = PairLoss(function, description or _first_line(function), beta, anchor, needs_reference, ranges)
        PAIR_LOSSES.add(name, loss, function)
        return function

    return register


def anchor(name: str) -> Callable[[Function], Function]:
    """Register an anchor: a function from `BaseLogps` to (K,) losses, described by its docstring's first line."""

    def register(function: Function) -> Function:
        ANCHORS.add(name, Anchor(function, _first_line(function)), function)
        return function

    return register


def anchor_control(name: str, **ranges: Range) -> Callable[[Control], Control]:
    """Register an `AnchorControl`, which is made with the first strength and settings of its own, all numbers.

    Args:
        name: by which it is asked for.
        ranges: by the names of its settings.
    """

    def register(control: Control) -> Control:
        ANCHOR_CONTROLS.add(name, RegisteredControl(control, _first_line(control), ranges), control)
        return control

    return register


def _first_line(documented: Callable[..., object]) -> str:
    return (inspect.getdoc(documented) or "").split("\n")[0]
