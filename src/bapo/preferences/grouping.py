"""From comparisons to prompt groups, with a named policy for what is no use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from bapo.preferences.record import Pair, Preferences, Prompt, PromptGroup, Response, prompt_text, response_text

EQUAL, EMPTY, DUPLICATE, CONTRADICTION, TOO_LONG = (
    "equal responses",
    "empty response",
    "duplicate pair",
    "contradicts an earlier pair",
    "prompt too long",
)


@dataclass(frozen=True, slots=True)
class ReadingPolicy:
    """What happens to comparisons that teach nothing; each one dropped is counted by its reason.

    Equal and empty responses are always dropped.

    Attributes:
        drop_duplicates: keep the first of equal (prompt, chosen, rejected) only.
        drop_contradictions: drop a pair whose opposite came first.
        max_prompt_chars: drop prompts longer than this; None for no bound (tokens are bounded when anchoring).
    """

    drop_duplicates: bool = True
    drop_contradictions: bool = False
    max_prompt_chars: int | None = None


def group_pairs(name: str, pairs: Iterable[Pair], policy: ReadingPolicy | None = None) -> Preferences:
    """Group comparisons by prompt, in order of first appearance.

    Every comparison is either a pair of the result or counted as dropped.
    """
    policy = policy or ReadingPolicy()
    responses: dict[Prompt, dict[Response, int]] = {}
    kept: dict[Prompt, list[tuple[int, int]]] = {}
    seen: set[tuple[Prompt, Response, Response]] = set()
    dropped: Counter[str] = Counter()
    rows = 0
    for pair in pairs:
        rows += 1
        reason = _why_not(pair, seen, policy)
        if reason is not None:
            dropped[reason] += 1
            continue
        seen.add((pair.prompt, pair.chosen, pair.rejected))
        places = responses.setdefault(pair.prompt, {})
        chosen = places.setdefault(pair.chosen, len(places))
        rejected = places.setdefault(pair.rejected, len(places))
        kept.setdefault(pair.prompt, []).append((chosen, rejected))
    groups = tuple(PromptGroup(prompt, tuple(responses[prompt]), tuple(own)) for prompt, own in kept.items())
    return Preferences(name, groups, rows, dict(dropped))


def _why_not(pair: Pair, seen: set[tuple[Prompt, Response, Response]], policy: ReadingPolicy) -> str | None:
    chosen, rejected = (response_text(response).strip() for response in (pair.chosen, pair.rejected))
    if not chosen or not rejected:
        return EMPTY
    if chosen == rejected:
        return EQUAL
    if policy.max_prompt_chars is not None and len(prompt_text(pair.prompt)) > policy.max_prompt_chars:
        return TOO_LONG
    if policy.drop_duplicates and (pair.prompt, pair.chosen, pair.rejected) in seen:
        return DUPLICATE
    if policy.drop_contradictions and (pair.prompt, pair.rejected, pair.chosen) in seen:
        return CONTRADICTION
    return None
