"""Objectives: pure functions from log-probs to a loss and its parts."""

from bapo.objectives.anchors import ANCHORS
from bapo.objectives.logps import BaseLogps, PairLogps
from bapo.objectives.registry import PAIR_LOSSES, LossParts, Objective, make_objective
from bapo.objectives.rso import rejection_sample, sample_pairs

__all__ = [
    "ANCHORS",
    "PAIR_LOSSES",
    "BaseLogps",
    "LossParts",
    "Objective",
    "PairLogps",
    "make_objective",
    "rejection_sample",
    "sample_pairs",
]
