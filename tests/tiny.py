"""Tiny random models of the architectures that the library must fit, and a tokenizer for them, made on the spot."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers as tf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from bapo.models import ChatFormat

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


def ending_soon() -> torch.nn.Module:
    """A tiny model that says plain letters and ends often, so that many of its responses are candidates.

    Phi's head has a bias, which can say so.
    """
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    config = tf.PhiConfig(**sizes, num_attention_heads=4, max_position_embeddings=512, eos_token_id=2)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    tokenizer = tiny_tokenizer()
    letters = [i for i in range(model.config.vocab_size) if tokenizer.decode([i]).isalnum()]
    wanted = torch.full((model.config.vocab_size,), -30.0)
    wanted[letters] = 0.0
    wanted[ChatFormat(tokenizer).end_ids[-1]] = 3.0
    model.lm_head.bias.data = wanted
    return model


def write_tiny_gguf(path: Path) -> None:
    """A GGUF file of a few tensors, as llama.cpp writes them."""
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(16)
    writer.add_block_count(1)
    writer.add_feed_forward_length(16)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(261)
    tokenizer = tiny_tokenizer()
    tokens = [*tokenizer.convert_ids_to_tokens(range(260)), "ab"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 4 + [1] * 257)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(CHATML)
    rng = np.random.default_rng(0)
    shapes = {
        "token_embd": (261, 16),
        "output": (261, 16),
        "output_norm": (16,),
        "blk.0.attn_norm": (16,),
        "blk.0.ffn_norm": (16,),
        "blk.0.attn_q": (16, 16),
        "blk.0.attn_k": (8, 16),
        "blk.0.attn_v": (8, 16),
        "blk.0.attn_output": (16, 16),
        "blk.0.ffn_gate": (16, 16),
        "blk.0.ffn_up": (16, 16),
        "blk.0.ffn_down": (16, 16),
    }
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", rng.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
