"""Odds-ratio preference optimization."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from bapo.objectives.logps import PairLogps
from bapo.objectives.registry import pair_loss


@pair_loss("orpo", "Odds-ratio preference optimization (Hong et al. 2024)", needs_reference=False)
def orpo(pairs: PairLogps, beta: float) -> Tensor:
    """NLL of the chosen per token - beta * log sigmoid(log odds ratio). Hong et al. 2024, equations 6 and 7.

    odds = p / (1 - p) with p = exp(mean token log-prob). Reference-free; beta is the paper's lambda. The NLL is the
    response's, where TRL's is that of prompt and response.
    """
    chosen = pairs.chosen / pairs.chosen_tokens
    rejected = pairs.rejected / pairs.rejected_tokens
    log_odds = (chosen - rejected) - (_log1mexp(chosen) - _log1mexp(rejected))
    return -chosen - beta * F.logsigmoid(log_odds)


def _log1mexp(logp: Tensor) -> Tensor:
    """log(1 - exp(logp)) for logp <= 0, each half of the range by its accurate form.

    A probability of one counts as just below it, which keeps both forms and their gradients finite.
    """
    logp = logp.clamp(max=-1e-6)
    return torch.where(logp > -math.log(2), torch.log(-torch.expm1(logp)), torch.log1p(-torch.exp(logp)))
