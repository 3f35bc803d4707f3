"""What objectives see: log-probs of pairs and of base responses, and nothing of models or data.

Shape suffixes: B pairs, K base responses, T tokens of all base responses.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class PairLogps:
    """Log-probs of B pairs, each (B,) float32 in nats, summed over a response's tokens.

    Attributes:
        chosen, rejected: under the policy; they carry the gradient.
        ref_chosen, ref_rejected: under the reference; constants.
        chosen_tokens, rejected_tokens: tokens of the responses.
    """

    chosen: Tensor
    rejected: Tensor
    ref_chosen: Tensor
    ref_rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor

    @property
    def chosen_logratio(self) -> Tensor:
        """log pi_theta(y_w|x) - log pi_ref(y_w|x), (B,) nats."""
        return self.chosen - self.ref_chosen

    @property
    def rejected_logratio(self) -> Tensor:
        """log pi_theta(y_l|x) - log pi_ref(y_l|x), (B,) nats."""
        return self.rejected - self.ref_rejected

    @property
    def margin(self) -> Tensor:
        """Chosen minus rejected log-ratio, (B,) nats."""
        return self.chosen_logratio - self.rejected_logratio


@dataclass(frozen=True, slots=True)
class BaseLogps:
    """Token log-probs of K base responses, which stand for the B pairs of their prompts.

    Attributes:
        tokens: (T,) under the policy, response after response, nats; carries the gradient.
        ref_tokens: (T,) under the reference; constants.
        owner: (T,) which of the K responses a token belongs to.
        weight: (K,) how many pairs a base response stands for; 0 where no anchor holds it.
    """

    tokens: Tensor
    ref_tokens: Tensor
    owner: Tensor
    weight: Tensor

    def per_response(self, values_T: Tensor) -> Tensor:
        """Sum of token values over each response, (K,)."""
        return values_T.new_zeros(len(self.weight)).index_add(0, self.owner, values_T)

    @property
    def logps(self) -> Tensor:
        """log pi_theta(y_b|x), (K,) nats."""
        return self.per_response(self.tokens)

    @property
    def ref_logps(self) -> Tensor:
        """log pi_ref(y_b|x), (K,) nats."""
        return self.per_response(self.ref_tokens)

    @property
    def drift(self) -> Tensor:
        """log pi_theta(y_b|x) - log pi_ref(y_b|x), (K,) nats; exactly 0 where no token moved."""
        return self.per_response(self.tokens - self.ref_tokens)

    @property
    def lengths(self) -> Tensor:
        """Tokens of each response, (K,)."""
        return self.per_response(torch.ones_like(self.ref_tokens))
