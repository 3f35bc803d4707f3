"""What was learned and what drifted, on held-out prompts: reward accuracy, margin and base drift."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

from torch import nn

from bapo.anchoring import AnchoredGroup, AnchoredPreferences
from bapo.errors import BapoError
from bapo.kernels import Kernels
from bapo.likelihood import ResponseScorer, TokenGroup
from bapo.models import ChatFormat
from bapo.preferences import Message, Prompt, turns_of
from bapo.progress import OnProgress, silent
from bapo.results import PreferenceReport, PromptScores, report

_GROUPS_AT_ONCE = 16


Logps = Sequence[tuple[float, ...]]
"""Of each prompt the log-probs of its responses and, behind them, of its base responses, nats."""


def held_out_logps(
    model: nn.Module,
    held_out: AnchoredPreferences,
    *,
    kernels: Kernels = "auto",
    stage: str = "held-out prompts",
    on_progress: OnProgress = silent,
) -> Logps:
    """Score held-out responses, in rows that depend on the preferences alone.

    Args:
        model: any model.
        held_out: the prompts.
        kernels: speed-ups that may be used (`bapo.kernels`).
        stage: what this is called to `on_progress`, which is told how many prompts are done.
    """
    scorer = ResponseScorer(model, kernels)
    group_logps: list[tuple[float, ...]] = []
    on_progress(stage, 0, len(held_out.groups))
    for start in range(0, len(held_out.groups), _GROUPS_AT_ONCE):
        groups = held_out.groups[start : start + _GROUPS_AT_ONCE]
        wanted = [TokenGroup(g.tokens.prompt, g.tokens.responses + tuple(b.ids for b in g.bases)) for g in groups]
        logps = iter(scorer.score(wanted).summed().tolist())
        group_logps += [tuple(islice(logps, len(group.responses))) for group in wanted]
        on_progress(stage, len(group_logps), len(held_out.groups))
    return group_logps


def evaluate_preferences(
    model: nn.Module,
    held_out: AnchoredPreferences,
    *,
    reference: Logps | None = None,
    kernels: Kernels = "auto",
    stage: str = "held-out prompts",
    on_progress: OnProgress = silent,
) -> tuple[PreferenceReport, list[PromptScores]]:
    """Score held-out prompts under a policy and compare with their reference.

    Args:
        model: the policy.
        held_out: anchored preferences whose reference is the model that the policy started from.
        reference: `held_out_logps` of that model, from the rows that the policy is scored in: then a policy that has
            learned nothing has log-ratios of exactly 0. None takes what was stored, which rounding makes differ.
        kernels: speed-ups that may be used (`bapo.kernels`).
        stage: what this is called to `on_progress`, which is told how many prompts are done.

    Returns:
        The report, and the scores of each prompt in order.
    """
    stored = [(*group.ref_logps, *(base.ref_logp for base in group.bases)) for group in held_out.groups]
    logps = held_out_logps(model, held_out, kernels=kernels, stage=stage, on_progress=on_progress)
    scores = [
        _scores(group, [policy_logp - ref for policy_logp, ref in zip(policy, of_reference, strict=True)])
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
        replace(group, tokens=replace(group.tokens, prompt=chat.prompt_ids(with_system(group.source.prompt, system))))
        for group in held_out.groups
    ]
    longest = max(
        len(group.tokens.prompt) + len(response)
        for group in groups
        for response in (*group.tokens.responses, *(base.ids for base in group.bases))
    )
    if reach is not None and longest > reach:
        raise BapoError(
            f"With the preference as its system turn, a held-out prompt and its response have {longest} tokens, more "
            f"than the model's {reach} positions: leave out --prompt-only, or lower preferences.max_prompt_tokens."
        )
    return replace(held_out, groups=tuple(groups))


def with_system(prompt: Prompt, system: str) -> Prompt:
    """A prompt behind a system turn; one that it has already goes on below.

    Raises:
        BapoError: the prompt is plain text, which has no turns.
    """
    if isinstance(prompt, str):
        raise BapoError("A plain-text prompt has no system turn: leave out --plain, or --prompt-only.")
    turns = turns_of(prompt)
    beside = prompt[: len(prompt) - len(turns)]
    given = next((turn.content for turn in turns[:1] if turn.role == "system"), None)
    text = system if given is None else f"{system}\n\n{given}"
    return (*beside, Message("system", text), *(turns if given is None else turns[1:]))
