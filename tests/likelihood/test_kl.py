"""The exact divergence against plain forward passes: every architecture, both ways to compute it, both precisions."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from bapo.likelihood import TokenGroup, divergence
from bapo.models import add_lora
from tests.likelihood.test_scoring import groups, with_lora
from tests.tiny import CONFIGS, MISFITS, VOCABULARY, tiny_model


def plain_divergences(reference: Any, policy: Any, asked: list[TokenGroup]) -> list[float]:
    """Independent of the library: one sequence at a time, all logits, PyTorch's own divergence."""
    totals = []
    for group in asked:
        for response in group.responses:
            ids = torch.tensor([[*group.prompt, *response]])
            ref, new = (
                model(input_ids=ids).logits[0, len(group.prompt) - 1 : -1].double().log_softmax(-1)
                for model in (reference, policy)
            )
            kl = torch.nn.functional.kl_div(new, ref, log_target=True, reduction="none").sum()
            totals.append(float(kl))
    return totals


@pytest.mark.parametrize("kind", [kind for kind in (*CONFIGS, *MISFITS) if "mamba" not in kind])
def test_it_is_what_plain_forward_passes_give(kind: str) -> None:
    """Of all that PEFT adapts, which Mamba is not."""
    bare = tiny_model(kind)
    reference = copy.deepcopy(bare).eval()
    policy = with_lora(bare)
    found = divergence(policy, groups())
    with torch.no_grad():
        expected = plain_divergences(reference, policy, groups())
    assert found.summed() == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert found.lengths == tuple(len(r) for g in groups() for r in g.responses)
    assert found.precision == "float32"
    assert min(expected) > 1e-4, "or nothing was compared"


def test_a_zero_adapter_has_a_divergence_of_exactly_nothing() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        policy = add_lora(tiny_model("llama").to(dtype), 4, 8, 0.0, 0).eval()
        found = divergence(policy, groups())
        assert not found.tokens.any()


def test_what_rounding_would_drown_is_computed_in_float32() -> None:
    bare = tiny_model("llama").to(torch.bfloat16)
    policy = with_lora(bare)
    strong = divergence(policy, groups())
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            parameter.data *= 0.02
    weak = divergence(policy, groups())
    in_float32 = copy.deepcopy(policy).float()
    expected = divergence(in_float32, groups())
    assert weak.precision == "float32"
    assert 0 < weak.floor < 0.01 * float(weak.tokens.mean())
    assert weak.summed() == pytest.approx(expected.summed(), rel=0.02)
    assert float(strong.tokens.mean()) > 50 * float(weak.tokens.mean())


def test_it_does_not_depend_on_how_responses_are_batched(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = with_lora(tiny_model("llama"))
    whole = divergence(policy, groups(prompts=6))
    done: list[int] = []
    monkeypatch.setattr("bapo.likelihood.kl.LOGITS_AT_ONCE", VOCABULARY * 30)
    parts = divergence(policy, groups(prompts=6), on_progress=done.append)
    assert parts.summed() == pytest.approx(whole.summed(), rel=1e-4)
    assert len(done) > 2
    assert sum(done) == 6


def test_the_reference_may_be_another_model() -> None:
    """As with full fine-tuning."""
    reference, policy = tiny_model("llama"), tiny_model("llama")
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
        found = divergence(policy, groups(), reference=reference)
        assert found.summed() == pytest.approx(plain_divergences(reference, policy, groups()), rel=1e-3, abs=1e-5)
