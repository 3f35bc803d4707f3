"""How far a model's distributions have moved: divergence along sampled responses, and cross-entropy of a text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bapo.results.estimates import Estimate, bootstrap_ratio
from bapo.results.records import Kind


@dataclass(frozen=True, slots=True)
class DivergenceReport:
    """KL(pi_ref || pi_theta) along responses that the reference sampled.

    Attributes:
        per_token: nats, with an interval over prompts.
        floor: what rounding alone makes of it, nats per token, in the ``precision`` in which it was computed.
        precision: float32, or the model's own.
        prompts, tokens: how many it is the mean over.
    """

    per_token: Estimate
    floor: float
    precision: str
    prompts: int
    tokens: int


@dataclass(frozen=True, slots=True)
class TextReport:
    """Cross-entropy of a text, nats per token.

    Attributes:
        before, after: of the reference and of the model.
        change: after minus before; intervals are over parts of the text. Positive is worse.
        tokens: how many were predicted.
        floor: what rounding alone makes of the change, nats per token, in the model's own precision.
    """

    before: Estimate
    after: Estimate
    change: Estimate
    tokens: int
    floor: float


@dataclass(frozen=True, slots=True)
class Movement:
    """What was measured of one model against its reference.

    Attributes:
        name: of the model.
        reference: what it is compared with.
        divergence: by topic: ``held-out`` prompts of the preference, and ``other`` topics.
        text: of the user's text; None where none was named.
    """

    name: str
    reference: str
    divergence: Mapping[str, DivergenceReport]
    text: TextReport | None = None


MOVEMENT = Kind("how far a model has moved", 2, Movement)


def divergence_report(
    totals: Sequence[float], tokens: Sequence[int], *, floor: float, precision: str
) -> DivergenceReport:
    """Of each prompt the summed divergence of its response, nats, and the response's tokens."""
    return DivergenceReport(bootstrap_ratio(totals, tokens), floor, precision, len(totals), sum(tokens))


def text_report(
    before: Sequence[float], after: Sequence[float], tokens: Sequence[int], *, again: Sequence[float]
) -> TextReport:
    """Of each part of a text its log-prob under both models, nats, and its tokens.

    Args:
        before, after: of the reference and of the model, in one layout.
        tokens: of each part.
        again: of the reference in another layout. Differences of independent parts add up as squares do.
    """
    rounding = math.hypot(*(other - one for other, one in zip(again, before, strict=True)))
    change = [old - new for old, new in zip(before, after, strict=True)]
    of_before, of_after = (bootstrap_ratio([-logp for logp in logps], tokens) for logps in (before, after))
    return TextReport(of_before, of_after, bootstrap_ratio(change, tokens), sum(tokens), 2 * rounding / sum(tokens))
