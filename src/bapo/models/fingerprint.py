"""What a model's numbers depend on, as a hash: its weights, its configuration, its precision, a non-zero adapter."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bapo.models.adapters import adapter_parts, nonzero_adapters

# Configuration entries that say where a model came from or how it is run, not what it computes.
_INCIDENTAL = {
    "_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache", "architectures",
    "attn_implementation", "_attn_implementation_internal", "quantization_config", "output_attentions",
}  # fmt: skip

_PEFTS_NAMES = re.compile(r"\.(?:token_adapter\.)?(?:base_layer|original_module)(?=\.)")
"""What PEFT puts into the name of a weight where it wraps the module that has it."""


def model_fingerprint(model: nn.Module) -> str:
    """Hash of everything that determines the model's log-probabilities, as it stands.

    Weights as they lie in memory (so bf16 and nf4 differ, and a merged adapter is part of them), the configuration, and
    every adapter that it computes with and whose update is not zero, with its scaling. A fresh LoRA adapter, whose B
    matrices are zero, and one that is switched off leave the fingerprint as it was.
    """
    causal_lm = bare_model(model)
    config = {k: v for k, v in causal_lm.config.to_dict().items() if k not in _INCIDENTAL}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    adapters = nonzero_adapters(causal_lm)
    for name, tensor in sorted(_tensors(causal_lm, adapters).items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(_bytes(tensor))
    for adapter in adapters:
        scalings = {
            name: module.scaling[adapter]
            for name, module in causal_lm.named_modules()
            if isinstance(getattr(module, "scaling", None), dict) and adapter in module.scaling
        }
        digest.update(json.dumps(scalings, sort_keys=True).encode())
    return digest.hexdigest()


def bare_model(model: Any) -> Any:
    """The `transformers` model inside a PEFT model, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _tensors(causal_lm: nn.Module, adapters: Sequence[str]) -> dict[str, Tensor]:
    """All that is computed with: the model's own weights, by the names that they have without adapters, and what these
    adapters hold where they are active."""
    held: set[str] = set()
    computed_with: dict[str, Tensor] = {}
    for part in adapter_parts(causal_lm):
        for own in part.tensors.values():
            held |= set(own)
            if part.is_active and part.adapter in adapters:
                computed_with |= own
    for name, tensor in causal_lm.state_dict().items():
        if isinstance(tensor, Tensor) and name not in held:
            computed_with[_PEFTS_NAMES.sub("", name)] = tensor
    return computed_with


def _bytes(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Hash of the vocabulary and the chat template."""
    parts = [sorted(tokenizer.get_vocab().items()), getattr(tokenizer, "chat_template", None)]
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()
