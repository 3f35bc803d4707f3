"""log p(response | prompt) under a model: the one quantity that everything else makes, scores or compares."""

from bapo.likelihood.fit import Verdict, judge, judge_by
from bapo.likelihood.kl import Divergence, divergence
from bapo.likelihood.layout import TokenGroup, TokenIds, share_headers
from bapo.likelihood.noise import NoiseFloor, gap_of, noise_floor
from bapo.likelihood.passes import ResponseLogps, evaluating
from bapo.likelihood.scoring import ResponseScorer
from bapo.likelihood.strands import MOST_STRANDS

__all__ = [
    "MOST_STRANDS",
    "Divergence",
    "NoiseFloor",
    "ResponseLogps",
    "ResponseScorer",
    "TokenGroup",
    "TokenIds",
    "Verdict",
    "divergence",
    "evaluating",
    "gap_of",
    "judge",
    "judge_by",
    "noise_floor",
    "share_headers",
]
