"""log p(response | prompt) under a model: the one quantity that everything else makes, scores or compares."""

from bapo.likelihood.layout import TokenGroup, TokenIds, share_headers
from bapo.likelihood.scoring import SCORING_VERSION, ResponseLogps, ResponseScorer, evaluating
from bapo.likelihood.strands import MOST_STRANDS

__all__ = [
    "MOST_STRANDS",
    "SCORING_VERSION",
    "ResponseLogps",
    "ResponseScorer",
    "TokenGroup",
    "TokenIds",
    "evaluating",
    "share_headers",
]
