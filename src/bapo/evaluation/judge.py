"""A judge of answers: a text classifier that learned to tell chosen from rejected responses of the training prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from bapo.errors import BapoError
from bapo.preferences import Message, Preferences, PromptGroup
from bapo.results import Estimate
from bapo.results.estimates import NOTHING, bootstrap_share


@dataclass(frozen=True)
class Judge:
    """Logistic regression on words and pairs of words.

    Attributes:
        accuracy: share of held-out pairs whose chosen response it finds more like a chosen one, with an interval over
            prompts; a half is guessing. A judge that cannot tell these cannot tell answers.
    """

    classifier: Any
    accuracy: Estimate

    def __call__(self, answers: Sequence[str]) -> list[float]:
        """Of each answer the probability that it is a chosen response."""
        return [float(chosen) for _, chosen in self.classifier.predict_proba(list(answers))]


def train_judge(train: Preferences, held_out: Preferences) -> Judge:
    """Train a judge on the responses that are trained on, and try it on those that are held out.

    Raises:
        BapoError: all responses are on one side, so there is nothing to tell.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    rows = [row for rows in _labelled(train) for row in rows]
    if len({label for _, label in rows}) < 2:
        raise BapoError(f"{train.name} has no chosen and rejected responses that differ: no judge can learn from it.")
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=1, token_pattern=r"(?u)\b\w+\b|[^\w\s]")
    classifier = make_pipeline(vectorizer, LogisticRegression(C=10.0, max_iter=1000, class_weight="balanced"))
    classifier.fit([text for text, _ in rows], [label for _, label in rows])
    judge = Judge(classifier, NOTHING)
    right = [_right(judge, group) for group in held_out.groups]
    return replace(judge, accuracy=bootstrap_share(right, [float(len(group.pairs)) for group in held_out.groups]))


def _right(judge: Judge, group: PromptGroup) -> float:
    """Pairs whose chosen response the judge finds more like a chosen one; a tie counts a half."""
    chosen_like = judge([_text(response) for response in group.responses])
    pairs = ((chosen_like[chosen], chosen_like[rejected]) for chosen, rejected in group.pairs)
    return sum(1.0 if chosen > rejected else 0.5 if chosen == rejected else 0.0 for chosen, rejected in pairs)


def _labelled(preferences: Preferences) -> list[list[tuple[str, bool]]]:
    """Of each prompt its responses, and whether one is chosen; those that are both are left out."""
    by_prompt = []
    for group in preferences.groups:
        chosen, rejected = ({pair[side] for pair in group.pairs} for side in (0, 1))
        rows = [(_text(group.responses[at]), at in chosen) for at in sorted(chosen ^ rejected)]
        by_prompt.append([(text, label) for text, label in rows if text.strip()])
    return by_prompt


def _text(response: str | Message) -> str:
    return response if isinstance(response, str) else response.content
