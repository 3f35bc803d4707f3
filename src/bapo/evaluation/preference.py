"""What was learned and what drifted, on held-out prompts: reward accuracy, margin and base drift."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from bapo.anchoring import AnchoredGroup, AnchoredPreferences
from bapo.evaluation.bootstrap import Estimate, bootstrap_ratio
from bapo.likelihood import ResponseScorer, TokenGroup

_GROUPS_AT_ONCE = 16


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

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


def evaluate_preferences(
    model: nn.Module, held_out: AnchoredPreferences, *, on_progress: Callable[[int, int], None] | None = None
) -> tuple[PreferenceReport, list[PromptScores]]:
    """Score held-out prompts under a policy and compare with their reference.

    Args:
        model: the policy.
        held_out: anchored preferences whose reference is the model that the policy started from.
        on_progress: told how many prompts are done, and of how many.

    Returns:
        The report, and the scores of each prompt in order.
    """
    scorer = ResponseScorer(model)
    scores: list[PromptScores] = []
    tell = on_progress or (lambda done, total: None)
    tell(0, len(held_out.groups))
    for start in range(0, len(held_out.groups), _GROUPS_AT_ONCE):
        scores += _score(scorer, held_out.groups[start : start + _GROUPS_AT_ONCE])
        tell(len(scores), len(held_out.groups))
    return report(scores), scores


def _score(scorer: ResponseScorer, groups: Sequence[AnchoredGroup]) -> list[PromptScores]:
    wanted = [TokenGroup(g.tokens.prompt, g.tokens.responses + tuple(base.ids for base in g.bases)) for g in groups]
    logps = iter(scorer.score(wanted).summed().tolist())
    scores = []
    for group in groups:
        ratios = [next(logps) - ref for ref in group.ref_logps]
        drift = sum(next(logps) - base.ref_logp for base in group.bases)
        scores.append(
            PromptScores(
                pairs=tuple((ratios[chosen], ratios[rejected]) for chosen, rejected in group.pairs),
                drift=drift,
                base_tokens=sum(len(base.ids) for base in group.bases),
                bases=len(group.bases),
            )
        )
    return scores


def report(scores: Sequence[PromptScores]) -> PreferenceReport:
    """Estimates over prompts."""
    counts = [len(s.pairs) for s in scores]

    def over_pairs(of: Callable[[float, float], float]) -> Estimate:
        return bootstrap_ratio([sum(of(c, r) for c, r in s.pairs) for s in scores], counts)

    return PreferenceReport(
        reward_accuracy=over_pairs(lambda c, r: 1.0 if c > r else 0.5 if c == r else 0.0),
        margin=over_pairs(lambda c, r: c - r),
        chosen=over_pairs(lambda c, _: c),
        rejected=over_pairs(lambda _, r: r),
        drift=bootstrap_ratio([s.drift for s in scores], [s.bases for s in scores]),
        drift_per_token=bootstrap_ratio([s.drift for s in scores], [s.base_tokens for s in scores]),
        prompts=len(scores),
        pairs=sum(counts),
    )
