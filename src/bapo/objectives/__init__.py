"""Objectives: pure functions from log-probs to a loss and its parts."""

from bapo.objectives.logps import BaseLogps, PairLogps
from bapo.objectives.objective import LossParts, Objective, make_objective, objective_of
from bapo.objectives.registry import (
    ANCHOR_CONTROLS,
    ANCHORS,
    PAIR_LOSSES,
    AnchorControl,
    anchor,
    anchor_control,
    pair_loss,
)

__all__ = [
    "ANCHORS",
    "ANCHOR_CONTROLS",
    "PAIR_LOSSES",
    "AnchorControl",
    "BaseLogps",
    "LossParts",
    "Objective",
    "PairLogps",
    "anchor",
    "anchor_control",
    "make_objective",
    "objective_of",
    "pair_loss",
]
