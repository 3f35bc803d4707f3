"""KL(pi_ref || pi_theta): how far a model's distribution over next tokens has moved, over the whole vocabulary.

Along responses that were sampled from the reference this is an estimate of the divergence between what the two models
say at all; and of each token it is no estimate: the sum over the vocabulary is taken. Both models are computed in the
same row, so a policy that has learned nothing has a divergence of exactly 0.

Shape suffixes: P predicted tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bapo.errors import BapoError
from bapo.kernels import Kernels
from bapo.likelihood.layout import TokenGroup
from bapo.likelihood.passes import lengths_of
from bapo.likelihood.scoring import MAX_TOKENS, ResponseScorer

LOGITS_AT_ONCE = 2**25
"""Log-probs of a model that are held at once: 128 MB in float32, of each of the two."""

FLOOR_SHARE = 0.01
"""Where rounding alone makes more than this share of a divergence, it is computed in float32."""


_ROWS = 64
"""Tokens whose distributions are in float64 at once."""


@dataclass(frozen=True, slots=True)
class Divergence:
    """The divergence of each token of some responses.

    Attributes:
        tokens: (P,) nats, response after response.
        lengths: how many of them belong to each response.
        floor: mean divergence of a token, nats, that rounding alone makes in this precision.
        precision: in which it was computed: float32, or the model's own.
    """

    tokens: Tensor
    lengths: tuple[int, ...]
    floor: float
    precision: str

    def summed(self) -> list[float]:
        """Of each response, nats."""
        return [float(part.sum()) for part in self.tokens.split(self.lengths)]


def divergence(
    policy: nn.Module,
    groups: Sequence[TokenGroup],
    *,
    reference: nn.Module | None = None,
    kernels: Kernels = "auto",
    on_progress: Callable[[int], None] | None = None,
) -> Divergence:
    """KL(pi_ref || pi_theta) at every token of responses, which should be sampled from the reference.

    It is computed in the model's own precision, and once more in float32 where rounding would be more than a hundredth
    of it: in bf16 two roundings of one model differ by some thousandths of a nat.

    Args:
        policy: the model.
        groups: prompts and responses.
        reference: another model of the same vocabulary; by default the policy with its adapter switched off (PEFT).
        kernels: speed-ups that may be used (`bapo.kernels`).
        on_progress: told the number of groups of each batch that is finished.

    Raises:
        BapoError: no reference is named, and the policy wears no adapter.
    """
    scorers = _Scorers(policy, reference, kernels)
    batches = list(_batches(groups, scorers.vocabulary))
    floor, tokens = scorers.floor(batches[0], float32=False), scorers.run(batches, False, on_progress)
    precise = scorers.policy.is_float32
    if not precise and scorers.policy.has_float32 and 0 < abs(float(tokens.mean())) < floor / FLOOR_SHARE:
        floor, tokens = scorers.floor(batches[0], float32=True), scorers.run(batches, True, on_progress)
        precise = True
    dtype = "float32" if precise else str(scorers.policy.causal_lm.dtype).removeprefix("torch.")
    return Divergence(tokens, lengths_of(groups), floor, dtype)


class _Scorers:
    """Of a policy and of its reference, which may be the same model without its adapter."""

    def __init__(self, policy: Any, reference: nn.Module | None, kernels: Kernels) -> None:
        if reference is None and not hasattr(policy, "disable_adapter"):
            raise BapoError("The model wears no adapter that could be switched off: name its reference.")
        self.policy = ResponseScorer(policy, kernels)
        self.reference = self.policy if reference is None else ResponseScorer(reference, kernels)
        self._as_reference = policy.disable_adapter if reference is None else nullcontext
        self.vocabulary = int(self.policy.causal_lm.config.get_text_config().vocab_size)

    def run(
        self, batches: Sequence[Sequence[TokenGroup]], float32: bool, on_progress: Callable[[int], None] | None
    ) -> Tensor:
        parts = []
        for batch in batches:
            with self._as_reference():
                reference_PV = self.reference.distributions(batch, float32=float32)
            parts.append(_kl(reference_PV, self.policy.distributions(batch, float32=float32)))
            if on_progress is not None:
                on_progress(len(batch))
        return torch.cat(parts)

    def floor(self, batch: Sequence[TokenGroup], *, float32: bool) -> float:
        """The divergence of the reference from itself, its embeddings moved by a rounding here and there."""
        with self._as_reference():
            plain_PV = self.reference.distributions(batch, float32=float32)
            with self.reference.passes.nudging():
                return float(_kl(plain_PV, self.reference.distributions(batch, float32=float32)).mean())


def _kl(reference_PV: Tensor, policy_PV: Tensor) -> Tensor:
    """(P,) nats; in float64, because terms of both signs leave a small rest."""
    parts = []
    for reference, policy in zip(reference_PV.split(_ROWS), policy_PV.split(_ROWS), strict=True):
        ref, new = reference.double().log_softmax(-1), policy.double().log_softmax(-1)
        parts.append((ref.exp() * (ref - new)).sum(-1).cpu())
    return torch.cat(parts)


def _batches(groups: Sequence[TokenGroup], vocabulary: int) -> Iterator[list[TokenGroup]]:
    """Groups in order, in batches whose log-probs and tokens stay within bounds; a larger one stands alone."""
    batch: list[TokenGroup] = []
    for group in groups:
        wanted = [*batch, group]
        predicted = sum(lengths_of(wanted))
        if batch and (predicted * vocabulary > LOGITS_AT_ONCE or sum(each.cost for each in wanted) > MAX_TOKENS):
            yield batch
            wanted = [group]
        batch = wanted
    if batch:
        yield batch
