"""Objectives by name: a pair loss, perhaps an anchor, and how they add up."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from bapo.errors import BapoError
from bapo.objectives import losses
from bapo.objectives.anchors import ANCHORS
from bapo.objectives.logps import BaseLogps, PairLogps
from bapo.settings import ANCHOR, ANCHOR_STRENGTH, check_number


class PairLoss(NamedTuple):
    """A row of `PAIR_LOSSES`: the function, its default beta, whether it looks at reference log-probs, what it is."""

    function: Callable[..., Tensor]
    beta: float
    needs_reference: bool
    description: str


PAIR_LOSSES: dict[str, PairLoss] = {
    "dpo": PairLoss(losses.dpo, 0.1, True, "Direct Preference Optimization (Rafailov et al. 2023)"),
    "bapo": PairLoss(losses.dpo, 0.1, True, "DPO with the base anchor (Lee et al. 2024, equation 6)"),
    "ipo": PairLoss(losses.ipo, 0.1, True, "IPO on log-ratios per token, as TRL has it"),
    "ipo-summed": PairLoss(losses.ipo_summed, 0.1, True, "IPO as written (Azar et al. 2023)"),
    "dpop": PairLoss(losses.dpop, 0.1, True, "DPO-Positive (Pal et al. 2024)"),
    "orpo": PairLoss(losses.orpo, 0.1, False, "Odds-ratio preference optimization (Hong et al. 2024)"),
    "rso": PairLoss(losses.rso_hinge, 0.1, True, "Hinge on the normalized likelihood (Liu et al. 2023)"),
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
        needs_reference: whether the loss depends on reference log-probs.
        description: what it is, for people.
    """

    name: str
    pair_loss: Callable[[PairLogps], Tensor]
    beta: float
    anchor: Callable[[BaseLogps], Tensor] | None = None
    anchor_strength: float = 0.0
    needs_reference: bool = True
    description: str = ""

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


def make_objective(name: str, *, beta: float | None = None, **settings: Any) -> Objective:
    """An objective by its name.

    Args:
        name: bapo, dpo, ipo, ipo-summed, dpop, orpo or rso.
        beta: its temperature; 0.1 by default.
        settings: ``anchor`` and ``anchor_strength`` for bapo (length-normalized, 5), ``penalty`` for dpop (50). The
            paper's anchor is ``sequence``; docs/dsp-literature.md says why it is not the default.

    Raises:
        BapoError: an unknown name or anchor, a setting that the objective does not have, or a number out of range.
    """
    if not isinstance(name, str) or name not in PAIR_LOSSES:
        raise BapoError(
            f"Unknown objective {name!r}{_nearest(name, PAIR_LOSSES)}: use one of {', '.join(PAIR_LOSSES)}."
        )
    loss = PAIR_LOSSES[name]
    beta = loss.beta if beta is None else float(check_number("beta", beta))
    anchor, strength = None, 0.0
    if name == "bapo":
        anchor_name = settings.pop("anchor", ANCHOR)
        strength = float(check_number("anchor_strength", settings.pop("anchor_strength", ANCHOR_STRENGTH)))
        if not isinstance(anchor_name, str) or anchor_name not in ANCHORS:
            raise BapoError(
                f"Unknown anchor {anchor_name!r}{_nearest(anchor_name, ANCHORS)}: use one of {', '.join(ANCHORS)}."
            )
        anchor = ANCHORS[anchor_name]
    own = _own_settings(loss.function)
    for setting in sorted(settings.keys() - own):
        anchors = " Anchors belong to the objective bapo." if setting.startswith("anchor") and name != "bapo" else ""
        known = [*own, "anchor", "anchor_strength"] if name == "bapo" else own
        raise BapoError(f"The objective {name} has no setting {setting!r}{_nearest(setting, known)}.{anchors}")
    numbers = {setting: float(check_number(setting, value)) for setting, value in settings.items()}
    bound = partial(loss.function, beta=beta, **numbers)
    return Objective(name, bound, beta, anchor, strength, loss.needs_reference, loss.description)


def _own_settings(loss: Callable[..., Tensor]) -> set[str]:
    return set(inspect.signature(loss).parameters) - {"pairs", "beta"}


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(name), known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
