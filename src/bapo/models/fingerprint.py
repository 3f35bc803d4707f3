"""What a model's numbers depend on, as a hash: its weights, its configuration, its precision, a non-zero adapter."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from bapo.models.adapters import adapter_parts, nonzero_adapters
from bapo.progress import tell

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
    weights = _fingerprint_without_adapters(causal_lm)
    adapters = nonzero_adapters(causal_lm)
    if not adapters:
        return weights
    digest = hashlib.sha256(weights.encode())
    _add(digest, _adapter_tensors(causal_lm, adapters))
    for adapter in adapters:
        scalings = {
            name: module.scaling[adapter]
            for name, module in causal_lm.named_modules()
            if isinstance(getattr(module, "scaling", None), dict) and adapter in module.scaling
        }
        digest.update(json.dumps(scalings, sort_keys=True).encode())
    return digest.hexdigest()


@contextmanager
def unchanged(model: nn.Module, known: dict[Any, str]) -> Iterator[None]:
    """Inside, the caller holds a model's own weights, and nobody changes them: they are hashed once at most.

    Adapters may come, go and be trained meanwhile. Weights that have moved in memory, or were written to where autograd
    sees it, are hashed anew all the same.

    Args:
        model: the model.
        known: what the caller keeps of it from one time to the next, empty at first.
    """
    causal_lm = bare_model(model)
    before = _HELD.get(causal_lm)
    _HELD[causal_lm] = known
    try:
        yield
    finally:
        del _HELD[causal_lm]
        if before is not None:
            _HELD[causal_lm] = before


_HELD: WeakKeyDictionary[nn.Module, dict[Any, str]] = WeakKeyDictionary()
"""Models whose weights somebody holds, and their fingerprints without adapters by where the weights lie."""


def _fingerprint_without_adapters(causal_lm: Any) -> str:
    tensors = _own_tensors(causal_lm)
    config = {k: v for k, v in causal_lm.config.to_dict().items() if k not in _INCIDENTAL}
    config_text = json.dumps(config, sort_keys=True, default=str)
    held = _HELD.get(causal_lm)
    where = (config_text, tuple((name, tensor.data_ptr(), tensor._version) for name, tensor in sorted(tensors.items())))
    if held is not None and where in held:
        return held[where]
    digest = hashlib.sha256(config_text.encode())
    _add(digest, tensors)
    if held is not None:
        held[where] = digest.hexdigest()
    return digest.hexdigest()


def _add(digest: Any, tensors: dict[str, Tensor]) -> None:
    total, done = sum(map(_size, tensors.values())), 0
    for name, tensor in sorted(tensors.items()):
        tell("hashing the model, MB", done // 10**6, total // 10**6)
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(_bytes(tensor))
        done += _size(tensor)
    tell("hashing the model, MB", total // 10**6, total // 10**6)


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def bare_model(model: Any) -> Any:
    """The `transformers` model inside a PEFT model, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _own_tensors(causal_lm: nn.Module) -> dict[str, Tensor]:
    """The model's own weights, by the names that they have without adapters."""
    held = {name for part in adapter_parts(causal_lm) for tensors in part.tensors.values() for name in tensors}
    return {
        _PEFTS_NAMES.sub("", name): tensor
        for name, tensor in causal_lm.state_dict().items()
        if isinstance(tensor, Tensor) and name not in held
    }


def _adapter_tensors(causal_lm: nn.Module, adapters: Sequence[str]) -> dict[str, Tensor]:
    """What these adapters hold where they are active."""
    return {
        name: tensor
        for part in adapter_parts(causal_lm)
        if part.is_active and part.adapter in adapters
        for tensors in part.tensors.values()
        for name, tensor in tensors.items()
    }


def _bytes(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Hash of the vocabulary and the chat template."""
    parts = [sorted(tokenizer.get_vocab().items()), getattr(tokenizer, "chat_template", None)]
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()
