"""What the check before the first step has to tell from rounding: small things that happen to an anchored policy.

Each is a context manager that takes the policy, and undoes what it did unless it changed the base weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch

from bapo.likelihood import ResponseScorer, TokenGroup, scoring


@contextmanager
def one_percent(policy: Any, layer: int = 1) -> Iterator[None]:
    """An error of one percent in the output of one layer's feed-forward part."""
    layers = policy.get_base_model().model.layers
    hook = layers[layer % len(layers)].mlp.register_forward_hook(lambda module, inputs, output: output * 1.01)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def off_by_one(policy: Any) -> Iterator[None]:
    """The positions of responses against their prompt's."""
    original = scoring.lay_out

    def shifted(*arguments: Any) -> Any:
        layout = original(*arguments)
        positions = layout.position_ids.clone()
        for place in layout.places:
            positions[0, place] += 1
        return replace(layout, position_ids=positions)

    scoring.lay_out = shifted
    try:
        yield
    finally:
        scoring.lay_out = original


@contextmanager
def dropout_left_on(policy: Any) -> Iterator[None]:
    """That of the adapter, while it is scored."""
    original = scoring.evaluating
    scoring.evaluating = lambda model: nullcontext()
    policy.train()
    try:
        yield
    finally:
        scoring.evaluating = original
        policy.eval()


@contextmanager
def a_step_later(policy: Any) -> Iterator[None]:
    """The adapter after one more step of the optimizer."""
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    before = [parameter.detach().clone() for parameter in trained]
    ResponseScorer(policy)([TokenGroup((5, 6, 7), ((8, 9, 10),))]).tokens.sum().backward()
    torch.optim.AdamW(trained, lr=2e-4).step()
    try:
        yield
    finally:
        for parameter, data in zip(trained, before, strict=True):
            parameter.data, parameter.grad = data, None


@contextmanager
def another_checkpoint(policy: Any) -> Iterator[None]:
    """Every base weight a thousandth of its kind's spread away."""
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora" not in name and parameter.dim() > 1:
                parameter.copy_(parameter.float() + 1e-3 * parameter.float().std() * torch.randn(parameter.shape))
    yield
