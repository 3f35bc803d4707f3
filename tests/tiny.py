"""Tiny random models of the architectures that the library must fit, and a tokenizer for them, made on the spot."""

from __future__ import annotations

import torch
import transformers as tf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 260

_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

CONFIGS = {
    "llama": lambda: tf.LlamaConfig(**_COMMON),
    "llama-tied": lambda: tf.LlamaConfig(**_COMMON, tie_word_embeddings=True),
    "mistral-window": lambda: tf.MistralConfig(**_COMMON, sliding_window=6),
    "qwen2": lambda: tf.Qwen2Config(**_COMMON),
    "qwen3": lambda: tf.Qwen3Config(**_COMMON, head_dim=16),
    "phi3-fused-window": lambda: tf.Phi3Config(**_COMMON, sliding_window=7),
    "gemma": lambda: tf.GemmaConfig(**_COMMON, head_dim=16),
    "gemma2-softcap-window": lambda: tf.Gemma2Config(
        **_COMMON, head_dim=16, sliding_window=5, final_logit_softcapping=5.0, attn_logit_softcapping=2.0
    ),
    "gemma3-window": lambda: tf.Gemma3TextConfig(**_COMMON, head_dim=16, sliding_window=5),
    "granite-scaled": lambda: tf.GraniteConfig(**_COMMON, logits_scaling=3.0),
    "gpt2": lambda: tf.GPT2Config(vocab_size=VOCABULARY, n_embd=64, n_layer=3, n_head=4, n_positions=512, **_SPECIAL),
    "opt": lambda: tf.OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        ffn_dim=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=512,
        word_embed_proj_dim=32,
        **_SPECIAL,
    ),
}

# Attention sinks and recurrent state do not fit the shared layout and must take the plain path.
MISFITS = {
    "gpt-oss-sinks": lambda: tf.GptOssConfig(**_COMMON, head_dim=16, num_local_experts=4, sliding_window=5),
    "mamba-recurrent": lambda: tf.MambaConfig(
        vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=2, state_size=8, **_SPECIAL
    ),
    "bloom-alibi": lambda: tf.BloomConfig(vocab_size=VOCABULARY, hidden_size=64, n_layer=2, n_head=4, **_SPECIAL),
}


def tiny_model(name: str, seed: int = 0, **changes: int) -> torch.nn.Module:
    """A model in evaluation mode whose weights are large enough for attention to matter; with another size, if told."""
    torch.manual_seed(seed)
    # sdpa knows no soft-capping in older versions of transformers, and leaves it out.
    attention = "eager" if "softcap" in name else None
    config = (CONFIGS | MISFITS)[name]()
    config.update(changes)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    model.eval()
    return model


CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
NO_SYSTEM = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "[{{ m.role }}] {{ m.content }}{{ eos_token if m.role == 'assistant' else '' }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
NO_END = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def tiny_tokenizer(template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of 256 bytes and four special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<pad>", "<s>", "</s>", "<|end|>"]
    vocabulary = {token: i for i, token in enumerate([*special, *alphabet])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<|end|>"],
    )
    tokenizer.chat_template = template
    return tokenizer
