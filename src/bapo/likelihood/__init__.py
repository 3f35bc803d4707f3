"""log p(response | prompt) under a model: the one quantity that everything else makes, scores or compares."""

from bapo.likelihood.layout import TokenGroup, TokenIds, share_headers
from bapo.likelihood.passes import MOST_AT_ONCE, passes_at_once, side_by_side, worth_it
from bapo.likelihood.scoring import SCORING_VERSION, ResponseLogps, ResponseScorer, evaluating

__all__ = [
    "MOST_AT_ONCE",
    "SCORING_VERSION",
    "ResponseLogps",
    "ResponseScorer",
    "TokenGroup",
    "TokenIds",
    "evaluating",
    "passes_at_once",
    "share_headers",
    "side_by_side",
    "worth_it",
]
