"""From comparisons to prompt groups, with a named policy for what is no use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from bapo.files import UNREADABLE
from bapo.preferences.record import Pair, Preferences, Prompt, PromptGroup, Response, prompt_text, response_text

EQUAL, EMPTY, NO_PROMPT, DUPLICATE, CONTRADICTION, TOO_LONG = (
    "equal responses",
    "empty response",
    "empty prompt",
    "duplicate pair",
    "contradicts an earlier pair",
    "prompt too long",
)
CONTRADICTS, REPEATS, WHITE_SPACE, UNREAD = (
    "contradicts another pair",
    "repeats an earlier pair but for white space",
    "responses differ in white space only",
    "holds a letter that could not be read (U+FFFD)",
)


@dataclass(frozen=True, slots=True)
class ReadingPolicy:
    """What happens to comparisons that teach nothing; each one dropped is counted by its reason.

    Equal and empty responses, and prompts that end with an empty turn, are always dropped.

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
    bases: dict[Prompt, dict[str, None]] = {}
    seen: set[tuple[Prompt, Response, Response]] = set()
    dropped: Counter[str] = Counter()
    rows = 0
    for pair in pairs:
        rows += 1
        bases.setdefault(pair.prompt, {}).update(dict.fromkeys(pair.bases))
        reason = _why_not(pair, seen, policy)
        if reason is not None:
            dropped[reason] += 1
            continue
        seen.add((pair.prompt, pair.chosen, pair.rejected))
        places = responses.setdefault(pair.prompt, {})
        chosen = places.setdefault(pair.chosen, len(places))
        rejected = places.setdefault(pair.rejected, len(places))
        kept.setdefault(pair.prompt, []).append((chosen, rejected))
    groups = tuple(
        PromptGroup(prompt, tuple(responses[prompt]), tuple(own), tuple(bases[prompt])) for prompt, own in kept.items()
    )
    return Preferences(name, groups, rows, dict(dropped))


def _why_not(pair: Pair, seen: set[tuple[Prompt, Response, Response]], policy: ReadingPolicy) -> str | None:
    chosen, rejected = (response_text(response).strip() for response in (pair.chosen, pair.rejected))
    if not chosen or not rejected:
        return EMPTY
    if chosen == rejected:
        return EQUAL
    if not response_text(pair.prompt if isinstance(pair.prompt, str) else pair.prompt[-1]).strip():
        return NO_PROMPT
    if policy.max_prompt_chars is not None and len(prompt_text(pair.prompt)) > policy.max_prompt_chars:
        return TOO_LONG
    if policy.drop_duplicates and (pair.prompt, pair.chosen, pair.rejected) in seen:
        return DUPLICATE
    if policy.drop_contradictions and (pair.prompt, pair.rejected, pair.chosen) in seen:
        return CONTRADICTION
    return None


def doubtful(preferences: Preferences) -> dict[str, int]:
    """How many pairs are kept and yet worth a look, by what is the matter with them.

    Pairs that contradict each other may be two people's honest opinions, so they stay; but they teach nothing together.
    """
    counts = dict.fromkeys((CONTRADICTS, REPEATS, WHITE_SPACE, UNREAD), 0)
    exact, normal = set(), set()
    for group in preferences.groups:
        prompt, pairs = prompt_text(group.prompt), set(group.pairs)
        responses = [response_text(response) for response in group.responses]
        spaced = [" ".join(response.split()) for response in responses]
        unread = [UNREADABLE in response or UNREADABLE in prompt for response in responses]
        for chosen, rejected in group.pairs:
            counts[CONTRADICTS] += (rejected, chosen) in pairs
            counts[WHITE_SPACE] += spaced[chosen] == spaced[rejected]
            counts[UNREAD] += unread[chosen] or unread[rejected]
            exact.add((prompt, responses[chosen], responses[rejected]))
            normal.add((" ".join(prompt.split()), spaced[chosen], spaced[rejected]))
    counts[REPEATS] = len(exact) - len(normal)
    return {reason: count for reason, count in counts.items() if count}
