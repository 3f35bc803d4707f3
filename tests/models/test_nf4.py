"""4-bit weights: that they are nf4 with double quantization, what is computed with them, and what training moves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit

from bapo import BAPOConfig, BAPOTrainer
from bapo.errors import BapoError
from bapo.likelihood import ResponseScorer, TokenGroup
from bapo.models import add_lora, load_model
from tests.likelihood.test_scoring import groups, plain_logps, relative_gap, with_lora
from tests.tiny import tiny_model, tiny_tokenizer

# The 16 quantiles of a normal distribution that 4 bits name (Dettmers et al. 2023, appendix E).
NF4 = torch.tensor(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ]
)
BLOCK = 64


def four_layers() -> Any:
    """A model whose layers have multiples of a block of inputs."""
    return tiny_model("llama", intermediate_size=128)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BAPO_CACHE", str(tmp_path / "cache"))
    four_layers().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def quantized(model: Any) -> dict[str, Any]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, Linear4bit)}


def dequantized(model: Any) -> dict[str, torch.Tensor]:
    return {name: dequantize_4bit(own.weight.data, own.weight.quant_state) for name, own in quantized(model).items()}


def plain(model: Any, dtype: torch.dtype) -> Any:
    """A model of ordinary linear layers that hold the weights that 4 bits stand for."""
    ordinary = four_layers().to(torch.bfloat16)
    with torch.no_grad():
        for name, weight in dequantized(model).items():
            ordinary.get_submodule(name).weight.copy_(weight)
    return ordinary.to(dtype)


def token_logps(model: Any, asked: list[TokenGroup]) -> torch.Tensor:
    with torch.no_grad():
        return torch.stack([logp for group in asked for logp in plain_logps(model, group)])


def test_every_layer_but_the_head_is_nf4_with_double_quantization_and_bf16_products(folder: Path) -> None:
    model = load_model(str(folder), precision="nf4", device="cpu").model
    ordinary = four_layers()
    linear = {n for n, m in ordinary.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"}
    assert quantized(model).keys() == linear
    assert model.lm_head.weight.dtype == torch.bfloat16
    for name, layer in quantized(model).items():
        state = layer.weight.quant_state
        assert (state.quant_type, state.blocksize, layer.compute_dtype) == ("nf4", BLOCK, torch.bfloat16)
        assert state.nested, "double quantization is off"
        assert state.absmax.dtype == torch.uint8, "scales that are quantized again have 8 bits"
        assert layer.weight.dtype == torch.uint8
        assert layer.weight.numel() == ordinary.get_submodule(name).weight.numel() / 2


def test_a_weight_is_the_nearest_of_the_16_values_times_the_largest_of_its_block(folder: Path) -> None:
    model = load_model(str(folder), precision="nf4", device="cpu").model
    ordinary = four_layers()

    def nearest(blocks: torch.Tensor, scales: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return (blocks / scales).sub(NF4[:, None, None]).abs().min(0)

    for name, weight in dequantized(model).items():
        blocks, found = (
            own.detach().bfloat16().float().reshape(-1, BLOCK) for own in (ordinary.get_submodule(name).weight, weight)
        )
        scales, found_scales = (own.abs().amax(1, keepdim=True) for own in (blocks, found))
        # A scale has 8 bits, and a product the 8 bits of bf16.
        torch.testing.assert_close(found_scales, scales, rtol=0.02, atol=0)
        apart, which = nearest(found, found_scales)
        assert apart.max() < 2**-8 * 1.1
        assert (which == nearest(blocks, scales)[1]).float().mean() > 0.999


def test_blocks_that_go_over_the_end_of_a_row_are_refused(folder: Path) -> None:
    tiny_model("llama", intermediate_size=96).save_pretrained(folder)
    sentence = r"cannot be 4-bit on a CPU: .* no multiple of 64 \(in 4 layers, e\.g\. model\.layers\.0\.mlp\.down_proj"
    with pytest.raises(BapoError, match=sentence):
        load_model(str(folder), precision="nf4", device="cpu")


def test_log_probs_are_those_of_the_dequantized_weights(folder: Path) -> None:
    loaded = load_model(str(folder), precision="nf4", device="cpu")
    asked = groups()
    found = ResponseScorer(loaded.model).score(asked).summed()
    again = token_logps(loaded.model, asked)
    expected = token_logps(plain(loaded.model, torch.bfloat16), asked)
    exact = token_logps(plain(loaded.model, torch.float32), asked)
    rounding = (expected - exact).abs().mean()
    assert rounding > 0
    for own in (found, again):
        assert (own - exact).abs().mean() < 2 * rounding
    unquantized = token_logps(four_layers(), asked)
    assert (unquantized - exact).abs().mean() > 5 * rounding, "as if nothing had been quantized"


def test_gradients_of_an_adapter_are_those_over_the_dequantized_weights(folder: Path) -> None:
    asked = groups()

    def gradients(model: Any) -> dict[str, torch.Tensor]:
        policy = with_lora(model)
        scores = [logp for group in asked for logp in plain_logps(policy, group)]
        torch.stack(scores).sum().backward()
        return {name: own.grad.float() for name, own in policy.named_parameters() if own.requires_grad}

    model = load_model(str(folder), precision="nf4", device="cpu").model
    policy = with_lora(load_model(str(folder), precision="nf4", device="cpu").model)
    ResponseScorer(policy)(asked).summed().sum().backward()
    found = {name: own.grad.float() for name, own in policy.named_parameters() if own.requires_grad}
    exact = gradients(plain(model, torch.float32))
    rounding = relative_gap(gradients(plain(model, torch.bfloat16)), exact)
    assert relative_gap(found, exact) < 2 * rounding < 0.5
    assert relative_gap(gradients(four_layers()), exact) > 2 * rounding, "as if nothing had been quantized"


def test_training_moves_the_adapter_and_no_4_bit_weight(folder: Path, tmp_path: Path) -> None:
    loaded = load_model(str(folder), precision="nf4", device="cpu")
    policy = add_lora(loaded.model, rank=4)
    start = {name: own.detach().clone() for name, own in policy.named_parameters()}
    trainer = BAPOTrainer(
        policy,
        args=BAPOConfig(
            str(tmp_path / "out"),
            max_steps=3,
            base_max_new_tokens=4,
            learning_rate=1e-2,
            use_cpu=True,
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=[{"prompt": f"q {i}", "chosen": f" yes {i}", "rejected": f" no, {i}"} for i in range(4)],
        processing_class=loaded.tokenizer,
    )
    trainer.train()
    moved = {name for name, own in policy.named_parameters() if not torch.equal(own, start[name])}
    assert moved == {name for name in start if ".lora_" in name}
    assert len(moved) == 2 * len(quantized(policy))
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert log[-1]["loss/pair"] < log[0]["loss/pair"] == pytest.approx(0.693147, abs=1e-5)
