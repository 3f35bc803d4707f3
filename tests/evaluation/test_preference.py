"""Held-out evaluation: known log-ratios, ties, intervals over prompts, and a zero adapter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bapo.anchoring import AnchorStore, GenerationSettings, anchor
from bapo.errors import BapoError
from bapo.evaluation import evaluate_preferences, prompted
from bapo.likelihood import ResponseScorer, TokenGroup
from bapo.models import ChatFormat, LoadedModel, add_lora
from bapo.preferences import Message, Pair, group_pairs
from bapo.results import PromptScores, bootstrap_ratio, report
from tests.tiny import tiny_model, tiny_tokenizer


def test_the_report_is_worked_by_hand() -> None:
    scores = [
        PromptScores(pairs=((2.0, 1.0), (2.0, 5.0)), drift=-6.0, base_tokens=3, bases=1),
        PromptScores(pairs=((0.0, 0.0),), drift=-1.0, base_tokens=4, bases=2),
    ]
    found = report(scores)
    assert found.reward_accuracy.value == pytest.approx((1 + 0 + 0.5) / 3)  # right, wrong, a tie
    assert found.margin.value == pytest.approx((1 - 3 + 0) / 3)
    assert found.drift.value == pytest.approx(-7 / 3)  # three base responses
    assert found.drift_per_token.value == pytest.approx(-7 / 7)
    assert (found.prompts, found.pairs) == (2, 3)


def test_a_zero_adapter_has_changed_nothing_and_another_one_has(tmp_path: Path) -> None:
    model = LoadedModel("tiny", tiny_model("llama"), ChatFormat(tiny_tokenizer()), "float32")
    pairs = [Pair((Message("user", f"q {i}"),), f"yes {i}", f"no {i} {j}") for i in range(6) for j in range(2)]
    held_out = anchor(
        group_pairs("test", pairs), model, AnchorStore(tmp_path / "a", model), generation=GenerationSettings(5)
    )
    policy = add_lora(model.model, rank=4)
    nothing, scores = evaluate_preferences(policy, held_out)
    assert nothing.drift.value == nothing.drift.low == nothing.drift.high == 0
    assert nothing.margin.value == 0
    assert nothing.reward_accuracy.value == 0.5
    assert len(scores) == 6

    torch.manual_seed(0)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    moved, scores = evaluate_preferences(policy, held_out)
    group = held_out.groups[2]
    direct = ResponseScorer(policy).score(
        [TokenGroup(group.tokens.prompt, (*group.tokens.responses, group.bases[0].ids))]
    )
    *responses, base = direct.summed().tolist()
    assert scores[2].drift == pytest.approx(base - group.bases[0].ref_logp, abs=1e-4)
    chosen, rejected = group.pairs[0]
    expected = (responses[chosen] - group.ref_logps[chosen], responses[rejected] - group.ref_logps[rejected])
    assert scores[2].pairs[0] == pytest.approx(expected, abs=1e-4)
    assert moved.drift.value != 0


def test_bootstrap_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    """400 simulated samples of 60 prompts with unequal numbers of correlated pairs; 95 % intervals of a mean of 0.3."""
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(400):
        counts = rng.integers(1, 6, size=60)
        level = rng.normal(0.3, 0.5, size=60)  # what the pairs of a prompt share
        totals = [float(rng.normal(m, 0.2, size=n).sum()) for m, n in zip(level, counts, strict=True)]
        estimate = bootstrap_ratio(totals, counts.tolist(), resamples=400, seed=trial)
        covered += estimate.low <= 0.3 <= estimate.high
    # A percentile bootstrap of 60 units covers a little less than it says; three binomial standard errors on top.
    assert 0.90 <= covered / 400 <= 0.985


def test_nothing_counted_is_not_a_number() -> None:
    assert np.isnan(bootstrap_ratio([], []).value)


def test_a_rival_whose_system_turn_leaves_no_room_is_one_sentence(tmp_path: Path) -> None:
    model = LoadedModel("tiny", tiny_model("gpt2"), ChatFormat(tiny_tokenizer()), "float32")
    pairs = [Pair((Message("user", "q" * 300),), "yes", "no, no")]
    held_out = anchor(
        group_pairs("test", pairs), model, AnchorStore(tmp_path / "a", model), generation=GenerationSettings(5)
    )
    fits = prompted(held_out, model.chat, "s" * 50, reach=512)
    assert len(fits.groups[0].tokens.prompt) > len(held_out.groups[0].tokens.prompt) + 50
    with pytest.raises(BapoError, match=r"more than the model's 512 positions"):
        prompted(held_out, model.chat, "s" * 250, reach=512)
