"""Switching off what a model draws at random in training."""

import pytest
import torch

from bapo.models import add_lora, disable_model_dropout
from tests.architectures import tiny

IDS = torch.arange(5, 25)[None]


class Noisy(torch.nn.Module):
    """Drops by a module, by plain numbers of several names, and draws noise."""

    def __init__(self) -> None:
        super().__init__()
        self.module = torch.nn.Dropout1d(0.5)
        self.residual_dropout, self.attn_pdrop, self.hidden_dropout_prob, self.input_jitter_noise = (0.5,) * 4
        self.router_jitter_noise, self.norm_topk_prob_before_dropping = 0.01, True

    def forward(self, x):
        for p in (self.residual_dropout, self.attn_pdrop, self.hidden_dropout_prob):
            x = torch.nn.functional.dropout(x, p, self.training)
        return self.module(x + self.input_jitter_noise * torch.rand_like(x))


def test_all_kinds_are_switched_off_and_nothing_else() -> None:
    noisy = Noisy()
    disable_model_dropout(noisy)
    x = torch.randn(3, 4)
    assert torch.equal(noisy.train()(x), x)
    # PhiMoE masks experts by it in evaluation mode too; and what is no number stays.
    assert (noisy.router_jitter_noise, noisy.norm_topk_prob_before_dropping) == (0.01, True)


def test_the_adapters_dropout_stays() -> None:
    model = add_lora(tiny("llama"), rank=4, dropout=0.25)
    disable_model_dropout(model)
    assert {m.p for n, m in model.named_modules() if n.endswith("lora_dropout.default")} == {0.25}


@pytest.mark.parametrize("case", ["seed_oss", "gpt2", "opt", "bart", "falcon", "openai-gpt", "biogpt", "xglm"])
def test_training_mode_of_real_families_is_evaluation_mode_afterwards(case: str) -> None:
    model = tiny(case)
    expected = model(input_ids=IDS).logits
    disable_model_dropout(model)
    assert torch.equal(model(input_ids=IDS).logits, expected)
    torch.testing.assert_close(model.train()(input_ids=IDS).logits, expected)
