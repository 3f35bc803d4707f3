"""What was learned and what drifted, on held-out prompts: reward accuracy, margin and base drift."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

from torch import nn

from bapo.anchoring import AnchoredGroup, AnchoredPreferences
from bapo.errors import BapoError
from bapo.evaluation.bootstrap import Estimate, bootstrap_ratio
from bapo.kernels import Kernels
from bapo.likelihood import ResponseScorer, TokenGroup
from bapo.models import ChatFormat
from bapo.preferences import Message, Prompt, turns_of

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


Logps = Sequence[tuple[float, ...]]
"""Of each prompt the log-probs of its responses and, behind them, of its base responses, nats."""


def held_out_logps(
    model: nn.Module,
    held_out: AnchoredPreferences,
    *,
    kernels: Kernels = "auto",
    on_progress: Callable[[int, int], None] | None = None,
) -> Logps:
    """Score held-out responses, in rows that depend on the preferences alone.

    Args:
        model: any model.
        held_out: the prompts.
        kernels: speed-ups that may be used (`bapo.kernels`).
        on_progress: told how many prompts are done, and of how many.
    """
    scorer = ResponseScorer(model, kernels)
    found: list[tuple[float, ...]] = []
    tell = on_progress or (lambda done, total: None)
    tell(0, len(held_out.groups))
    for start in range(0, len(held_out.groups), _GROUPS_AT_ONCE):
        groups = held_out.groups[start : start + _GROUPS_AT_ONCE]
        wanted = [TokenGroup(g.tokens.prompt, g.tokens.responses + tuple(b.ids for b in g.bases)) for g in groups]
        logps = iter(scorer.score(wanted).summed().tolist())
        found += [tuple(islice(logps, len(group.responses))) for group in wanted]
        tell(len(found), len(held_out.groups))
    return found


def evaluate_preferences(
    model: nn.Module,
    held_out: AnchoredPreferences,
    *,
    reference: Logps | None = None,
    kernels: Kernels = "auto",
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[PreferenceReport, list[PromptScores]]:
    """Score held-out prompts under a policy and compare with their reference.

    Args:
        model: the policy.
        held_out: anchored preferences whose reference is the model that the policy started from.
        reference: `held_out_logps` of that model, from the rows that the policy is scored in: then a policy that has
            learned nothing has log-ratios of exactly 0. None takes what was stored, which rounding makes differ.
        kernels: speed-ups that may be used (`bapo.kernels`).
        on_progress: told how many prompts are done, and of how many.

    Returns:
        The report, and the scores of each prompt in order.
    """
    stored = [(*group.ref_logps, *(base.ref_logp for base in group.bases)) for group in held_out.groups]
    logps = held_out_logps(model, held_out, kernels=kernels, on_progress=on_progress)
    scores = [
        _scores(group, [own - ref for own, ref in zip(policy, of_reference, strict=True)])
        for group, policy, of_reference in zip(held_out.groups, logps, reference or stored, strict=True)
    ]
    return report(scores), scores


def _scores(group: AnchoredGroup, ratios: Sequence[float]) -> PromptScores:
    return PromptScores(
        pairs=tuple((ratios[chosen], ratios[rejected]) for chosen, rejected in group.pairs),
        drift=sum(ratios[len(group.ref_logps) :]),
        base_tokens=sum(len(base.ids) for base in group.bases),
        bases=len(group.bases),
    )


def report(scores: Sequence[PromptScores]) -> PreferenceReport:
    """Estimates over prompts."""
    counts = [len(s.pairs) for s in scores]

    def over_pairs(of: Callable[[float, float], float]) -> Estimate:
        return bootstrap_ratio([sum(of(c, r) for c, r in s.pairs) for s in scores], counts)

    return PreferenceReport(
        reward_accuracy=over_pairs(_won),
        margin=over_pairs(lambda c, r: c - r),
        chosen=over_pairs(lambda c, _: c),
        rejected=over_pairs(lambda _, r: r),
        drift=bootstrap_ratio([s.drift for s in scores], [s.bases for s in scores]),
        drift_per_token=bootstrap_ratio([s.drift for s in scores], [s.base_tokens for s in scores]),
        prompts=len(scores),
        pairs=sum(counts),
    )


def prompted(
    held_out: AnchoredPreferences, chat: ChatFormat, system: str, *, reach: int | None = None
) -> AnchoredPreferences:
    """The same responses after prompts that begin with a system turn: the rival that is told instead of trained.

    Log-ratios of what it is asked are those of pi_ref(y | system, x) to pi_ref(y | x).

    Args:
        held_out: the prompts.
        chat: the rival's chat format.
        system: the system turn.
        reach: positions that the model has; None for no bound.

    Raises:
        BapoError: a prompt is plain text, which has no turns, or does not fit into the model with its system turn.
    """
    groups = [
        replace(own, tokens=replace(own.tokens, prompt=chat.prompt_ids(_with_system(own.source.prompt, system))))
        for own in held_out.groups
    ]
    longest = max(
        len(own.tokens.prompt) + len(response)
        for own in groups
        for response in (*own.tokens.responses, *(base.ids for base in own.bases))
    )
    if reach is not None and longest > reach:
        raise BapoError(
            f"With the preference as its system turn, a held-out prompt and its response have {longest} tokens, more "
            f"than the model's {reach} positions: leave out --prompt-only, or lower preferences.max_prompt_tokens."
        )
    return replace(held_out, groups=tuple(groups))


def _with_system(prompt: Prompt, system: str) -> Prompt:
    if isinstance(prompt, str):
        raise BapoError("A plain-text prompt has no system turn: leave out --plain, or --prompt-only.")
    turns = turns_of(prompt)
    beside = prompt[: len(prompt) - len(turns)]
    own = next((turn.content for turn in turns[:1] if turn.role == "system"), None)
    text = system if own is None else f"{system}\n\n{own}"
    return (*beside, Message("system", text), *(turns if own is None else turns[1:]))


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

    def change(of: Callable[[PromptScores], float], counts: Sequence[float]) -> Estimate:
        return bootstrap_ratio([of(b) - of(a) for a, b in zip(before, after, strict=True)], counts)

    pairs = [len(own.pairs) for own in before]
    return PreferenceChange(
        change(lambda own: 100 * sum(_won(c, r) for c, r in own.pairs), pairs),
        change(lambda own: sum(c - r for c, r in own.pairs), pairs),
        change(lambda own: own.drift, [own.bases for own in before]),
    )


def _won(chosen: float, rejected: float) -> float:
    return 1.0 if chosen > rejected else 0.5 if chosen == rejected else 0.0
