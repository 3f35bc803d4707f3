"""LoRA adapters on all linear layers of any architecture."""

from __future__ import annotations

import re
from typing import Any

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from bapo.models.adapters import add_adapter

LORA_RANK = 32
LORA_ALPHA = 64
LORA_DROPOUT = 0.05


def lora_config(rank: int = LORA_RANK, alpha: int | None = None, dropout: float = LORA_DROPOUT) -> Any:
    """PEFT configuration for LoRA on every linear layer but the output layer.

    Args:
        rank: inner dimension r of the update.
        alpha: the update is scaled by alpha / rank; None keeps the paper's ratio of 2 (Section 4.4).
        dropout: probability of dropping an input of the update.
    """
    from peft import LoraConfig

    return LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,
        lora_dropout=dropout,
        target_modules="all-linear",
    )


def add_lora(
    model: Any, rank: int = LORA_RANK, alpha: int | None = None, dropout: float = LORA_DROPOUT, seed: int = 0
) -> Any:
    """The model with a fresh LoRA adapter, float32 and zero in effect, which alone is trained."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return add_adapter(model, lora_config(rank, alpha, dropout))


_NOISE = re.compile(r"drop|^(input_)?jitter_noise$|^moe_jitter_eps$")
"""Names of plain numbers that layers hand to functional dropout, or draw noise with in training."""


def disable_model_dropout(model: nn.Module) -> None:
    """Switch off the model's own dropout (not adapters'), whose noise would make the policy differ from the reference.

    Both kinds: dropout modules, and the plain numbers that layers hand to functional dropout; and the noise that some
    experts' routers get in training. What else differs in training mode is found before the first step.
    """
    for name, module in model.named_modules():
        if "lora_dropout" in name:
            continue
        if isinstance(module, _DropoutNd):
            module.p = 0.0
        for number, value in vars(module).items():
            if isinstance(value, float) and _NOISE.search(number):
                setattr(module, number, 0.0)
