"""What preferences hold, in numbers and examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bapo.preferences.grouping import doubtful
from bapo.preferences.record import Preferences, prompt_text, response_text
from bapo.progress import tell


@dataclass(frozen=True, slots=True)
class Spread:
    """Smallest, 10 %, median, 90 % and largest value."""

    min: int
    p10: int
    median: int
    p90: int
    max: int

    @classmethod
    def of(cls, values: Sequence[int]) -> Spread:
        """The spread of at least one value."""
        ordered = sorted(values)
        at = [round(share * (len(ordered) - 1)) for share in (0, 0.1, 0.5, 0.9, 1)]
        return cls(*(ordered[i] for i in at))


@dataclass(frozen=True, slots=True)
class Example:
    """One pair to read."""

    prompt: str
    chosen: str
    rejected: str


@dataclass(frozen=True, slots=True)
class Summary:
    """Counts, lengths in words, what was dropped and why, what is doubtful, and three examples spread over the data.

    ``with_bases`` counts the prompts that come with base responses of their own.
    """

    name: str
    rows: int
    prompts: int
    responses: int
    pairs: int
    pairs_per_prompt: dict[int, int]
    prompt_words: Spread
    chosen_words: Spread
    rejected_words: Spread
    with_bases: int
    dropped: dict[str, int]
    doubtful: dict[str, int]
    examples: tuple[Example, ...]

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


def summarize(preferences: Preferences, examples: int = 3) -> Summary:
    """Summarize preferences that hold at least one pair."""
    tell("summing up", 0, 1)
    groups = preferences.groups
    pairs = [(group, chosen, rejected) for group in groups for chosen, rejected in group.pairs]
    shown = sorted({round(i * (len(groups) - 1) / max(1, examples - 1)) for i in range(examples)})
    summary = Summary(
        name=preferences.name,
        rows=preferences.rows,
        prompts=len(groups),
        responses=sum(len(group.responses) for group in groups),
        pairs=len(pairs),
        pairs_per_prompt=dict(sorted(Counter(len(group.pairs) for group in groups).items())),
        prompt_words=Spread.of([len(prompt_text(group.prompt).split()) for group in groups]),
        chosen_words=Spread.of([len(response_text(group.responses[chosen]).split()) for group, chosen, _ in pairs]),
        rejected_words=Spread.of(
            [len(response_text(group.responses[rejected]).split()) for group, _, rejected in pairs]
        ),
        with_bases=sum(bool(group.bases) for group in groups),
        dropped=dict(preferences.dropped),
        doubtful=doubtful(preferences),
        examples=tuple(
            Example(
                prompt_text(groups[i].prompt),
                response_text(groups[i].responses[groups[i].pairs[0][0]]),
                response_text(groups[i].responses[groups[i].pairs[0][1]]),
            )
            for i in shown
        ),
    )
    tell("summing up", 1, 1)
    return summary
