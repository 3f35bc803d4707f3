"""What the check before the first step lets through, and what it must not: twenty adapters each, none of them zero."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bapo.anchoring import AnchoredPreferences, AnchorStore, GenerationSettings, anchor
from bapo.errors import BapoError
from bapo.likelihood import ResponseScorer, TokenGroup
from bapo.models import ChatFormat, LoadedModel, add_lora, model_fingerprint
from bapo.preferences import Pair, group_pairs
from bapo.training.reference import check_step_0, reference_pass
from tests.faults import a_step_later, another_checkpoint, dropout_left_on, off_by_one, one_percent
from tests.rounding import rounding_by_rows
from tests.tiny import tiny_model, tiny_tokenizer

SEEDS = range(20)
PAIRS = [
    Pair(f"Question {i}, please.", f"Yes, {i} times {word}.", f"No {word * 4}.") for i in range(6) for word in "ab"
]
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


def policy_of(seed: int, precision: str) -> Any:
    policy = add_lora(tiny_model("llama").to(DTYPES[precision]), rank=4, dropout=0.05, seed=seed)
    torch.manual_seed(seed)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return policy


def anchored(policy: Any, precision: str, folder: Path) -> AnchoredPreferences:
    model = LoadedModel("tiny", policy, ChatFormat(tiny_tokenizer(None)), precision)
    store = AnchorStore(folder, model)
    return anchor(group_pairs("test", PAIRS), model, store, generation=GenerationSettings(5))


def check(policy: Any, data: AnchoredPreferences, reference: Any, end_ids: tuple[int, ...] = (2,)) -> None:
    check_step_0(policy, ResponseScorer(policy), data, end_ids, reference)


FAULTS = [one_percent, off_by_one, dropout_left_on, a_step_later, another_checkpoint]


def tells(policy: Any, data: AnchoredPreferences, reference: Any) -> bool:
    """Whether the check refuses it, with the numbers that rounding explains."""
    try:
        check(policy, data, reference)
    except BapoError as error:
        return "policy and reference differ by" in str(error) and "rounding explains" in str(error)
    return False


@pytest.mark.parametrize(("precision", "rounds_by_rows"), [("float32", False), ("bf16", True)])
def test_of_twenty_adapters(precision: str, rounds_by_rows: bool, tmp_path: Path) -> None:
    """The weights' key is forged, so that numbers alone have to tell."""
    alarms, told = 0, dict.fromkeys(FAULTS, 0)
    with rounding_by_rows() if rounds_by_rows else nullcontext():
        for seed in SEEDS:
            policy = policy_of(seed, precision)
            data = anchored(policy, precision, tmp_path / str(seed))
            reference = reference_pass(policy)
            alarms += tells(policy, data, reference)
            for fault in FAULTS:
                with fault(policy):
                    told[fault] += tells(policy, replace(data, reference=model_fingerprint(policy)), reference)
    assert alarms == 0
    assert {fault.__name__: count for fault, count in told.items() if count < 19} == {}


@pytest.mark.parametrize("fault", [a_step_later, another_checkpoint])
def test_other_weights_are_told_by_their_key(fault: Callable[..., Any], tmp_path: Path) -> None:
    policy = policy_of(0, "bf16")
    data = anchored(policy, "bf16", tmp_path)
    with fault(policy), pytest.raises(BapoError, match="the weights, the configuration or the precision are not those"):
        check(policy, data, reference_pass(policy))


def test_other_end_tokens_are_refused(tmp_path: Path) -> None:
    policy = policy_of(0, "float32")
    data = anchored(policy, "float32", tmp_path)
    with pytest.raises(BapoError, match=r"end with the tokens \[2\], and those of this one end with \[3, 2\]"):
        check(policy, data, reference_pass(policy), end_ids=(3, 2))


@pytest.mark.parametrize("precision", DTYPES)
def test_data_without_a_probe_are_told_by_their_sums(precision: str, tmp_path: Path) -> None:
    policy = policy_of(0, precision)
    data = replace(anchored(policy, precision, tmp_path), probe=None, end_ids=())
    check(policy, data, reference_pass(policy))
    with off_by_one(policy), pytest.raises(BapoError, match="nats per response"):
        check(policy, data, None)


def test_an_adapter_that_is_trained_further_can_be_put_back() -> None:
    policy = policy_of(0, "float32")
    scorer, group = ResponseScorer(policy), [TokenGroup((5, 6, 7), ((8, 9, 10),))]
    before, reference = scorer.row(group), reference_pass(policy)
    with a_step_later(policy):
        after = scorer.row(group)
        with reference():
            assert torch.equal(scorer.row(group), before)
        assert torch.equal(scorer.row(group), after)
        assert not torch.equal(after, before)


def test_a_fresh_adapter_is_switched_off_and_whole_models_keep_what_was_stored() -> None:
    plain = tiny_model("llama")
    scorer, group = ResponseScorer(plain), [TokenGroup((5, 6, 7), ((8, 9, 10),))]
    before = scorer.row(group)
    assert reference_pass(plain) is None
    policy = policy_of(0, "float32")
    frozen = next(parameter for name, parameter in policy.named_parameters() if "lora_A" in name)
    frozen.requires_grad_(False)
    trainable = [parameter.requires_grad for parameter in policy.parameters()]
    with reference_pass(policy, fresh=True)():
        torch.testing.assert_close(ResponseScorer(policy).row(group), before)
    assert [parameter.requires_grad for parameter in policy.parameters()] == trainable
