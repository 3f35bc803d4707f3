"""What was learned and what drifted, from the scores of held-out prompts: reward accuracy, margin and base drift."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bapo.results.estimates import Estimate, bootstrap_ratio, bootstrap_share


@dataclass(frozen=True, slots=True)
class PromptScores:
    """One held-out prompt under the policy.

    Attributes:
        pairs: (chosen log-ratio, rejected log-ratio) of each pair, nats.
        drift: summed log-ratio of its base responses, nats, and ``base_tokens`` their tokens.
        bases: how many base responses there are.
    """

    pairs: tuple[tuple[float, float], ...]
    drift: float
    base_tokens: int
    bases: int


@dataclass(frozen=True, slots=True)
class PreferenceReport:
    """Estimates with bootstrap intervals over prompts.

    Attributes:
        reward_accuracy: share of pairs whose chosen log-ratio exceeds the rejected one; a tie counts a half.
        margin: chosen minus rejected log-ratio, nats.
        chosen, rejected: log-ratios, nats.
        drift: log-ratio of the base response, nats per response; negative is forgetting in the making.
        drift_per_token: the same per token.
        prompts, pairs: how many were scored.
    """

    reward_accuracy: Estimate
    margin: Estimate
    chosen: Estimate
    rejected: Estimate
    drift: Estimate
    drift_per_token: Estimate
    prompts: int
    pairs: int


def report(scores: Sequence[PromptScores]) -> PreferenceReport:
    """Estimates over prompts; of a model whose log-ratios are all exactly zero, the reference's, they are points."""
    counts = [len(s.pairs) for s in scores]
    same = not any(ratio for s in scores for pair in s.pairs for ratio in pair)

    def summed(of: Callable[[float, float], float]) -> list[float]:
        return [sum(of(c, r) for c, r in s.pairs) for s in scores]

    def over_pairs(of: Callable[[float, float], float]) -> Estimate:
        return bootstrap_ratio(summed(of), counts)

    return PreferenceReport(
        reward_accuracy=bootstrap_share(summed(_won), counts, same=same),
        margin=over_pairs(lambda c, r: c - r),
        chosen=over_pairs(lambda c, _: c),
        rejected=over_pairs(lambda _, r: r),
        drift=bootstrap_ratio([s.drift for s in scores], [s.bases for s in scores]),
        drift_per_token=bootstrap_ratio([s.drift for s in scores], [s.base_tokens for s in scores]),
        prompts=len(scores),
        pairs=sum(counts),
    )


def likelier(per_token: Estimate) -> Estimate:
    """A drift in nats per token as percent: by how much likelier a token became, in the geometric mean.

    >>> likelier(  # doctest: +ELLIPSIS
    ...     Estimate(-0.1, -0.2, 0.0)
    ... )
    Estimate(value=-9.5..., low=-18.1..., high=0.0)
    """
    return Estimate(*(100 * math.expm1(nats) for nats in (per_token.value, per_token.low, per_token.high)))


@dataclass(frozen=True, slots=True)
class PreferenceChange:
    """How one policy differs from another on the same held-out prompts, with paired bootstrap intervals over prompts.

    Attributes:
        reward_accuracy: points.
        margin: nats.
        drift: nats per response.
    """

    reward_accuracy: Estimate
    margin: Estimate
    drift: Estimate


def compare_preferences(before: Sequence[PromptScores], after: Sequence[PromptScores]) -> PreferenceChange:
    """Compare two policies' scores of the same prompts in the same order."""

    def change(of: Callable[[PromptScores], float]) -> list[float]:
        return [of(b) - of(a) for a, b in zip(before, after, strict=True)]

    pairs, bases = [len(prompt.pairs) for prompt in before], [prompt.bases for prompt in before]
    right = change(lambda prompt: 100 * sum(_won(c, r) for c, r in prompt.pairs))
    return PreferenceChange(
        bootstrap_share(right, pairs, same=tuple(before) == tuple(after), least=-100, most=100),
        bootstrap_ratio(change(lambda prompt: sum(c - r for c, r in prompt.pairs)), pairs),
        bootstrap_ratio(change(lambda prompt: prompt.drift), bases),
    )


def _won(chosen: float, rejected: float) -> float:
    return 1.0 if chosen > rejected else 0.5 if chosen == rejected else 0.0


def to_rows(scores: Sequence[PromptScores]) -> list[dict[str, Any]]:
    """For Parquet, one row a prompt."""
    return [{**asdict(prompt), "pairs": [list(pair) for pair in prompt.pairs]} for prompt in scores]


def from_rows(rows: Sequence[Mapping[str, Any]]) -> tuple[PromptScores, ...]:
    """From Parquet."""
    return tuple(PromptScores(**{**row, "pairs": tuple((c, r) for c, r in row["pairs"])}) for row in rows)
