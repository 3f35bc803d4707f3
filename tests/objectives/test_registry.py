"""Objectives by name: defaults, and what is refused and how."""

from __future__ import annotations

import pytest

from bapo.errors import BapoError
from bapo.objectives import ANCHORS, PAIR_LOSSES, make_objective
from bapo.objectives.losses import dpop
from tests.objectives.logps import pair

NAMES = ["dpo", "bapo", "ipo", "ipo-summed", "dpop", "orpo", "rso"]


def test_names() -> None:
    assert sorted(PAIR_LOSSES) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_defaults(name: str) -> None:
    objective = make_objective(name)
    assert objective.name == name
    assert objective.beta == 0.1
    assert objective.description == PAIR_LOSSES[name].description
    expected = (ANCHORS["length-normalized"], 5.0) if name == "bapo" else (None, 0.0)
    assert (objective.anchor, objective.anchor_strength) == expected


@pytest.mark.parametrize("name", NAMES)
def test_beta_reaches_the_loss(name: str) -> None:
    assert make_objective(name, beta=0.3).pair_loss(pair()) != make_objective(name).pair_loss(pair())


def test_penalty_reaches_dpop() -> None:
    lost = pair(chosen=-11.2)
    assert make_objective("dpop", penalty=3).pair_loss(lost) == dpop(lost, beta=0.1, penalty=3.0)
    assert make_objective("dpop").pair_loss(lost) == dpop(lost, beta=0.1, penalty=50.0)


REFUSED = [
    ("bapoo", {}, "did you mean 'bapo'"),
    ("simpo", {}, "use one of dpo, bapo"),
    ("dpo", {"anchor_strength": 5.0}, "belong to the objective bapo"),
    ("ipo", {"anchor": "token"}, "belong to the objective bapo"),
    ("dpo", {"penalty": 50.0}, "dpo has no setting 'penalty'"),
    ("bapo", {"penalty": 50.0}, "bapo has no setting 'penalty'"),
    ("bapo", {"anchor_strenght": 1.0}, "did you mean 'anchor_strength'"),
    ("dpop", {"penality": 50.0}, "did you mean 'penalty'"),
    ("bapo", {"anchor": "sequences"}, "did you mean 'sequence'"),
    ("bapo", {"anchor": None}, "Unknown anchor None"),
    ("bapo", {"anchor_strength": -1.0}, "anchor_strength must be"),
    ("bapo", {"anchor_strength": float("inf")}, "anchor_strength must be"),
    ("dpop", {"penalty": -50.0}, "penalty must be"),
    ("dpop", {"penalty": "50"}, "penalty must be"),
    ("dpo", {"beta": 0}, "beta must be"),
    ("dpo", {"beta": -0.1}, "beta must be"),
    ("dpo", {"beta": float("nan")}, "beta must be"),
    ("dpo", {"pairs": 1}, "dpo has no setting 'pairs'"),
]


@pytest.mark.parametrize(("name", "settings", "message"), REFUSED, ids=lambda value: str(value))
def test_refused(name: str, settings: dict[str, object], message: str) -> None:
    with pytest.raises(BapoError, match=message):
        make_objective(name, **settings)
