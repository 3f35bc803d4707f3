"""Weights rearranged for few rows: the same output to the bit, and a model that is as it was afterwards."""

import pytest
import torch

from bapo.anchoring import GenerationSettings, generate_batch
from bapo.kernels.packed_weights import packed_weights
from bapo.models import add_lora, load_model, resolve_precision
from tests.tiny import CONFIGS, tiny_model

needs_bf16 = pytest.mark.skipif(
    resolve_precision("auto") != "bf16", reason="needs a CPU with instructions for bf16 (and no accelerator)"
)


@torch.no_grad()
def logits_of(model):
    return model(input_ids=torch.arange(3, 43).view(2, 20)).logits


def with_own_forward(model) -> list[str]:
    return [name for name, module in model.named_modules() if "forward" in vars(module)]


@pytest.mark.parametrize("name", CONFIGS)
def test_outputs_are_the_same_to_the_bit(name):
    model = tiny_model(name).bfloat16()
    own, expected = with_own_forward(model), logits_of(model)
    with packed_weights(model, 2):
        assert torch.equal(logits_of(model), expected)
    assert with_own_forward(model) == own


@needs_bf16
def test_every_linear_layer_of_a_bf16_model_is_packed_once():
    model = tiny_model("llama").bfloat16()
    linear = [name for name, module in model.named_modules() if type(module) is torch.nn.Linear]
    with packed_weights(model, 2) as count:
        assert (count, with_own_forward(model)) == (len(linear), linear)
        with packed_weights(model, 2) as again:
            assert again == 0


@needs_bf16
def test_an_input_that_is_not_contiguous():
    layer = torch.nn.Linear(32, 48, dtype=torch.bfloat16)
    x = torch.randn(32, 5, 3, dtype=torch.bfloat16).permute(1, 2, 0)
    expected = layer(x.contiguous())
    with packed_weights(layer, 5) as count:
        assert (count, torch.equal(layer(x), expected)) == (1, True)


def test_adapters_on_packed_weights():
    model = add_lora(tiny_model("llama").bfloat16(), 4, 8, 0.0, 0).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    expected = logits_of(model)
    with packed_weights(model, 2):
        assert torch.allclose(logits_of(model).float(), expected.float(), rtol=2e-2, atol=2e-2)
    assert torch.equal(logits_of(model), expected)


def test_nothing_is_packed_where_the_copy_would_take_too_much_memory(monkeypatch):
    monkeypatch.setattr("bapo.kernels.packed_weights.SHARE_OF_MEMORY", 0.0)
    with packed_weights(tiny_model("llama").bfloat16(), 2) as count:
        assert count == 0


@pytest.mark.parametrize("packed", [lambda x: x @ torch.zeros(x.shape[-1], 8, dtype=x.dtype), None])
def test_a_layer_stays_as_it_is_where_its_copy_gives_something_else_or_cannot_be_made(monkeypatch, packed):
    monkeypatch.setattr("bapo.kernels.packed_weights._packed_forward", lambda layer, rows: packed)
    layer = torch.nn.Linear(16, 8, dtype=torch.bfloat16)
    with packed_weights(layer, 2) as count:
        assert (count, with_own_forward(layer)) == (0, [])


def test_float32_stays_as_it_is():
    with packed_weights(tiny_model("llama"), 2) as count:
        assert count == 0


def test_an_interrupted_generation_leaves_the_model_as_it_was(monkeypatch):
    model = tiny_model("llama").bfloat16()
    own = with_own_forward(model)

    def interrupted(**kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(model, "generate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate_batch(model, [(3, 4)], GenerationSettings(4), [2])
    assert with_own_forward(model) == own


@needs_bf16
def test_the_embedded_model_answers_the_same(monkeypatch):
    smollm2 = load_model("smollm2", precision="bf16", device="cpu")
    prompts = [smollm2.tokenizer.encode(text) for text in ("The capital of France is", "Once upon a time", "2 + 2")]
    settings = GenerationSettings(20)
    packed = generate_batch(smollm2.model, prompts, settings, smollm2.chat.end_ids)
    monkeypatch.setattr("bapo.kernels.packed_weights.SHARE_OF_MEMORY", 0.0)
    assert generate_batch(smollm2.model, prompts, settings, smollm2.chat.end_ids) == packed
