"""Causal language models: loading, precision, adapters, chat formatting, fingerprints."""

from bapo.models.adapters import (
    adapter_parameters,
    adapter_parts,
    add_adapter,
    check_adapter,
    check_trainable,
    nonzero_adapters,
)
from bapo.models.as_it_came import as_it_came
from bapo.models.chat import ChatFormat
from bapo.models.context import context_length
from bapo.models.embedded import EMBEDDED_MODEL, cache_folder, embedded_gguf
from bapo.models.fingerprint import bare_model, model_fingerprint, tokenizer_fingerprint
from bapo.models.float32 import in_float32
from bapo.models.loading import (
    AnyPrecision,
    LoadedModel,
    Precision,
    chat_format,
    keep_4bit_layout,
    load_model,
    load_tokenizer,
    local_folder,
    precision_in_words,
    resolve_precision,
)
from bapo.models.lora import LORA_ALPHA, LORA_DROPOUT, LORA_RANK, add_lora, disable_model_dropout, lora_config
from bapo.models.machine import has_fast_bf16, instruction_set, machine
from bapo.models.positions import forget_positions, steady_length
from bapo.models.sharded import is_sharded, sharded_root, through_hooks
from bapo.models.shared import SharedModel
from bapo.models.splitting import Splits, splits
from bapo.models.vocabulary import check_vocabulary
from bapo.models.weights import check_finite

__all__ = [
    "EMBEDDED_MODEL",
    "LORA_ALPHA",
    "LORA_DROPOUT",
    "LORA_RANK",
    "AnyPrecision",
    "ChatFormat",
    "LoadedModel",
    "Precision",
    "SharedModel",
    "Splits",
    "adapter_parameters",
    "adapter_parts",
    "add_adapter",
    "add_lora",
    "as_it_came",
    "bare_model",
    "cache_folder",
    "chat_format",
    "check_adapter",
    "check_finite",
    "check_trainable",
    "check_vocabulary",
    "context_length",
    "disable_model_dropout",
    "embedded_gguf",
    "forget_positions",
    "has_fast_bf16",
    "in_float32",
    "instruction_set",
    "is_sharded",
    "keep_4bit_layout",
    "load_model",
    "load_tokenizer",
    "local_folder",
    "lora_config",
    "machine",
    "model_fingerprint",
    "nonzero_adapters",
    "precision_in_words",
    "resolve_precision",
    "sharded_root",
    "splits",
    "steady_length",
    "through_hooks",
    "tokenizer_fingerprint",
]
