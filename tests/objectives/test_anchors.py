"""The anchors of equation 5 and its variants, and how equation 6 adds them up."""

from __future__ import annotations

import math

import pytest
import torch

from bapo.errors import BapoError
from bapo.objectives import ANCHORS, LossParts, make_objective
from tests.objectives.logps import bases, pair

# Two base responses of 3 and 2 tokens. The first loses 1 and 0.5 and gains 0.3; the second gains 0.2 and loses 0.1.
POLICY = [[-3.0, -1.5, -0.2], [-0.8, -2.1]]
REF = [[-2.0, -1.0, -0.5], [-1.0, -2.0]]
DRIFT = [-1.0 - 0.5 + 0.3, 0.2 - 0.1]


def anchored(name: str) -> list[float]:
    return ANCHORS[name](bases(POLICY, REF, [1.0, 1.0])).tolist()


def test_sums_over_responses() -> None:
    base = bases(POLICY, REF, [1.0, 1.0])
    assert base.logps.tolist() == pytest.approx([-4.7, -2.9])
    assert base.ref_logps.tolist() == pytest.approx([-3.5, -3.0])
    assert base.drift.tolist() == pytest.approx(DRIFT)
    assert base.lengths.tolist() == [3, 2]


def test_sequence_anchor() -> None:
    assert anchored("sequence") == pytest.approx([1.2, 0.0])


def test_token_anchor() -> None:
    assert anchored("token") == pytest.approx([1.0 + 0.5, 0.1])


def test_length_normalized_anchor() -> None:
    assert anchored("length-normalized") == pytest.approx([1.2 / 3, 0.0])


@pytest.mark.parametrize("name", ANCHORS)
def test_a_response_without_tokens_costs_nothing_and_makes_no_other_loss_not_a_number(name: str) -> None:
    base = bases([POLICY[0], []], [REF[0], []], [1.0, 1.0])
    losses = ANCHORS[name](base)
    assert losses.tolist() == [pytest.approx(anchored(name)[0]), 0]
    assert torch.autograd.grad(losses.sum(), base.tokens)[0].isfinite().all()


@pytest.mark.parametrize("name", ANCHORS)
def test_at_step_0_there_is_no_loss_and_no_gradient(name: str) -> None:
    logps = torch.randn(2, 40).mul(3).tolist()
    base = bases(logps, logps, [1.0, 1.0])
    losses = ANCHORS[name](base)
    assert losses.tolist() == [0, 0]
    assert torch.autograd.grad(losses.sum(), base.tokens)[0].tolist() == [0] * 80


def test_sequence_anchor_pulls_every_token_of_what_fell_and_none_of_what_rose() -> None:
    base = bases(POLICY, REF, [1.0, 1.0])
    (gradient,) = torch.autograd.grad(ANCHORS["sequence"](base).sum(), base.tokens)
    assert gradient.tolist() == [-1, -1, -1, 0, 0]


def test_token_anchor_pulls_the_tokens_that_fell() -> None:
    base = bases(POLICY, REF, [1.0, 1.0])
    (gradient,) = torch.autograd.grad(ANCHORS["token"](base).sum(), base.tokens)
    assert gradient.tolist() == [-1, -1, 0, 0, -1]


@pytest.mark.parametrize("name", ANCHORS)
def test_order_of_tokens_in_the_batch_does_not_matter(name: str) -> None:
    base = bases(POLICY, REF, [1.0, 1.0])
    order = torch.tensor([4, 0, 3, 2, 1])
    shuffled = type(base)(base.tokens[order], base.ref_tokens[order], base.owner[order], base.weight)
    torch.testing.assert_close(ANCHORS[name](shuffled), ANCHORS[name](base))


@pytest.mark.parametrize("name", ANCHORS)
def test_extremes_are_finite(name: str) -> None:
    base = bases([[-1e4, -1e4], [0.0]], [[0.0, -1.0], [-1e4]], [1.0, 1.0])
    losses = ANCHORS[name](base)
    (gradient,) = torch.autograd.grad(losses.sum(), base.tokens)
    assert torch.isfinite(losses).all()
    assert torch.isfinite(gradient).all()


# ---- equation 6 -----------------------------------------------------------------------------------------------------


def bapo_loss(policy: list[list[float]], **settings: object) -> float:
    objective, base = make_objective("bapo", **settings), bases(policy, REF, [0.5, 0.5])
    return objective.total(objective(pair(), base), base).item()


DPO = math.log1p(math.exp(-0.1 * 4))


def test_bapo_value() -> None:
    # One pair whose prompt has two base responses: each stands for half a pair.
    assert bapo_loss(POLICY, anchor="sequence") == pytest.approx(DPO + 5 * (1.2 + 0.0) / 2)
    assert bapo_loss(POLICY) == pytest.approx(DPO + 5 * (1.2 / 3 + 0.0) / 2)  # the default: nats per token
    assert bapo_loss(POLICY, anchor="token", anchor_strength=2) == pytest.approx(DPO + 2 * (1.5 + 0.1) / 2)


def test_one_base_response_of_three_pairs_counts_three_times() -> None:
    objective, base = make_objective("bapo", anchor="sequence"), bases(POLICY[:1], REF[:1], [3.0])
    parts = LossParts(torch.tensor([0.1, 0.2, 0.3]), objective.anchor(base))
    assert objective.total(parts, base).item() == pytest.approx(0.1 + 0.2 + 0.3 + 5 * 3 * 1.2)


def test_lowering_the_base_raises_bapo_and_raising_it_leaves_dpo() -> None:
    def shifted(by: float) -> float:
        return bapo_loss([[logp + by for logp in response] for response in REF])

    assert shifted(-0.2) > shifted(-0.1) > shifted(0.0) == shifted(0.1) == pytest.approx(DPO)


def test_base_gradient_of_bapo_is_the_strength_times_the_weight() -> None:
    objective, base = make_objective("bapo", anchor="sequence"), bases(POLICY, REF, [0.75, 0.25])
    (gradient,) = torch.autograd.grad(objective.total(objective(pair(), base), base), base.tokens)
    assert gradient.tolist() == [-5 * 0.75] * 3 + [0, 0]


@pytest.mark.parametrize("name", ["dpo", "orpo", "rso"])
def test_an_objective_without_anchor_ignores_base_responses(name: str) -> None:
    objective, base = make_objective(name), bases(POLICY, REF, [0.5, 0.5])
    parts = objective(pair(), base)
    assert parts.anchor is None
    assert objective.total(parts, base).item() == parts.pair.item() == objective(pair()).pair.item()


def test_no_base_responses_to_anchor_to() -> None:
    with pytest.raises(BapoError, match="needs base responses"):
        make_objective("bapo")(pair())


def test_anchor_losses_without_their_weights_are_not_dropped() -> None:
    objective, base = make_objective("bapo"), bases(POLICY, REF, [0.5, 0.5])
    with pytest.raises(BapoError, match="weigh"):
        objective.total(objective(pair(), base))
