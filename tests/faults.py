"""What checks have to tell from rounding: small things that happen to an anchored policy, and layouts that are wrong.

Each is a context manager that takes the policy, and undoes what it did unless it changed the base weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch

from bapo.likelihood import ResponseScorer, TokenGroup, passes, scoring
from bapo.likelihood.layout import Layout


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
def _laid_out(change: Callable[[Layout], Layout]) -> Iterator[None]:
    original = passes.lay_out
    passes.lay_out = lambda *arguments: change(original(*arguments))
    try:
        yield
    finally:
        passes.lay_out = original


def off_by_one(policy: Any) -> AbstractContextManager[None]:
    """The positions of responses against their prompt's."""

    def shifted(layout: Layout) -> Layout:
        positions = layout.position_ids.clone()
        for place in layout.places:
            positions[0, place] += 1
        return replace(layout, position_ids=positions)

    return _laid_out(shifted)


def seen_by_the_next(policy: Any) -> AbstractContextManager[None]:
    """Each response by the one behind it, of the same prompt."""

    def parented(layout: Layout) -> Layout:
        parents = list(layout.segments.parents)
        for at in range(1, len(parents)):
            if parents[at] >= 0 and layout.segments.parents[at - 1] == parents[at]:
                parents[at] = at - 1
        return replace(layout, segments=replace(layout.segments, parents=tuple(parents)))

    return _laid_out(parented)


def neighbours_prompt(policy: Any) -> AbstractContextManager[None]:
    """Responses behind the prompt of the group before theirs, those of the first group behind the last one's."""

    def moved(layout: Layout) -> Layout:
        parents = layout.segments.parents
        prompts = [at for at, up in enumerate(parents) if up < 0]
        before = dict(zip(prompts, [prompts[-1], *prompts[:-1]], strict=True))
        return replace(layout, segments=replace(layout.segments, parents=tuple(before.get(up, up) for up in parents)))

    return _laid_out(moved)


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
