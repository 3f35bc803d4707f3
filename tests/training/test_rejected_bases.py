"""Where the rejected response is the model's own, pair and anchor must not pull at the same tokens from both sides."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from peft import LoraConfig

from bapo import BAPOConfig, BAPOTrainer
from bapo.anchoring import AnchoredGroup, AnchoredPreferences, BaseResponse
from bapo.likelihood import ResponseLogps, TokenGroup
from bapo.objectives import make_objective
from bapo.preferences import Pair, group_pairs
from bapo.training.batches import Collator, PairBatch
from bapo.training.metrics import MetricSums, add_base_metrics
from tests.tiny import tiny_model, tiny_tokenizer

MINE, OTHER = (7, 8), (9, 10, 11)
SOURCE = group_pairs("test", [Pair("x", "good", "bad"), Pair("x", "good", "worse")]).groups[0]


def group(*bases: BaseResponse) -> AnchoredGroup:
    """A chosen response of three tokens, and two rejected ones of which the first is the model's own."""
    tokens = TokenGroup((1, 2, 3), ((4, 5, 6), MINE, (12,)))
    return AnchoredGroup(SOURCE, tokens, ((0, 1), (0, 2)), (-6.0, -2.0, -3.0), bases)


def base(ids: tuple[int, ...], rejected: bool) -> BaseResponse:
    return BaseResponse(ids, True, -1.0 * len(ids), (-1.0,) * len(ids), rejected)


def batch(*bases: BaseResponse, pairs: tuple[int, ...] = (0, 1)) -> PairBatch:
    data = AnchoredPreferences("test", (group(*bases),), "reference")
    (collated,) = Collator(data, with_base=True)([(0, pair) for pair in pairs])["batches"]
    return collated


def scored(own: PairBatch, logps: dict[tuple[int, ...], float]) -> ResponseLogps:
    """Every token of a response has the log-prob that is given for it, -2 by default; all carry a gradient."""
    responses = [response for part in own.groups for response in part.responses]
    tokens = [logps.get(response, -2.0) for response in responses for _ in response]
    lengths = tuple(map(len, responses))
    return ResponseLogps(torch.tensor(tokens, requires_grad=True), lengths, torch.zeros(len(tokens), dtype=torch.bool))


@pytest.mark.parametrize(
    ("bases", "weights"),
    [
        ([base(MINE, False)], [2.0]),
        ([base(MINE, True)], [0.0]),
        ([base(MINE, True), base(OTHER, False)], [0.0, 2.0]),
        ([base(OTHER, False), base(MINE, True), base((13,), False)], [1.0, 0.0, 1.0]),
        ([base(MINE, True), base((7,), True)], [0.0, 0.0]),
    ],
)
def test_the_pairs_of_a_prompt_are_divided_among_the_bases_that_none_rejects(
    bases: list[BaseResponse], weights: list[float]
) -> None:
    assert batch(*bases).base_weight_K.tolist() == weights


def test_how_pairs_are_divided_into_batches_changes_nothing() -> None:
    """A base that one pair rejects is no anchor of another pair's either, whichever batch that is in."""
    alone = [batch(base(MINE, True), base(OTHER, False), pairs=(pair,)).base_weight_K for pair in (0, 1)]
    assert sum(alone).tolist() == batch(base(MINE, True), base(OTHER, False)).base_weight_K.tolist()


@pytest.mark.parametrize("anchor", ["sequence", "length-normalized", "token"])
def test_the_gradient_of_a_rejected_response_of_the_models_own_is_the_pairs_alone(anchor: str) -> None:
    own = batch(base(MINE, True), pairs=(0,))
    policy = scored(own, {MINE: -1.5})  # log-ratio 2 * -1.5 + 2 = -1: it has fallen, as it should
    objective = make_objective("bapo", beta=0.1, anchor=anchor, anchor_strength=5.0)
    pairs, bases = own.split(policy)
    objective.total(objective(pairs, bases), bases).backward()
    margin = 0.0 - (-1.0)  # the chosen one stayed where it was: 3 * -2 + 6 = 0
    push = 0.1 / (1 + math.exp(0.1 * margin))  # beta * sigmoid(-beta * margin), on each token of the rejected response
    assert policy.tokens.grad is not None
    assert policy.tokens.grad.tolist() == pytest.approx([-push] * 3 + [push] * 2)


def test_an_anchor_there_would_undo_what_the_pair_does() -> None:
    """Why: with the sequence anchor of strength 5 the rejected response would be pulled up a hundred times as hard."""
    own = batch(base(MINE, False), pairs=(0,))
    policy = scored(own, {MINE: -1.5})
    objective = make_objective("bapo", beta=0.1, anchor="sequence", anchor_strength=5.0)
    pairs, bases = own.split(policy)
    objective.total(objective(pairs, bases), bases).backward()
    assert policy.tokens.grad is not None
    push = 0.1 / (1 + math.exp(0.1))
    assert policy.tokens.grad.tolist()[3:] == pytest.approx([push - 5.0] * 2)


def test_metrics_speak_of_the_bases_that_are_anchored() -> None:
    own = batch(base(MINE, True), base(OTHER, False))
    objective = make_objective("bapo")
    pairs, bases = own.split(scored(own, {MINE: -9.0, OTHER: -1.5}))
    assert bases is not None
    sums = MetricSums()
    add_base_metrics(sums, bases, objective(pairs, bases))
    found = sums.merged(lambda table: table)
    assert found["logratios/base"] == pytest.approx(-1.5)  # 3 * -1.5 + 3
    assert found["drift/per_token"] == pytest.approx(-0.5)
    assert found["anchor/active"] == 1.0
    nothing = batch(base(MINE, True))
    pairs, bases = nothing.split(scored(nothing, {}))
    assert bases is not None
    sums.clear()
    add_base_metrics(sums, bases, objective(pairs, bases))
    assert sums.merged(lambda table: table) == {}, "and where there are none, of nothing"


def test_a_trainer_whose_pairs_all_reject_the_models_own_trains_like_dpo(tmp_path: Path) -> None:
    """And one that has another base response to hold does not."""
    rows = [{"prompt": f"q {i}", "chosen": f" good {i}", "rejected": f" bad {i}"} for i in range(4)]

    def trained(objective: str, *bases: str) -> tuple[list[float], BAPOTrainer]:
        torch.manual_seed(0)
        trainer = BAPOTrainer(
            tiny_model("llama"),
            args=BAPOConfig(
                str(tmp_path / "out"),
                objective=objective,
                anchored_store=str(tmp_path / "anchors"),
                max_steps=4,
                learning_rate=2e-2,
                save_strategy="no",
                disable_tqdm=True,
                use_cpu=True,
            ),
            train_dataset=[{**row, "base": [row["rejected"], *bases]} for row in rows],
            processing_class=tiny_tokenizer(None),
            peft_config=LoraConfig(r=4, lora_dropout=0.0, target_modules="all-linear"),
        )
        trainer.train()
        return [entry["logps/rejected"] for entry in trainer.state.log_history if "logps/rejected" in entry], trainer

    dpo, _ = trained("dpo")
    bapo, trainer = trained("bapo")
    assert bapo == pytest.approx(dpo, rel=1e-5)
    assert trainer.train_dataset.preferences.counts == {
        "prompts whose rejected response is the model's own, and so without an anchor": 4
    }
    assert not any("logratios/base" in entry for entry in trainer.state.log_history)
    held, trainer = trained("bapo", " something else")
    assert held != pytest.approx(dpo, rel=1e-5)
    assert all("logratios/base" in entry for entry in trainer.state.log_history if "loss" in entry)
