"""An objective: a pair loss, perhaps an anchor, and how they add up."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from bapo.errors import BapoError
from bapo.objectives.logps import BaseLogps, PairLogps
from bapo.objectives.registry import ANCHOR_CONTROLS, ANCHORS, PAIR_LOSSES, Anchor, AnchorControl
from bapo.registry import nearest
from bapo.settings import ANCHOR_CONTROL, ANCHOR_STRENGTH, Range, check_number

_ANY_NUMBER = Range(-math.inf, math.inf, "()")
_OF_ANCHORS = ("anchor_strength", "anchor_control")
_SETTINGS_OF_THEIR_OWN = ("beta", "anchor", *_OF_ANCHORS)


@dataclass(frozen=True, slots=True)
class LossParts:
    """The unreduced parts of a loss: (B,) pair losses, and (K,) anchor losses where there is an anchor."""

    pair: Tensor
    anchor: Tensor | None


@dataclass(frozen=True, slots=True)
class Objective:
    """A pair loss with its settings bound, and an anchor with its strength.

    Attributes:
        name: what it is called.
        pair_loss: from pairs to (B,) losses.
        beta: temperature; rewards are logged as beta times the log-ratio.
        anchor: from base responses to (K,) losses; None for objectives without one.
        control: how the anchor's strength moves, with the strength of now.
        needs_reference: whether the loss depends on reference log-probs.
        description: what it is, for people.
    """

    name: str
    pair_loss: Callable[[PairLogps], Tensor]
    beta: float
    anchor: Anchor | None = None
    control: AnchorControl = field(default_factory=lambda: AnchorControl(0.0))
    needs_reference: bool = True
    description: str = ""

    @property
    def anchor_strength(self) -> float:
        """Lambda of equation 6, as it is now."""
        return self.control.strength

    def __call__(self, pairs: PairLogps, base: BaseLogps | None = None) -> LossParts:
        """The unreduced parts.

        Raises:
            BapoError: the objective has an anchor and there are no base responses.
        """
        if self.anchor is not None and base is None:
            raise BapoError(
                f"The objective {self.name} needs base responses, and there are none: anchor the data first."
            )
        anchored = self.anchor(base) if self.anchor is not None and base is not None else None
        return LossParts(self.pair_loss(pairs), anchored)

    def total(self, parts: LossParts, base: BaseLogps | None = None) -> Tensor:
        """Sum over pairs of pair loss + lambda * anchor (equation 6); divide by the pairs for the mean.

        Raises:
            BapoError: there are anchor losses, and no base responses to weigh them.
        """
        if parts.anchor is None:
            return parts.pair.sum()
        if base is None:
            raise BapoError(f"The objective {self.name} has anchor losses: give the base responses that weigh them.")
        return parts.pair.sum() + self.anchor_strength * (base.weight * parts.anchor).sum()


def objective_of(settings: Any) -> Objective:
    """The objective that the settings of a training describe, a `BAPOConfig` or a recipe's section.

    Raises:
        BapoError: as `make_objective`; or objective_settings has what is a setting of its own.
    """
    further = settings.objective_settings or {}
    for name in _SETTINGS_OF_THEIR_OWN:
        if name in further:
            raise BapoError(f"{name} is a setting of its own: give it beside objective_settings, not in it.")
    return make_objective(
        settings.objective, **{name: getattr(settings, name) for name in _SETTINGS_OF_THEIR_OWN}, **further
    )


def make_objective(
    name: str,
    *,
    beta: float | None = None,
    anchor: str | None = None,
    anchor_strength: float | None = None,
    anchor_control: str | None = None,
    **settings: Any,
) -> Objective:
    """An objective by its name: any pair loss, with any anchor.

    Args:
        name: a key of `PAIR_LOSSES`.
        beta: its temperature; the pair loss's own by default.
        anchor: a key of `ANCHORS`; the pair loss's own by default, which only bapo has (length-normalized; the paper's
            is ``sequence``, docs/dsp-literature.md says why it is not the default).
        anchor_strength: lambda of equation 6, in the first step; 5 by default.
        anchor_control: how it moves, a key of `ANCHOR_CONTROLS`; it stays as it is by default.
        settings: the pair loss's own, such as ``penalty`` for dpop (50), and those of the anchor control.

    Raises:
        BapoError: an unknown name, a setting that nothing here has, or a number out of range.
    """
    loss = PAIR_LOSSES.find(name)
    beta = loss.beta if beta is None else float(check_number("beta", beta))
    anchor = loss.anchor if anchor is None else anchor
    anchor_function = None if anchor is None else ANCHORS.find(anchor)
    control = ANCHOR_CONTROLS.find(anchor_control or ANCHOR_CONTROL)
    if anchor_function is None:
        for setting, value in zip(_OF_ANCHORS, (anchor_strength, anchor_control), strict=True):
            if value is not None and value != ANCHOR_CONTROL:
                raise BapoError(
                    f"The objective {name} has no anchor, and so no {setting}: name an anchor "
                    f"({', '.join(ANCHORS)}), or leave it out."
                )
    of_loss, of_control = _own_settings(loss.function), _own_settings(control.made)
    for setting in sorted(settings.keys() - of_loss - of_control):
        known = (*of_loss, *of_control, *(_OF_ANCHORS if anchor_function else ()), "anchor")
        raise BapoError(f"The objective {name} has no setting {setting!r}{nearest(setting, known)}.")
    strength = float(check_number("anchor_strength", ANCHOR_STRENGTH if anchor_strength is None else anchor_strength))
    return Objective(
        name=name,
        pair_loss=partial(loss.function, beta=beta, **_numbers(settings, of_loss, loss.ranges)),
        beta=beta,
        anchor=anchor_function,
        control=control.made(strength if anchor_function else 0.0, **_numbers(settings, of_control, control.ranges)),
        needs_reference=loss.needs_reference,
        description=loss.description,
    )


def _own_settings(function: Callable[..., object]) -> set[str]:
    return set(inspect.signature(function).parameters) - {"pairs", "beta", "strength"}


def _numbers(settings: Mapping[str, Any], names: set[str], ranges: Mapping[str, Range]) -> dict[str, float]:
    given = {name: value for name, value in settings.items() if name in names}
    return {
        name: float(check_number(name, value, within=ranges.get(name, _ANY_NUMBER))) for name, value in given.items()
    }
