"""Full fine-tuning beside a plain loop: its own loss, the model's own forward pass, torch's AdamW, nothing shared."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tests.tiny import tiny_model
from tests.training.test_trainer import make

STEPS, WARMUP, RATE = 4, 1, 2e-3
BETA, STRENGTH = 0.1, 5.0
DECAY, CLIP, EPSILON = 0.1, 0.5, 1e-4

Weights = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BAPO_CACHE", str(tmp_path / "cache"))


def logp(model: Any, prompt: tuple[int, ...], response: tuple[int, ...]) -> torch.Tensor:
    ids = torch.tensor([[*prompt, *response]])
    logps = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return logps.gather(-1, ids[0, len(prompt) :, None]).sum()


def rate(step: int) -> float:
    """Linear over the warm-up, then half a cosine."""
    if step < WARMUP:
        return RATE * step / WARMUP
    return RATE * 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP)))


def plain_loop(name: str, groups: Any, dtype: torch.dtype) -> tuple[Weights, list[float]]:
    """The weights after all steps, each over all pairs, and the loss of each step (equations 1, 5 and 6)."""
    model: Any = tiny_model(name).to(dtype)
    pairs = [
        (group.tokens.prompt, (group.tokens.responses[w], group.tokens.responses[lo], group.bases[0].ids))
        for group in groups
        for w, lo in group.pairs
    ]
    with torch.no_grad():
        references = [[logp(model, prompt, response) for response in three] for prompt, three in pairs]
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() == 1]
    groups_of_weights = [{"params": decayed, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups_of_weights, lr=RATE, betas=(0.9, 0.999), eps=EPSILON)
    losses = []
    for step in range(STEPS):
        loss = torch.zeros((), dtype=dtype)
        for (prompt, three), reference in zip(pairs, references, strict=True):
            w, lo, base = (logp(model, prompt, response) - own for response, own in zip(three, reference, strict=True))
            loss = loss - F.logsigmoid(BETA * (w - lo)) + STRENGTH * F.relu(-base)
        loss = loss / len(pairs)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        assert norm > CLIP, "the gradient was not clipped, so nothing is said of clipping"
        for own in optimizer.param_groups:
            own["lr"] = rate(step)
        optimizer.step()
        losses.append(float(loss.detach()))
    return {name: own.detach() for name, own in model.named_parameters()}, losses


def moved_apart(found: Weights, expected: Weights, start: Weights) -> float:
    """How far apart two trainings ended, as a share of how far the second one went."""
    apart = torch.cat([(found[name].double() - own.double()).flatten() for name, own in expected.items()])
    way = torch.cat([(own.double() - start[name].double()).flatten() for name, own in expected.items()])
    return float(apart.norm() / way.norm())


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("accumulate", [1, 4])
def test_weights_after_some_steps_are_those_of_a_plain_loop(name: str, accumulate: int, tmp_path: Path) -> None:
    trainer = make(
        tmp_path,
        name=name,
        peft_config=None,
        anchor="sequence",
        anchor_strength=STRENGTH,
        beta=BETA,
        max_steps=STEPS,
        per_device_train_batch_size=8 // accumulate,
        gradient_accumulation_steps=accumulate,
        learning_rate=RATE,
        warmup_steps=WARMUP,
        weight_decay=DECAY,
        max_grad_norm=CLIP,
        adam_epsilon=EPSILON,
    )
    start = {name: own.detach().clone() for name, own in trainer.model.named_parameters()}
    groups = trainer.train_dataset.preferences.groups
    trainer.train()
    found = {name: own.detach() for name, own in trainer.model.named_parameters()}
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    exact, exact_losses = plain_loop(name, groups, torch.float64)
    rounded, rounded_losses = plain_loop(name, groups, torch.float32)
    assert found.keys() == exact.keys()
    rounding = moved_apart(rounded, exact, start)
    assert rounding < 1e-3
    assert moved_apart(found, exact, start) < 5 * rounding
    spread = max(abs(a - b) for a, b in zip(rounded_losses, exact_losses, strict=True))
    assert [entry["loss"] for entry in log] == pytest.approx(exact_losses, abs=max(5 * spread, 1e-5))
    assert log[-1]["anchor/active"] > 0, "the anchor took no part"
    assert abs(exact_losses[-1] - exact_losses[0]) > 1e-2, "nothing was learned"
