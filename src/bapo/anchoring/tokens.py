"""Preferences as token ids: the same prompt groups, ready to be scored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from bapo.anchoring.index import StoreIndex
from bapo.anchoring.kept import Packed, name_of, packed, shared_ids, text_hash, tokenizing_mark, unpacked
from bapo.likelihood import TokenGroup
from bapo.models import ChatFormat
from bapo.preferences import Preferences, PromptGroup
from bapo.progress import OnProgress, silent

_AT_ONCE = 512
"""Groups that are tokenized between two words of progress, and kept together."""


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
    """A prompt group as token ids. ``source`` is the group in words, for people, and ``text`` their hash."""

    source: PromptGroup
    tokens: TokenGroup
    pairs: tuple[tuple[int, int], ...]
    text: bytes


@dataclass(frozen=True)
class Tokenized:
    """Tokenized groups and the pairs that did not make it, by reason."""

    groups: tuple[TokenizedGroup, ...]
    counts: Mapping[str, int] = field(default_factory=dict)


def tokenize(
    preferences: Preferences,
    chat: ChatFormat,
    policy: LengthPolicy,
    *,
    index: StoreIndex | None = None,
    on_progress: OnProgress = silent,
) -> Tokenized:
    """Tokenize all groups under a length policy.

    Args:
        preferences, chat, policy: what, how, and what happens to long texts.
        index: where token ids are kept from one start to the next; None for nowhere.
        on_progress: told how many groups are done.

    Raises:
        BapoError: the model cannot express a prompt (no chat template, a refused role).
    """
    counts: Counter[str] = Counter()
    groups: list[TokenizedGroup] = []
    total, mark = len(preferences.groups), tokenizing_mark(chat, policy) if index is not None else None
    on_progress("tokenizing", 0, total)
    for start in range(0, total, _AT_ONCE):
        some = preferences.groups[start : start + _AT_ONCE]
        texts = [text_hash(group) for group in some]
        names = [name_of(mark, text) for text in texts] if mark is not None else [b""] * len(texts)
        known = index.kept("tokens", names) if index is not None and mark is not None else {}
        made: dict[bytes, bytes] = {}
        for group, text, name in zip(some, texts, names, strict=True):
            if name in known:
                tokenized, own_counts = _unpacked(known[name], group, text)
            else:
                tokenized, own_counts = _tokenize_group(group, text, chat, policy)
                made[name] = _packed(tokenized, own_counts)
            counts.update(own_counts)
            groups += [tokenized] if tokenized is not None else []
        if made and index is not None and mark is not None:
            index.keep("tokens", made)
            index.commit()
        on_progress("tokenizing", min(start + _AT_ONCE, total), total)
    return Tokenized(tuple(groups), dict(counts))


def _packed(tokenized: TokenizedGroup | None, counts: Counter[str]) -> bytes:
    if tokenized is None:
        return packed(Packed([[], counts], ()))
    tokens = tokenized.tokens
    return packed(Packed([tokenized.pairs, counts], (tokens.prompt, *tokens.responses)))


def _unpacked(content: bytes, group: PromptGroup, text: bytes) -> tuple[TokenizedGroup | None, Counter[str]]:
    (pairs, counts), rows, _ = unpacked(content)
    if not rows:
        return None, Counter(counts)
    tokens = TokenGroup(rows[0], tuple(rows[1:]))
    return TokenizedGroup(group, tokens, tuple(map(tuple, pairs)), text), Counter(counts)


def _tokenize_group(
    group: PromptGroup, text: bytes, chat: ChatFormat, policy: LengthPolicy
) -> tuple[TokenizedGroup | None, Counter[str]]:
    """The group in tokens, if a pair of it is left, and what was dropped or cut of it."""
    counts: Counter[str] = Counter()
    prompt = chat.prompt_ids(group.prompt, counts)
    room = policy.max_response_tokens
    if policy.max_tokens is not None:
        room = min(room, policy.max_tokens - len(prompt))
    if len(prompt) > policy.max_prompt_tokens or room < 1:
        counts["pairs dropped: prompt too long"] += len(group.pairs)
        return None, counts
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
        return None, counts
    tokens = TokenGroup(shared_ids(prompt), tuple(map(shared_ids, responses)))
    return TokenizedGroup(group, tokens, tuple(kept), text), counts
