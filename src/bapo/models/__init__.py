"""Causal language models: loading, precision, adapters, chat formatting, fingerprints."""

from bapo.models.adapters import (
    adapter_parameters,
    adapter_parts,
    add_adapter,
    check_adapter,
    check_trainable,
    nonzero_adapters,
)
from bapo.models.chat import ChatFormat
from bapo.models.context import context_length
from bapo.models.embedded import EMBEDDED_MODEL, cache_folder, embedded_gguf
from bapo.models.fingerprint import bare_model, model_fingerprint, tokenizer_fingerprint
from bapo.models.float32 import in_float32
from bapo.models.freed_memory import keep_freed_memory, reusable_empty
from bapo.models.gradient_rows import GradientRows, noting, rows_of
from bapo.models.lean_layers import lean_layers
from bapo.models.loading import (
    AnyPrecision,
    LoadedModel,
    Precision,
    chat_format,
    keep_4bit_layout,
    load_model,
    load_tokenizer,
    resolve_precision,
)
from bapo.models.lora import LORA_ALPHA, LORA_DROPOUT, LORA_RANK, add_lora, disable_model_dropout, lora_config
from bapo.models.lora_update import dropout_seeds, fuse_lora, seeded_dropout
from bapo.models.machine import has_fast_bf16, instruction_set, machine
from bapo.models.packed_products import packed_weights
from bapo.models.positions import forget_positions, steady_length
from bapo.models.shared import SharedModel
from bapo.models.vocabulary import check_vocabulary
from bapo.models.weights import check_finite

__all__ = [
    "EMBEDDED_MODEL",
    "LORA_ALPHA",
    "LORA_DROPOUT",
    "LORA_RANK",
    "AnyPrecision",
    "ChatFormat",
    "GradientRows",
    "LoadedModel",
    "Precision",
    "SharedModel",
    "adapter_parameters",
    "adapter_parts",
    "add_adapter",
    "add_lora",
    "bare_model",
    "cache_folder",
    "chat_format",
    "check_adapter",
    "check_finite",
    "check_trainable",
    "check_vocabulary",
    "context_length",
    "disable_model_dropout",
    "dropout_seeds",
    "embedded_gguf",
    "forget_positions",
    "fuse_lora",
    "has_fast_bf16",
    "in_float32",
    "instruction_set",
    "keep_4bit_layout",
    "keep_freed_memory",
    "lean_layers",
    "load_model",
    "load_tokenizer",
    "lora_config",
    "machine",
    "model_fingerprint",
    "nonzero_adapters",
    "noting",
    "packed_weights",
    "resolve_precision",
    "reusable_empty",
    "rows_of",
    "seeded_dropout",
    "steady_length",
    "tokenizer_fingerprint",
]
