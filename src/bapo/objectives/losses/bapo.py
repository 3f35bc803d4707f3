"""Base-Anchored Preference Optimization: DPO's pair loss with an anchor."""

from __future__ import annotations

from torch import Tensor

from bapo.objectives.logps import PairLogps
from bapo.objectives.losses.dpo import dpo
from bapo.objectives.registry import pair_loss
from bapo.settings import ANCHOR


@pair_loss("bapo", "DPO with the base anchor (Lee et al. 2024, equation 6)", anchor=ANCHOR)
def bapo(pairs: PairLogps, beta: float) -> Tensor:
    """`dpo`: equation 4 of the BAPO paper. What makes it BAPO is its anchor (equation 5)."""
    return dpo(pairs, beta)
