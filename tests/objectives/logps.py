"""Log-probs to try objectives on."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bapo.objectives import BaseLogps, PairLogps


def pair(
    chosen: float = -10.0,
    rejected: float = -12.0,
    ref_chosen: float = -11.0,
    ref_rejected: float = -9.0,
    chosen_tokens: float = 4.0,
    rejected_tokens: float = 6.0,
) -> PairLogps:
    """One pair. By default the chosen log-ratio is +1, the rejected one -3, the margin 4."""
    values = (chosen, rejected, ref_chosen, ref_rejected, chosen_tokens, rejected_tokens)
    chosen_, rejected_, *constants = (torch.tensor([value]) for value in values)
    return PairLogps(chosen_.requires_grad_(), rejected_.requires_grad_(), *constants)


def bases(policy: Sequence[Sequence[float]], ref: Sequence[Sequence[float]], weight: Sequence[float]) -> BaseLogps:
    """Base responses, each given by its token log-probs."""
    return BaseLogps(
        tokens=torch.tensor([logp for response in policy for logp in response], requires_grad=True),
        ref_tokens=torch.tensor([logp for response in ref for logp in response]),
        owner=torch.tensor([k for k, response in enumerate(ref) for _ in response]),
        weight=torch.tensor(weight),
    )
