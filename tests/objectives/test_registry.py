"""Objectives by name: defaults, and what is refused and how."""

from __future__ import annotations

from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch

from bapo.errors import BapoError
from bapo.objectives import ANCHORS, PAIR_LOSSES, PairLogps, make_objective, objective_of, pair_loss
from bapo.objectives.losses.dpop import dpop
from tests.objectives.logps import bases, pair

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
    ("simpo", {}, "use one of bapo, dpo"),
    (
        "dpo",
        {"anchor_strength": 5.0},
        "dpo has no anchor, and so no anchor_strength: name an anchor .length-normalized, seq",
    ),
    ("ipo", {"anchor_control": "adaptive"}, "ipo has no anchor, and so no anchor_control"),
    ("ipo", {"anchor": "tokens"}, "Unknown anchor 'tokens' .did you mean 'token'"),
    ("bapo", {"anchor_control": "adaptiv"}, "Unknown anchor control 'adaptiv' .did you mean 'adaptive'"),
    ("bapo", {"gain": 0.1}, "bapo has no setting 'gain'"),
    ("bapo", {"anchor_control": "adaptive", "gain": 2}, "gain must be a number above 0 and at most 1"),
    ("dpo", {"penalty": 50.0}, "dpo has no setting 'penalty'"),
    ("bapo", {"penalty": 50.0}, "bapo has no setting 'penalty'"),
    ("bapo", {"anchor_strenght": 1.0}, "did you mean 'anchor_strength'"),
    ("dpop", {"penality": 50.0}, "did you mean 'penalty'"),
    ("bapo", {"anchor": "sequences"}, "did you mean 'sequence'"),
    ("bapo", {"anchor": 3}, "Unknown anchor 3"),
    ("bapo", {"anchor_strength": -1.0}, "anchor_strength must be"),
    ("bapo", {"anchor_strength": float("inf")}, "anchor_strength must be"),
    ("dpop", {"penalty": -50.0}, "penalty must be"),
    ("dpop", {"penalty": "50"}, "penalty must be"),
    ("dpo", {"beta": 0}, "beta must be"),
    ("dpo", {"beta": -0.1}, "beta must be"),
    ("dpo", {"beta": float("nan")}, "beta must be"),
    ("dpo", {"pairs": 1}, "dpo has no setting 'pairs'"),
    ("dpo", {"strength": 1.0}, "dpo has no setting 'strength'"),
    ("bapo", {"anchor_control": "adaptive", "strength": 1.0}, "bapo has no setting 'strength'"),
]


@pytest.mark.parametrize(("name", "settings", "message"), REFUSED, ids=lambda value: str(value))
def test_refused(name: str, settings: dict[str, object], message: str) -> None:
    with pytest.raises(BapoError, match=message):
        make_objective(name, **settings)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("anchor", ANCHORS)
def test_every_pair_loss_takes_every_anchor(name: str, anchor: str) -> None:
    """Equation 6 by hand: the pair loss, and the strength times the base response that stands for the pair."""
    base = bases([[-3.0, -1.5]], [[-2.0, -1.0]], [1.0])  # has lost 1 and 0.5
    lost = {"sequence": 1.5, "token": 1.5, "length-normalized": 0.75}[anchor]
    objective = make_objective(name, anchor=anchor, anchor_strength=2)
    assert objective.anchor is ANCHORS[anchor]
    alone = make_objective(name).pair_loss(pair()).item()
    assert objective.total(objective(pair(), base), base).item() == pytest.approx(alone + 2 * lost)


def test_an_anchor_has_the_same_default_strength_with_every_pair_loss() -> None:
    assert make_objective("dpop", anchor="token", penalty=3).anchor_strength == 5


def test_the_adaptive_control_moves_the_strength_as_ziegler_et_al_move_theirs() -> None:
    control = make_objective("bapo", anchor_control="adaptive", drift_target=0.02, gain=0.5).control
    for drift, factor in (
        (-0.02, 1.0),  # just the target
        (-0.022, 1 + 0.5 * 0.1),  # a tenth more is lost
        (-0.5, 1 + 0.5 * 0.2),  # clipped
        (-0.019, 1 - 0.5 * 0.05),
        (0.3, 1 - 0.5 * 0.2),  # base responses have gained
    ):
        before = control.strength
        control.update(step=7, drift=drift)
        assert control.strength == pytest.approx(before * factor)
    other = make_objective("bapo", anchor_control="adaptive").control
    other.load_state_dict(control.state_dict())
    assert vars(other) == vars(control)


def test_a_strength_never_leaves_its_range() -> None:
    control = make_objective("bapo", anchor_control="adaptive", anchor_strength=999_999, gain=1).control
    control.update(1, -9.0)
    assert control.strength == 10**6


def test_a_constant_strength_stays() -> None:
    control = make_objective("bapo").control
    control.update(1, -3.0)
    assert control.strength == 5.0


def test_the_adaptive_control_holds_a_hundredth_of_a_nat_and_moves_by_a_fiftieth_at_most() -> None:
    control = make_objective("bapo", anchor_control="adaptive").control
    control.update(1, -0.01)
    assert control.strength == 5.0
    control.update(2, -9.0)
    assert control.strength == pytest.approx(5.0 * 1.02)


def test_an_objective_of_settings_has_all_that_is_set() -> None:
    settings = SimpleNamespace(
        objective="dpop",
        beta=0.3,
        anchor="token",
        anchor_strength=7.0,
        anchor_control="adaptive",
        objective_settings={"penalty": 2.0, "gain": 0.5},
    )
    objective = objective_of(settings)
    assert (objective.name, objective.beta, objective.anchor_strength) == ("dpop", 0.3, 7.0)
    assert objective.anchor is ANCHORS.find("token")
    assert vars(objective.control)["gain"] == 0.5
    assert objective.pair_loss(pair()).item() == pytest.approx(dpop(pair(), 0.3, penalty=2.0).item())
    settings.objective_settings = {"anchor": "sequence"}
    with pytest.raises(BapoError, match="anchor is a setting of its own"):
        objective_of(settings)


def test_a_setting_without_a_range_is_any_number_but_not_infinite() -> None:
    def shifted(pairs: PairLogps, beta: float, shift: float = 0.0) -> torch.Tensor:
        """The margin, shifted."""
        return beta * pairs.margin + shift

    with patch.dict(PAIR_LOSSES._found):
        pair_loss("shifted")(shifted)
        assert PAIR_LOSSES["shifted"].description == "The margin, shifted."
        assert make_objective("shifted", shift=-(10.0**12)).pair_loss(pair()).item() < -(10.0**11)
        for number in (float("inf"), float("nan"), "3"):
            with pytest.raises(BapoError, match="shift must be"):
                make_objective("shifted", shift=number)
