"""Norms and feed-forward layers that keep less: the same numbers, the same gradients, fewer bytes."""

import sys

import pytest
import torch

from bapo.models import add_lora
from tests.architectures import tiny
from tests.speed_up import speed_up
from tests.tiny import CONFIGS, tiny_model

LEAN = {"llama", "llama-tied", "mistral-window", "qwen2", "qwen3", "granite-scaled", "phi3-fused-window"}


def loss_of(model):
    ids = torch.arange(3, 43)[None]
    return model(input_ids=ids, use_cache=False).logits.float().log_softmax(-1).square().mean()


def kept_bytes(model) -> int:
    """Bytes that a forward pass keeps for the backward pass, weights aside."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = loss_of(model)
    del loss
    return sum(kept.values())


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_output_is_the_same_and_gradients_agree(name, dtype):
    plain, lean = (add_lora(tiny_model(name).to(dtype), 4, 8, 0.0, 0) for _ in range(2))
    changed = speed_up(lean, "lean-layers")
    assert (changed > 0) == (name in LEAN)
    expected, found = loss_of(plain), loss_of(lean)
    assert torch.equal(expected, found)
    expected.backward()
    found.backward()
    for own, theirs in zip(lean.parameters(), plain.parameters(), strict=True):
        if theirs.requires_grad:
            gap = (own.grad - theirs.grad).norm() / theirs.grad.norm().clamp_min(1e-12)
            assert gap < (1e-5 if dtype == torch.float32 else 3e-2)


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_less_is_kept(name):
    plain, lean = (add_lora(tiny_model(name).bfloat16(), 4, 8, 0.0, 0) for _ in range(2))
    speed_up(lean, "lean-layers")
    assert kept_bytes(lean) < kept_bytes(plain)


def test_a_norm_whose_weight_is_trained_still_gets_its_gradient():
    plain, lean = tiny_model("llama"), tiny_model("llama")
    assert speed_up(lean, "lean-layers") > 0
    loss_of(plain).backward()
    loss_of(lean).backward()
    for own, theirs in zip(lean.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(own.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_a_second_call_changes_nothing():
    model = tiny_model("llama")
    assert speed_up(model, "lean-layers") > 0
    assert speed_up(model, "lean-layers") == 0


def test_second_derivatives_are_refused_and_not_silently_wrong():
    model = tiny_model("llama").requires_grad_(False)
    speed_up(model, "lean-layers")
    layer = model.model.layers[0]
    for part in (layer.input_layernorm, layer.mlp):
        x = torch.randn(3, 64, requires_grad=True)
        (first,) = torch.autograd.grad(part(x).square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match=r"once_differentiable|have been used in the graph"):
            torch.autograd.grad(first.square().sum(), x)


class GatedNorm(torch.nn.Module):
    """Named and shaped like the norm of many families, and something else where it is given a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(64), requires_grad=False)
        self.variance_epsilon = 1e-6

    def forward(self, hidden_states, gate=None):
        dtype = hidden_states.dtype
        hidden_states = hidden_states.to(torch.float32)
        if gate is not None:
            hidden_states = hidden_states * torch.nn.functional.silu(gate.to(torch.float32))
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        hidden_states = hidden_states * torch.rsqrt(variance + self.variance_epsilon)
        return self.weight * hidden_states.to(dtype)


class DroppingUnit(torch.nn.Module):
    """Has all that a gated unit has, and drops what comes out in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (torch.nn.Linear(64, 96, bias=False) for _ in range(2))
        self.down_proj = torch.nn.Linear(96, 64, bias=False)
        self.act_fn = torch.nn.SiLU()
        self.residual_dropout = 0.5

    def forward(self, x):
        down = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
        return torch.nn.functional.dropout(down, self.residual_dropout, self.training)


@pytest.mark.parametrize("kind", [GatedNorm, DroppingUnit])
def test_a_layer_that_does_more_than_the_known_ones_stays_as_it_is(kind):
    layer = kind()
    assert speed_up(torch.nn.Sequential(layer), "lean-layers") == 0
    assert "forward" not in vars(layer)


@pytest.mark.parametrize("case", ["bamba", "mamba2", "falcon_h1", "granitemoehybrid", "zamba2", "nemotron_h"])
def test_hybrids_with_gated_norms_compute_what_they_did(case):
    plain, lean = tiny(case).requires_grad_(False), tiny(case).requires_grad_(False)
    speed_up(lean, "lean-layers")
    assert torch.equal(loss_of(plain), loss_of(lean))


def test_a_layer_that_differs_in_training_mode_only_stays_as_it_is(monkeypatch):
    module = sys.modules["bapo.kernels.lean_layers"]
    monkeypatch.setattr(module, "_known_forwards", lambda: (GatedNorm.forward, DroppingUnit.forward))
    torch.manual_seed(0)
    assert speed_up(torch.nn.Sequential(DroppingUnit()), "lean-layers") == 0


def test_the_modes_of_all_modules_are_as_they_were():
    model = add_lora(tiny_model("llama"), 4, 8, 0.5, 0)
    model.train()
    model.base_model.model.model.layers[0].eval()
    before = [module.training for module in model.modules()]
    assert speed_up(model, "lean-layers") > 0
    assert [module.training for module in model.modules()] == before
