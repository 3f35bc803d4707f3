"""Whether a model speaks differently: its answers as a classifier judges them, their length, and how they repeat.

Reward accuracy compares log-probs of responses that others wrote; it says little about what the model says itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from bapo.results.estimates import Estimate, bootstrap_ratio


@dataclass(frozen=True, slots=True)
class AnswerNumbers:
    """One answer as numbers, without its text.

    Attributes:
        chosen_like: probability that it is a chosen response, as the judge sees it.
        words: how many it has.
        repeated: share of its runs of four words that stood in it before.
    """

    chosen_like: float
    words: int
    repeated: float


@dataclass(frozen=True, slots=True)
class Behaviour:
    """A model's answers to held-out prompts; means with intervals over prompts.

    Attributes:
        chosen_like: mean probability, by the judge, that an answer is a chosen response.
        words, repeated: see `AnswerNumbers`.
        answers: how many there are.
    """

    chosen_like: Estimate
    words: Estimate
    repeated: Estimate
    answers: int


def numbers_of(text: str, chosen_like: float) -> AnswerNumbers:
    """Of an answer that was judged.

    >>> numbers_of("we go and we go and we go", 0.5)
    AnswerNumbers(chosen_like=0.5, words=8, repeated=0.4)
    """
    words = text.lower().split()
    runs = Counter(zip(*(words[start:] for start in range(4)), strict=False))
    total = sum(runs.values())
    return AnswerNumbers(chosen_like, len(words), (total - len(runs)) / total if total else 0.0)


def behaviour(answers: Sequence[AnswerNumbers]) -> Behaviour:
    """What answers say of the model that gave them."""

    def mean(name: str) -> Estimate:
        return bootstrap_ratio([float(getattr(answer, name)) for answer in answers], [1.0] * len(answers))

    return Behaviour(mean("chosen_like"), mean("words"), mean("repeated"), len(answers))
