"""What a model's numbers depend on, as a hash: its weights, its configuration, its precision, a non-zero adapter."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import Tensor, nn

# Configuration entries that say where a model came from or how it is run, not what it computes.
_INCIDENTAL = {
    "_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache", "architectures",
    "attn_implementation", "_attn_implementation_internal", "quantization_config", "output_attentions",
}  # fmt: skip


def model_fingerprint(model: nn.Module) -> str:
    """Hash of everything that determines the model's log-probabilities.

    Weights as they lie in memory (so bf16 and nf4 differ, and a merged adapter is part of them), the configuration, and
    every adapter that is in use and whose update is not zero, with its scaling. A fresh LoRA adapter, whose B matrices
    are zero, leaves the fingerprint as it was, and so does one that is not active.
    """
    causal_lm = bare_model(model)
    config = {k: v for k, v in causal_lm.config.to_dict().items() if k not in _INCIDENTAL}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    tensors, active = _tensors(causal_lm)
    for name, tensor in sorted(tensors):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(_bytes(tensor))
    for adapter in sorted(active):
        scalings = {
            name: module.scaling[adapter]
            for name, module in causal_lm.named_modules()
            if isinstance(getattr(module, "scaling", None), dict) and adapter in module.scaling
        }
        digest.update(json.dumps(scalings, sort_keys=True).encode())
    return digest.hexdigest()


def nonzero_adapters(model: nn.Module) -> list[str]:
    """Names of the adapters in use whose update is not zero."""
    return _tensors(bare_model(model))[1]


def bare_model(model: Any) -> Any:
    """The `transformers` model inside a PEFT model, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _tensors(causal_lm: nn.Module) -> tuple[list[tuple[str, Tensor]], list[str]]:
    """All that is computed with, and the names of the adapters among it that are not zero."""
    active: list[str] = []
    tensors: list[tuple[str, Tensor]] = []
    adapters: dict[str, list[tuple[str, Tensor]]] = {}
    in_use = _adapters_in_use(causal_lm)
    for name, tensor in causal_lm.state_dict().items():
        if not isinstance(tensor, Tensor):
            continue
        adapter, used = _adapter_of(name, in_use)
        if adapter is None:
            tensors.append((name.replace(".base_layer.", "."), tensor))
        elif adapter in used:
            adapters.setdefault(adapter, []).append((name, tensor))
    for adapter, members in adapters.items():
        if any(
            bool(tensor.any()) for name, tensor in members if ".lora_A" not in name and ".lora_embedding_A" not in name
        ):
            tensors += members
            active.append(adapter)
    return tensors, active


def _adapters_in_use(causal_lm: nn.Module) -> dict[str, frozenset[str]]:
    """Of each place where a layer keeps something by adapter (``...q_proj.lora_A``), the adapters it computes with.

    None of them where adapters are switched off, or merged into the layer's weight.
    """
    found: dict[str, frozenset[str]] = {}
    for name, module in causal_lm.named_modules():
        layer: Any = module
        if not isinstance(getattr(layer, "merged_adapters", None), list):  # no layer of PEFT's
            continue
        off = layer.disable_adapters or layer.merged_adapters
        used = frozenset(() if off else layer.active_adapters)
        for kept in (*layer.adapter_layer_names, *layer.other_param_names):
            found[f"{name}.{kept}"] = used
    return found


def _adapter_of(name: str, in_use: dict[str, frozenset[str]]) -> tuple[str | None, frozenset[str]]:
    """The adapter that a tensor belongs to, and those that its layer computes with; None of the model's own."""
    parts = name.split(".")
    for at in range(len(parts)):
        place = ".".join(parts[:at])
        if place in in_use:
            return parts[at], in_use[place]
    return None, frozenset()


def _bytes(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Hash of the vocabulary and the chat template."""
    parts = [sorted(tokenizer.get_vocab().items()), getattr(tokenizer, "chat_template", None)]
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()
