"""From comparisons to prompt groups, with a named policy for what is no use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from bapo.errors import BapoError
from bapo.files import UNREADABLE
from bapo.preferences.record import Pair, Preferences, Prompt, PromptGroup, Response, prompt_text, response_text

EQUAL, EMPTY, NO_PROMPT, DUPLICATE = ("equal responses", "empty response", "empty prompt", "duplicate pair")
CONTRADICTS, REPEATS, WHITE_SPACE, UNREAD = (
    "contradicts another pair",
    "repeats an earlier pair but for white space",
    "responses differ in white space only",
    "holds a letter that could not be read (U+FFFD)",
)


def group_pairs(name: str, pairs: Iterable[Pair], *, drop_duplicates: bool = True) -> Preferences:
    """Group comparisons by prompt, in order of first appearance.

    Every comparison is either a pair of the result or counted as dropped, by its reason: equal and empty responses,
    prompts that end with an empty turn, and but for ``drop_duplicates=False`` all but the first of equal comparisons.
    """
    responses: dict[Prompt, dict[Response, int]] = {}
    kept: dict[Prompt, list[tuple[int, int]]] = {}
    bases: dict[Prompt, dict[str, None]] = {}
    seen: set[tuple[Prompt, Response, Response]] = set()
    dropped: Counter[str] = Counter()
    rows = 0
    for pair in pairs:
        rows += 1
        bases.setdefault(pair.prompt, {}).update(dict.fromkeys(pair.bases))
        reason = _why_not(pair, seen if drop_duplicates else set())
        if reason is not None:
            dropped[reason] += 1
            continue
        seen.add((pair.prompt, pair.chosen, pair.rejected))
        places = responses.setdefault(pair.prompt, {})
        chosen = places.setdefault(pair.chosen, len(places))
        rejected = places.setdefault(pair.rejected, len(places))
        kept.setdefault(pair.prompt, []).append((chosen, rejected))
    groups = tuple(
        PromptGroup(prompt, tuple(responses[prompt]), tuple(indices), tuple(bases[prompt]))
        for prompt, indices in kept.items()
    )
    return Preferences(name, groups, rows, dict(dropped))


def check_usable(preferences: Preferences) -> None:
    """Refuse preferences of which nothing was kept.

    Raises:
        BapoError: nothing was; says why.
    """
    if not preferences.groups:
        reasons = ", ".join(f"{count} {reason}" for reason, count in preferences.dropped.items()) or "it is empty"
        raise BapoError(
            f"There is no usable comparison in {preferences.name} ({reasons}): each needs a prompt, and a chosen and a "
            "rejected response that are not empty and differ."
        )


def _why_not(pair: Pair, seen: set[tuple[Prompt, Response, Response]]) -> str | None:
    chosen, rejected = (response_text(response).strip() for response in (pair.chosen, pair.rejected))
    if not chosen or not rejected:
        return EMPTY
    if chosen == rejected:
        return EQUAL
    if not response_text(pair.prompt if isinstance(pair.prompt, str) else pair.prompt[-1]).strip():
        return NO_PROMPT
    return DUPLICATE if (pair.prompt, pair.chosen, pair.rejected) in seen else None


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
