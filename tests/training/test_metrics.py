"""What is said of a policy at its end, by hand."""

from __future__ import annotations

import math

import torch

from bapo.objectives import BaseLogps, LossParts, PairLogps
from bapo.training.guards import Ending
from bapo.training.metrics import MetricSums, add_base_metrics, right

TOKENS = 10


def pairs(margins: list[float], chosen: float = -20.0) -> PairLogps:
    """Chosen responses of ten tokens at so many nats, where the reference has -30; rejected ones by their margin."""
    count = len(margins)
    full = torch.full((count,), 1.0)
    return PairLogps(
        chosen=chosen * full,
        rejected=(chosen + 30) * full - torch.tensor(margins) - 40,
        ref_chosen=-30 * full,
        ref_rejected=-40 * full,
        chosen_tokens=TOKENS * full,
        rejected_tokens=TOKENS * full,
    )


def bases(policy: float, reference: float) -> BaseLogps:
    return BaseLogps(
        tokens=torch.full((TOKENS,), policy / TOKENS),
        ref_tokens=torch.full((TOKENS,), reference / TOKENS),
        owner=torch.zeros(TOKENS, dtype=torch.long),
        weight=torch.ones(1),
    )


def ending(*steps: PairLogps, base: BaseLogps | None = None, prompts: int = 1) -> Ending:
    found = Ending()
    for step in steps:
        found.note(step, base, prompts)
    return found


def test_a_tie_is_half_right() -> None:
    assert right(pairs([2.0, -1.0, 0.0])).tolist() == [1, 0, 0.5]


def test_nothing_is_said_of_an_ordinary_run() -> None:
    assert Ending().fault(100) is None
    assert ending(pairs([1.0, 2.0]), base=bases(-8, -5)).fault(100) is None
    assert ending(*[pairs([1.0, -1.0])] * 50).fault(100) is None  # has learned nothing, and broken nothing


def test_less_likely_than_tokens_drawn_blindly() -> None:
    """Of 100 tokens, one drawn blindly has -log 100 = -4.6 nats."""
    assert ending(pairs([1.0], chosen=-45)).fault(100) is None
    assert "chosen responses have -4.7 nats per token, less than tokens drawn blindly (-4.6), where they had -3.0" in (
        ending(pairs([1.0], chosen=-47)).fault(100) or ""
    )
    assert "own earlier responses have -5.0 nats" in (ending(pairs([1.0]), base=bases(-50, -5)).fault(100) or "")
    assert ending(pairs([1.0], chosen=-47)).fault(10) is None  # the reference itself is below -log 10 = -2.3


def test_right_less_often_than_a_coin() -> None:
    """0 of 9 has 2^-9 = 0.00195 by chance, and 0 of 10 has 0.00098."""
    assert ending(*[pairs([-1.0])] * 9).fault(100) is None
    assert "on only 0% of what" in (ending(*[pairs([-1.0])] * 10).fault(100) or "")
    assert ending(pairs([-1.0] * 10)).fault(100) is None  # ten pairs of one prompt are one throw
    assert ending(*[pairs([-1.0])] * 10, *[pairs([1.0])] * Ending.PROMPTS).fault(100) is None  # long over


def test_an_active_hinge_counts_as_the_pairs_that_its_response_stands_for() -> None:
    """So that the share does not depend on how the pairs of a prompt fall into batches."""
    base = BaseLogps(torch.zeros(2), torch.zeros(2), torch.tensor([0, 1]), torch.tensor([3.0, 1.0]))
    whole = MetricSums()
    add_base_metrics(whole, base, LossParts(torch.zeros(4), torch.tensor([1.0, 0.0])))
    assert whole.merged(lambda table: table)["anchor/active"] == 0.75
    assert math.isclose(whole.merged(lambda table: table)["loss/anchor"], 0.75)
