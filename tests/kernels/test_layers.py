"""Kernels of layers: what they fit, and that a model is afterwards, to the bit, what it was before."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch

from bapo.kernels import lean_layers
from bapo.kernels.layers import FINDERS, FastLayers, fast_layers
from tests.kernels.test_fused_lora import with_random_adapter
from tests.tiny import tiny_model

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


def own_forwards(model: torch.nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if "forward" in vars(module)]


@pytest.mark.parametrize("kernel", FINDERS)
def test_undone_the_outputs_are_those_of_before_to_the_bit(kernel: str) -> None:
    model = with_random_adapter("llama").bfloat16()
    with torch.no_grad():
        expected = model(input_ids=IDS).logits
        layers = FastLayers(model, kernel)
        assert own_forwards(model) == []  # found, and not in use yet
        with layers, layers:
            assert len(own_forwards(model)) == len(layers) > 0
            inside = model(input_ids=IDS).logits
        assert own_forwards(model) == []
        assert torch.equal(model(input_ids=IDS).logits, expected)
    assert torch.equal(inside, expected) == (kernel == "lean-layers")  # fused adapters round in another place
    torch.testing.assert_close(inside, expected, rtol=0.05, atol=0.2)


def test_undone_after_an_exception() -> None:
    model = with_random_adapter("llama")
    with pytest.raises(KeyboardInterrupt), FastLayers(model):
        raise KeyboardInterrupt
    assert own_forwards(model) == []


def test_none_of_a_kind_that_was_not_chosen() -> None:
    model = with_random_adapter("llama")
    assert len(FastLayers(model, "off")) == len(FastLayers(model, "strands")) == 0
    assert len(FastLayers(model)) == sum(len(FastLayers(model, name)) for name in FINDERS)


@pytest.mark.parametrize("kernel", FINDERS)
def test_layers_whose_forward_was_changed_by_somebody_do_not_fit(kernel: str) -> None:
    model = with_random_adapter("llama")
    known = len(FastLayers(model, kernel))
    module = next(iter(FINDERS[kernel](model)))
    module.forward = lambda *own, **named: type(module).forward(module, *own, **named)
    changed = module.forward
    with (layers := FastLayers(model, kernel)):
        assert len(layers) == known - 1
        assert module.forward is changed
    assert module.forward is changed


class Louder(torch.nn.Module):
    """A unit that is known by its code and named like it, but activates with something else."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (torch.nn.Linear(64, 96, bias=False) for _ in range(2))
        self.down_proj, self.act_fn = torch.nn.Linear(96, 64, bias=False), torch.nn.GELU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


def test_the_probe_finds_what_the_code_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    known_norm, _ = lean_layers._known_forwards()
    monkeypatch.setattr(lean_layers, "_known_forwards", lambda: (known_norm, Louder.forward))
    louder, quiet = Louder(), Louder()
    quiet.act_fn = torch.nn.SiLU()
    assert lean_layers._lean_forward(louder) is not None
    assert list(lean_layers.lean_forwards(torch.nn.Sequential(louder, quiet))) == [quiet]


@pytest.mark.parametrize("mode", [True, False])
def test_an_update_that_is_not_pefts_is_found_by_the_probe(mode: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """PEFT's own code does something else in one of the two modes, and B is zero as in every fresh adapter."""
    from peft.tuners.lora.layer import Linear

    model = with_random_adapter("llama")
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.zeros_(weight)
    own = Linear.forward

    def doubled(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        found = own(self, x, *args, **kwargs)
        return 2 * found - self.base_layer(x) if self.training is mode else found

    assert len(FastLayers(model, "fused-lora")) > 0
    monkeypatch.setattr(Linear, "forward", doubled)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    assert len(FastLayers(model, "fused-lora")) == 0
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())


def test_what_is_found_is_kept_until_the_modules_change_and_no_longer_than_the_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = with_random_adapter("llama")
    first = fast_layers(model)
    assert fast_layers(model) is first
    assert fast_layers(model, "off") is not first
    base = model.merge_and_unload()
    assert fast_layers(base) is not first
    gone = weakref.ref(base)
    del base, model, first
    gc.collect()
    assert gone() is None


def test_one_probe_does_for_all_layers_of_a_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    probed: list[torch.nn.Module] = []
    original = lean_layers._gives_the_same
    monkeypatch.setattr(lean_layers, "_gives_the_same", lambda *own: probed.append(own[0]) or original(*own))
    assert len(FastLayers(tiny_model("llama").requires_grad_(False), "lean-layers")) == 13
    assert len(probed) == 2  # a norm and a unit
