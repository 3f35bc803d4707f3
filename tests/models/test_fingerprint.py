"""A fingerprint is that of what is computed: two models have the same one if and only if they give the same numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model

from bapo.models import model_fingerprint, nonzero_adapters
from tests.tiny import tiny_model

CONFIGURATIONS = {
    "lora": lambda: LoraConfig(r=4, target_modules=["q_proj", "v_proj"]),
    "dora": lambda: LoraConfig(r=4, target_modules=["q_proj", "v_proj"], use_dora=True),
    "lora-and-a-whole-module": lambda: LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"]),
    "ia3": lambda: IA3Config(target_modules=["k_proj"], feedforward_modules=[]),
}


def two_adapters(kind: str) -> Any:
    torch.manual_seed(0)
    policy = get_peft_model(tiny_model("llama"), CONFIGURATIONS[kind]())
    policy.add_adapter("other", CONFIGURATIONS[kind]())
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if ".default" in name or ".other" in name:
                weight.add_(torch.randn_like(weight) * 0.2)
    return policy.eval()


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(torch.tensor([[5, 6, 7, 8]])).logits


@pytest.mark.parametrize("kind", CONFIGURATIONS)
def test_the_adapter_in_use_is_what_counts(kind: str) -> None:
    policy = two_adapters(kind)
    first, first_logits = model_fingerprint(policy), logits(policy)
    policy.set_adapter("other")
    assert nonzero_adapters(policy) == ["other"]
    other, other_logits = model_fingerprint(policy), logits(policy)
    assert not torch.equal(first_logits, other_logits)
    assert other != first
    with policy.disable_adapter():
        assert nonzero_adapters(policy) == []
        off, off_logits = model_fingerprint(policy), logits(policy)
    assert not torch.equal(off_logits, other_logits)
    assert off not in (first, other)
    policy.set_adapter("default")
    assert torch.equal(logits(policy), first_logits)
    assert model_fingerprint(policy) == first
    policy.delete_adapter("other")
    assert model_fingerprint(policy) == first, "an adapter that is not in use is not part of what is computed"


def test_a_merged_adapter_is_part_of_the_weights() -> None:
    policy = two_adapters("lora")
    apart = model_fingerprint(policy)
    policy.merge_adapter()
    merged = model_fingerprint(policy)
    assert merged != apart
    policy.set_adapter("other")  # unmerges, which rounds
    assert model_fingerprint(policy) not in (apart, merged)
    again = two_adapters("lora")
    assert model_fingerprint(again.merge_and_unload()) == merged
