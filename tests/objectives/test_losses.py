"""Each pair loss against its equation worked by hand, its signs, its gradients and its behaviour far out."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from bapo.objectives import PAIR_LOSSES, PairLogps, make_objective
from bapo.objectives.losses.dpo import dpo
from bapo.objectives.losses.dpop import dpop
from bapo.objectives.losses.ipo import ipo
from bapo.objectives.losses.ipo_summed import ipo_summed
from bapo.objectives.losses.orpo import orpo
from bapo.objectives.losses.rso import rso_hinge
from tests.objectives.logps import pair


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def gradients(loss: torch.Tensor, pairs: PairLogps) -> tuple[float, float]:
    found = torch.autograd.grad(loss.sum(), [pairs.chosen, pairs.rejected], allow_unused=True)
    return tuple(0.0 if g is None else g.item() for g in found)


# ---- values: chosen log-ratio -10 + 11 = 1, rejected log-ratio -12 + 9 = -3, margin 4; 4 and 6 tokens ---------------


def test_log_ratios_and_margin() -> None:
    pairs = pair()
    assert (pairs.chosen_logratio.item(), pairs.rejected_logratio.item(), pairs.margin.item()) == (1, -3, 4)


def test_dpo_value() -> None:
    assert dpo(pair(), beta=0.1).item() == pytest.approx(-math.log(sigmoid(0.1 * 4)))


def test_ipo_value() -> None:
    per_token_margin = 1 / 4 - (-3 / 6)  # 0.75
    assert ipo(pair(), beta=0.1).item() == pytest.approx((per_token_margin - 1 / (2 * 0.1)) ** 2)  # (0.75 - 5)^2


def test_ipo_summed_value() -> None:
    assert ipo_summed(pair(), beta=0.1).item() == pytest.approx((4 - 5) ** 2)


def test_dpop_value_where_the_chosen_has_gained() -> None:
    assert dpop(pair(), beta=0.1, penalty=50.0).item() == pytest.approx(-math.log(sigmoid(0.1 * 4)))


def test_dpop_value_where_the_chosen_has_lost() -> None:
    lost = pair(chosen=-11.2)  # log-ratio -0.2, margin -0.2 + 3 = 2.8, penalty 50 * 0.2 = 10
    assert dpop(lost, beta=0.1, penalty=50.0).item() == pytest.approx(-math.log(sigmoid(0.1 * (2.8 - 10))), rel=1e-5)


def test_orpo_value() -> None:
    p_chosen, p_rejected = math.exp(-10 / 4), math.exp(-12 / 6)
    odds_ratio = (p_chosen / (1 - p_chosen)) / (p_rejected / (1 - p_rejected))
    expected = 10 / 4 - 0.1 * math.log(sigmoid(math.log(odds_ratio)))
    assert orpo(pair(), beta=0.1).item() == pytest.approx(expected)


def test_rso_value() -> None:
    assert rso_hinge(pair(), beta=0.1).item() == pytest.approx(1 - 0.1 * 4)
    assert rso_hinge(pair(), beta=0.25).item() == 0  # exactly on the margin
    assert rso_hinge(pair(), beta=1.0).item() == 0


# ---- signs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_raising_the_chosen_and_lowering_the_rejected_lowers_every_loss(name: str) -> None:
    pairs = pair(rejected=-10.0)  # margin 2: inside every hinge and short of every IPO target
    for_chosen, for_rejected = gradients(make_objective(name).pair_loss(pairs), pairs)
    assert for_chosen < 0 < for_rejected


def test_dpop_punishes_a_falling_chosen_more_than_dpo_does() -> None:
    before, after = pair(chosen=-11.0), pair(chosen=-11.5)  # at the reference, and half a nat below it
    assert dpop(before, 0.1).item() == dpo(before, 0.1).item()
    assert dpop(after, 0.1) - dpop(before, 0.1) > dpo(after, 0.1) - dpo(before, 0.1) > 0


def test_dpop_punishes_a_fall_of_both_that_dpo_rewards() -> None:
    before, after = pair(-11.0, -9.0), pair(-12.0, -11.0)  # chosen falls by 1, rejected by 2
    assert dpo(after, 0.1) < dpo(before, 0.1)
    assert dpop(after, 0.1) > dpop(before, 0.1)


def test_dpop_gradient_on_a_lost_chosen() -> None:
    lost = pair(chosen=-11.2)
    slope = 0.1 * (1 - sigmoid(0.1 * (2.8 - 10)))
    assert gradients(dpop(lost, 0.1), lost) == pytest.approx((-slope * (1 + 50), slope), rel=1e-5)


def test_dpo_gradient() -> None:
    pairs = pair()
    slope = 0.1 * (1 - sigmoid(0.4))
    assert gradients(dpo(pairs, 0.1), pairs) == pytest.approx((-slope, slope))


def test_satisfied_hinge_has_no_gradient() -> None:
    pairs = pair()
    assert gradients(rso_hinge(pairs, beta=1.0), pairs) == (0, 0)


def test_ipo_pulls_back_a_margin_beyond_its_target() -> None:
    pairs = pair(chosen=-5.0)  # margin 9, target 5
    for_chosen, for_rejected = gradients(ipo_summed(pairs, 0.1), pairs)
    assert (for_chosen, for_rejected) == pytest.approx((2 * (9 - 5), -2 * (9 - 5)))


# ---- invariants -----------------------------------------------------------------------------------------------------

AT_STEP_0 = {
    "dpo": math.log(2),
    "bapo": math.log(2),
    "dpop": math.log(2),
    "ipo": (1 / 0.2) ** 2,
    "ipo-summed": (1 / 0.2) ** 2,
    "rso": 1.0,
}


@pytest.mark.parametrize("name", AT_STEP_0)
def test_loss_where_policy_is_reference(name: str) -> None:
    same = pair(chosen=-11.0, rejected=-9.0)
    assert make_objective(name).pair_loss(same).item() == pytest.approx(AT_STEP_0[name], rel=1e-6)


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_needs_reference_says_whether_the_reference_matters(name: str) -> None:
    objective = make_objective(name)
    other = pair(ref_chosen=-10.5, ref_rejected=-9.25)
    assert (objective.pair_loss(pair()).item() != objective.pair_loss(other).item()) is objective.needs_reference


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_pairs_do_not_touch_each_other(name: str) -> None:
    many = [pair(), pair(chosen=-13.0), pair(rejected=-8.5, rejected_tokens=2.0)]
    together = PairLogps(*(torch.cat([getattr(p, f) for p in many]) for f in PairLogps.__slots__))
    loss = make_objective(name).pair_loss
    torch.testing.assert_close(loss(together), torch.cat([loss(p) for p in many]))


# ---- far out --------------------------------------------------------------------------------------------------------

EXTREMES = [
    {"chosen": -1e4},
    {"rejected": -1e4},
    {"chosen": -1e4, "rejected": -1e4},
    {"ref_chosen": -1e4, "ref_rejected": -1e4},
    {"chosen": 0.0, "rejected": 0.0},  # certain of both
    {"chosen": -1e-12, "rejected": -1e4},
    {"chosen": -1e4, "rejected": -1e-12},
    {"chosen": 1e-6},  # a hair above a probability of one, by rounding
]


@pytest.mark.parametrize("values", EXTREMES, ids=str)
@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_extremes_are_finite(name: str, values: dict[str, float]) -> None:
    pairs = pair(**values)
    loss = make_objective(name).pair_loss(pairs)
    assert math.isfinite(loss.item())
    assert all(map(math.isfinite, gradients(loss, pairs)))


def test_dpo_is_linear_far_out() -> None:
    assert dpo(pair(chosen=-1e4), 0.1).item() == pytest.approx(0.1 * (1e4 - 11 - 3), rel=1e-6)


@pytest.mark.parametrize("mean_logp", [-1e-5, -1e-3, -0.5, -math.log(2), -0.8, -20.0])
def test_orpo_log_odds_over_the_whole_range(mean_logp: float) -> None:
    # Against a rejected response of even odds, the log odds ratio is the chosen's log odds.
    even = replace(pair(), rejected=torch.tensor([6 * -math.log(2)]), chosen=torch.tensor([4 * mean_logp]))
    log_odds = mean_logp - math.log(-math.expm1(mean_logp))
    expected = -mean_logp + math.log1p(math.exp(-log_odds))
    assert orpo(even, beta=1.0).item() == pytest.approx(expected, rel=1e-4)
