"""Sampling in which every response has draws of its own, so that its company in a batch does not change it."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from bapo.likelihood import TokenIds


def draws_of(seed: int, prompt: TokenIds, number: int) -> random.Random:
    """The draws of one response: of the seed, its prompt and its number among the responses to it."""
    digest = hashlib.sha256(repr((seed, tuple(prompt), number)).encode()).digest()
    return random.Random(int.from_bytes(digest[:8], "big"))


class OwnDraws(LogitsProcessor):
    """Leaves each row the one token that its next draw falls on; greedy decoding then takes it.

    `generate` draws for all rows of a batch from one generator, where a row's tokens depend on those beside it.

    Args:
        draws: of each row, one draw a token.
        temperature, top_p: see `GenerationSettings`.
    """

    def __init__(self, draws: Sequence[random.Random], temperature: float, top_p: float) -> None:
        self.draws = draws
        self.warp = LogitsProcessorList([TemperatureLogitsWarper(float(temperature))])
        if top_p < 1:
            self.warp.append(TopPLogitsWarper(float(top_p)))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (rows, vocabulary) in which all but the drawn token are impossible."""
        reached = self.warp(input_ids, scores).float().softmax(-1).cumsum(-1)
        total = reached[:, -1:]
        drawn = torch.tensor([[draw.random()] for draw in self.draws], dtype=total.dtype, device=total.device) * total
        below = torch.nextafter(total, torch.zeros_like(total))  # a draw may round up to 1
        token = torch.searchsorted(reached, torch.minimum(drawn, below), right=True).clamp(max=scores.shape[-1] - 1)
        return torch.full_like(scores, -torch.inf).scatter_(1, token, 0.0)
