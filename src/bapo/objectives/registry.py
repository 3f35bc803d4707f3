"""Objectives by name: a pair loss, perhaps an anchor, and how they add up."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from bapo.errors import BapoError
from bapo.objectives import losses
from bapo.objectives.anchors import ANCHORS
from bapo.objectives.logps import BaseLogps, PairLogps

# name -> (pair loss, default beta, what it is)
PAIR_LOSSES: dict[str, tuple[Callable[..., Tensor], float, str]] = {
    "dpo": (losses.dpo, 0.1, "Direct Preference Optimization (Rafailov et al. 2023)"),
    "bapo": (losses.dpo, 0.1, "DPO with the base anchor (equation 6)"),
    "ipo": (losses.ipo, 0.1, "IPO on log-ratios per token"),
    "ipo-summed": (losses.ipo_summed, 0.1, "IPO as written (Azar et al. 2023)"),
    "dpop": (losses.dpop, 0.1, "DPO-Positive (Pal et al. 2024)"),
    "orpo": (losses.orpo, 0.1, "Odds-ratio preference optimization, reference-free (Hong et al. 2024)"),
    "rso": (losses.rso_hinge, 0.1, "Hinge on the normalized likelihood (Liu et al. 2023)"),
}


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
        anchor_strength: lambda of equation 6.
    """

    name: str
    pair_loss: Callable[[PairLogps], Tensor]
    beta: float
    anchor: Callable[[BaseLogps], Tensor] | None = None
    anchor_strength: float = 0.0

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
        """Sum over pairs of pair loss + lambda * anchor (equation 6); divide by the pairs for the mean."""
        total = parts.pair.sum()
        if parts.anchor is None or base is None:
            return total
        return total + self.anchor_strength * (base.weight * parts.anchor).sum()


def make_objective(name: str, *, beta: float | None = None, **settings: Any) -> Objective:
    """An objective by its name.

    Args:
        name: bapo, dpo, ipo, ipo-summed, dpop, orpo or rso.
        beta: its temperature; 0.1 by default.
        settings: ``anchor`` and ``anchor_strength`` for bapo (sequence, 5), ``penalty`` for dpop (50).

    Raises:
        BapoError: an unknown name or anchor, a setting that the objective does not have, or a number out of range.
    """
    if name not in PAIR_LOSSES:
        raise BapoError(
            f"Unknown objective {name!r}{_nearest(name, PAIR_LOSSES)}: use one of {', '.join(PAIR_LOSSES)}."
        )
    loss, default_beta, _ = PAIR_LOSSES[name]
    beta = default_beta if beta is None else beta
    if beta <= 0:
        raise BapoError(f"beta must be positive, not {beta}.")
    anchor, strength = None, 0.0
    if name == "bapo":
        anchor_name, strength = settings.pop("anchor", "sequence"), float(settings.pop("anchor_strength", 5.0))
        if anchor_name not in ANCHORS:
            raise BapoError(
                f"Unknown anchor {anchor_name!r}{_nearest(anchor_name, ANCHORS)}: use one of {', '.join(ANCHORS)}."
            )
        if strength < 0:
            raise BapoError(f"anchor_strength must not be negative, and it is {strength}.")
        anchor = ANCHORS[anchor_name]
    unknown = sorted(settings.keys() - _own_settings(loss))
    if unknown:
        hint = "; anchors belong to the objective bapo" if unknown[0].startswith("anchor") else ""
        raise BapoError(f"The objective {name} has no setting {unknown[0]!r}{hint}.")
    return Objective(name, partial(loss, beta=beta, **settings), beta, anchor, strength)


def _own_settings(loss: Callable[..., Tensor]) -> set[str]:
    return set(inspect.signature(loss).parameters) - {"pairs", "beta"}


def _nearest(name: str, known: dict[str, Any]) -> str:
    near = difflib.get_close_matches(str(name), known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
