"""Pair losses. One equation, one function: (B,) pairs in, (B,) losses out, no reduction.

Margin is the chosen minus the rejected log-ratio, in nats summed over tokens. beta is positive.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from bapo.objectives.logps import PairLogps


def dpo(pairs: PairLogps, beta: float) -> Tensor:
    """-log sigmoid(beta * margin). Rafailov et al. 2023, equation 7; equation 4 of the BAPO paper."""
    return -F.logsigmoid(beta * pairs.margin)


def ipo(pairs: PairLogps, beta: float) -> Tensor:
    """(margin of log-ratios per token - 1 / (2 beta))^2. Azar et al. 2023, equation 17 with tau = beta, as TRL has it.

    Each log-ratio is averaged over its response's tokens, so that the target does not depend on length.
    """
    margin = pairs.chosen_logratio / pairs.chosen_tokens - pairs.rejected_logratio / pairs.rejected_tokens
    return (margin - 1 / (2 * beta)) ** 2


def ipo_summed(pairs: PairLogps, beta: float) -> Tensor:
    """(margin - 1 / (2 beta))^2 on summed log-ratios, as written. Azar et al. 2023, equation 17 with tau = beta."""
    return (pairs.margin - 1 / (2 * beta)) ** 2


def dpop(pairs: PairLogps, beta: float, penalty: float = 50.0) -> Tensor:
    """-log sigmoid(beta * (margin - penalty * max(0, -chosen log-ratio))). Pal et al. 2024 (Smaug), equation 3.

    The penalty is what the chosen response has lost against the reference, so losing more raises the loss.
    """
    lost = F.relu(-pairs.chosen_logratio)
    return -F.logsigmoid(beta * (pairs.margin - penalty * lost))


def orpo(pairs: PairLogps, beta: float) -> Tensor:
    """NLL of the chosen per token - beta * log sigmoid(log odds ratio). Hong et al. 2024, equations 6 and 7.

    odds = p / (1 - p) with p = exp(mean token log-prob). Reference-free; beta is the paper's lambda. The NLL is the
    response's, where TRL's is that of prompt and response.
    """
    chosen = pairs.chosen / pairs.chosen_tokens
    rejected = pairs.rejected / pairs.rejected_tokens
    log_odds = (chosen - rejected) - (_log1mexp(chosen) - _log1mexp(rejected))
    return -chosen - beta * F.logsigmoid(log_odds)


def rso_hinge(pairs: PairLogps, beta: float) -> Tensor:
    """max(0, 1 - beta * margin), the hinge on the normalized likelihood. Liu et al. 2023 (RSO), equation 10.

    beta is the paper's gamma: 1 / beta nats of margin are enough.
    """
    return F.relu(1 - beta * pairs.margin)


def _log1mexp(logp: Tensor) -> Tensor:
    """log(1 - exp(logp)) for logp <= 0, each half of the range by its accurate form.

    A probability of one counts as just below it, which keeps both forms and their gradients finite.
    """
    logp = logp.clamp(max=-1e-6)
    return torch.where(logp > -math.log(2), torch.log(-torch.expm1(logp)), torch.log1p(-torch.exp(logp)))
