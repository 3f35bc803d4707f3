"""IPO on log-ratios per token."""

from __future__ import annotations

from torch import Tensor

from bapo.objectives.logps import PairLogps
from bapo.objectives.registry import pair_loss


@pair_loss("ipo", "IPO on log-ratios per token, as TRL has it")
def ipo(pairs: PairLogps, beta: float) -> Tensor:
    """(margin of log-ratios per token - 1 / (2 beta))^2. Azar et al. 2023, equation 17 with tau = beta, as TRL has it.

    Each log-ratio is averaged over its response's tokens, so that the target does not depend on length.
    """
    margin = pairs.chosen_logratio / pairs.chosen_tokens - pairs.rejected_logratio / pairs.rejected_tokens
    return (margin - 1 / (2 * beta)) ** 2
