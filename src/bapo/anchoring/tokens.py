"""Preferences as token ids: the same prompt groups, ready to be scored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from bapo.likelihood import TokenGroup
from bapo.models import ChatFormat
from bapo.preferences import Preferences, PromptGroup


@dataclass(frozen=True, slots=True)
class LengthPolicy:
    """What happens to texts that are too long; every case is counted.

    Attributes:
        max_prompt_tokens: a longer prompt is dropped with its pairs.
        max_response_tokens: a longer response is cut there, and a cut response gets no end token.
        max_tokens: prompt and response together, as far as the model's positions reach; None for no bound.
    """

    max_prompt_tokens: int = 1024
    max_response_tokens: int = 1024
    max_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class TokenizedGroup:
    """A prompt group as token ids. ``source`` is the group in words, for people."""

    source: PromptGroup
    tokens: TokenGroup
    pairs: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Tokenized:
    """Tokenized groups and the pairs that did not make it, by reason."""

    groups: tuple[TokenizedGroup, ...]
    counts: Mapping[str, int] = field(default_factory=dict)


def tokenize(preferences: Preferences, chat: ChatFormat, policy: LengthPolicy) -> Tokenized:
    """Tokenize all groups under a length policy.

    Raises:
        BapoError: the model cannot express a prompt (no chat template, a refused role).
    """
    counts: Counter[str] = Counter()
    groups = []
    for group in preferences.groups:
        tokenized = _tokenize_group(group, chat, policy, counts)
        if tokenized is not None:
            groups.append(tokenized)
    return Tokenized(tuple(groups), dict(counts))


def _tokenize_group(
    group: PromptGroup, chat: ChatFormat, policy: LengthPolicy, counts: Counter[str]
) -> TokenizedGroup | None:
    prompt = chat.prompt_ids(group.prompt, counts)
    room = policy.max_response_tokens
    if policy.max_tokens is not None:
        room = min(room, policy.max_tokens - len(prompt))
    if len(prompt) > policy.max_prompt_tokens or room < 1:
        counts["pairs dropped: prompt too long"] += len(group.pairs)
        return None
    responses = []
    for response in group.responses:
        ids = chat.response_ids(response, group.prompt, counts)
        if len(ids) > room:
            counts["responses cut: too long"] += 1
        responses.append(ids[:room])
    pairs = [(chosen, rejected) for chosen, rejected in group.pairs if responses[chosen] != responses[rejected]]
    if len(pairs) < len(group.pairs):
        counts["pairs dropped: equal as tokens"] += len(group.pairs) - len(pairs)
    first = {(responses[chosen], responses[rejected]): (chosen, rejected) for chosen, rejected in reversed(pairs)}
    kept = [pair for pair in pairs if pair == first[responses[pair[0]], responses[pair[1]]]]
    if len(kept) < len(pairs):  # pairs that repeat in words do so on purpose (the paper's protocol)
        counts["pairs dropped: the same tokens as an earlier pair"] += len(pairs) - len(kept)
    if not kept:
        return None
    return TokenizedGroup(group, TokenGroup(prompt, tuple(responses)), tuple(kept))
