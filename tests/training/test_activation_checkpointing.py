"""Activation checkpointing: the same loss and gradients, fewer bytes kept, and layers that really compute again."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from bapo import BAPOTrainer
from tests.likelihood.test_scoring import relative_gap
from tests.training.test_trainer import make

STEPS = 2


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BAPO_CACHE", str(tmp_path / "cache"))


class Observed:
    """A training: what its layers computed, what was kept for the backward pass, and what came out."""

    def __init__(self, trainer: BAPOTrainer) -> None:
        self.calls: Counter[str] = Counter()
        self.bytes = 0
        self.gradients: dict[str, torch.Tensor] = {}
        model: Any = trainer.model
        for name, module in model.named_modules():
            if name.endswith(".mlp"):
                module.register_forward_pre_hook(lambda module, inputs, name=name: self._called(name))
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(lambda own, name=name: self._reached(name, own))
        known: set[int] = {own.untyped_storage().data_ptr() for own in model.parameters()}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known:
                self.bytes += tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            trainer.train()
        self.losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    def _called(self, name: str) -> None:
        if torch.is_grad_enabled():
            self.calls[name] += 1

    def _reached(self, name: str, parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        self.gradients.setdefault(name, parameter.grad.clone())  # of the first step


@pytest.mark.parametrize("setting", ["activation_checkpointing", "gradient_checkpointing"])
@pytest.mark.parametrize("kind", ["adapter", "full"])
def test_layers_compute_again_and_less_is_kept_for_the_same_gradients(setting: str, kind: str, tmp_path: Path) -> None:
    told: dict[str, Any] = {"max_steps": STEPS, "strands": 1, "anchor": "sequence"}
    if kind == "full":
        told["peft_config"] = None
    plain = Observed(make(tmp_path / "plain", **told))
    checkpointed = Observed(make(tmp_path / "checkpointed", **{setting: True}, **told))
    assert len(plain.calls) == 4  # layers
    assert set(plain.calls.values()) == {STEPS}
    assert set(checkpointed.calls.values()) == {2 * STEPS}, "a layer did not compute again"
    assert checkpointed.bytes < plain.bytes / 2
    assert checkpointed.losses == pytest.approx(plain.losses, rel=1e-5)
    assert relative_gap(checkpointed.gradients, plain.gradients) < 1e-5
