"""Every causal language model of the installed `transformers`, made tiny: its own configuration with small sizes."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY = 260
WINDOW = 21
"""Sliding windows and chunks, in tokens: longer than the probe at the start, shorter than what is compared."""

STEADY = 24
"""Tokens from which rotary frequencies of the variants depend on the longest sequence."""

NAMES = tuple(dict.fromkeys(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))

_ROPE = {"rope_type": "default", "rope_theta": 10000.0}

_SIZES: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), VOCABULARY),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embedding_size", "emb_dim", "width", "lru_width"), 64),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "dff", "dim_ff"), 96),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 48),
    **dict.fromkeys(("moe_shared_expert_intermediate_size", "shared_intermediate_size", "ffn_hidden_size"), 48),
    **dict.fromkeys(("intermediate_size_mlp", "feed_forward_size", "n_inner", "attention_hidden_size"), 96),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "decoder_layers", "encoder_layers"), 4),
    **dict.fromkeys(("num_decoder_layers", "num_encoder_layers", "num_blocks"), 4),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "num_heads", "num_encoder_attention_heads"), 4),
    **dict.fromkeys(("num_decoder_attention_heads", "num_attn_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_global_key_value_heads", "num_kv_heads"), 2),
    **dict.fromkeys(("head_dim", "global_head_dim", "v_head_dim", "kv_channels", "d_kv", "dim_head"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "index_head_dim", "rotary_dim"), 8),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank"), 24),
    "index_n_heads": 4,
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length"), 512),
    **dict.fromkeys(("max_target_positions", "max_source_positions", "context_length"), 512),
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "num_experts_per_token"), 2),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group"), 1),
    **dict.fromkeys(("sliding_window", "attention_chunk_size", "window_size", "sliding_window_size"), WINDOW),
    **dict.fromkeys(("attention_window_size", "local_attention_window_len", "index_topk"), WINDOW),
    "local_attention": 2 * WINDOW,
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "n_mamba_heads"), 8),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim", "mamba_headdim"), 16),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads", "linear_num_heads"), 4),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "linear_head_dim"), 16),
    **dict.fromkeys(("mamba_d_state", "state_size", "ssm_state_size", "mamba_d_ssm"), 8),
    "is_decoder": True,
    "num_codebooks": 1,
    "hidden_size_per_layer_input": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

_MLA = {"head_dim": 8, "num_key_value_heads": 4}  # multi-head latent attention: its rotary part, and no groups

_OWN: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        (
            "axk1",
            "axk2",
            "deepseek_v2",
            "deepseek_v3",
            "deepseek_v32",
            "glm4_moe_lite",
            "glm_moe_dsa",
            "minicpm3",
            "youtu",
        ),
        _MLA,
    ),
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0}, "num_key_value_heads": 2},
    "deepseek_v2": {**_MLA, "num_experts_per_tok": 2},
    "longcat_flash": {**_MLA, "num_layers": 2, "zero_expert_num": 2},
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "rope_parameters": dict.fromkeys(("sliding_attention", "full_attention"), _ROPE),
    },
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "dots3_note_text": {
        "per_layer_config": {at: {"num_attention_heads": 2, "num_key_value_heads": 2} for at in ("01", "03")},
        "num_key_value_heads": 4,
        "layer_types": ["indexed_attention", "sliding_attention"] * 2,
        "shared_experts_intermediate_size": 48,
        "head_dim": 32,
        "qk_nope_head_dim": 24,
    },
    "falcon_h1": {"mamba_d_ssm": 128},
    "gemma3n_text": {
        "num_kv_shared_layers": 2,
        "intermediate_size": [96] * 4,
        "activation_sparsity_pattern": [0.0] * 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    **{key: {"per_layer_config": {"03": {"head_dim": 32}}} for key in ("gemma4_text", "gemma4_unified_text")},
    **{key: {"head_dim": 16} for key in ("hunyuan_v1_dense", "hunyuan_v1_moe", "ministral")},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"num_heads": 8},
    "nemotron": {"num_key_value_heads": 2},
    "qwen4_exp_text": {"compress_ratio": 2, "token_budget": 8, "ngram_vocab_size_base": 1000, "hc_lowrank": 8},
    "reformer": {"axial_pos_embds": False, "local_attn_chunk_length": 8, "lsh_attn_chunk_length": 8},
    "zamba": {"num_hidden_layers": 12, "attention_head_dim": 32, "attention_hidden_size": 128, "n_mamba_heads": 2},
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "mamba_headdim": 16,
        "n_mamba_heads": 8,
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
        "hybrid_layer_ids": [1, 3],
    },
    "zaya": {"num_experts_per_tok": 1},
}


VARIANTS: dict[str, dict[str, Any]] = {
    "window": {"sliding_window": WINDOW, "use_sliding_window": True, "max_window_layers": 0},
    "dynamic": {"max_position_embeddings": STEADY, "rope_parameters": {**_ROPE, "rope_type": "dynamic", "factor": 4.0}},
    "longrope": {
        "original_max_position_embeddings": STEADY,
        "rope_parameters": {
            **_ROPE,
            "rope_type": "longrope",
            "original_max_position_embeddings": STEADY,
            "short_factor": [1.0] * 8,
            "long_factor": [4.0 + i for i in range(8)],
            "short_mscale": 1.0,
            "long_mscale": 1.2,
        },
    },
}
"""What many families can be configured to do, and do not by default."""

_CHANGING = {
    "dynamic": ("llama", "mistral", "qwen2", "qwen3_moe", "ministral", "olmo2"),
    "longrope": ("llama", "mistral", "qwen2", "qwen3_moe", "ministral", "olmo2", "phi3", "phimoe"),
}


def cases() -> list[str]:
    """Names of model types, and of variants: ``phimoe+window``."""
    found = list(NAMES)
    for name in NAMES:
        try:
            said = CONFIG_MAPPING[name]().to_dict()
        except Exception:  # has no default
            continue
        if "sliding_window" in said and said["sliding_window"] is None:
            found.append(f"{name}+window")
    return found + [f"{name}+{variant}" for variant, names in _CHANGING.items() for name in names]


def tiny_config(case: str) -> PreTrainedConfig:
    """The configuration of a model type with small sizes; whatever else it says stays."""
    name, _, variant = case.partition("+")
    return _small(CONFIG_MAPPING[name], VARIANTS.get(variant, {}))


def _small(kind: type[PreTrainedConfig], variant: dict[str, Any] | None = None) -> PreTrainedConfig:
    default = kind()
    said = default.to_dict()
    sizes = {key: size for key, size in _SIZES.items() if said.get(key) is not None}
    sizes |= {key: _SIZES[key] for key in ("pad_token_id", "bos_token_id", "eos_token_id") if key in said}
    parts = {key: getattr(default, key, None) for key in kind.sub_configs}
    sizes |= {key: _small(type(part)).to_dict() for key, part in parts.items() if part is not None}
    changed = {
        key: value for key, value in (variant or {}).items() if key in said or key == "original_max_position_embeddings"
    }
    return kind(**sizes | _OWN.get(kind.model_type, {}) | changed)


def tiny(case: str, std: float = 0.2, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    """A random model in evaluation mode, the same in every precision: matrices are drawn with this standard deviation,
    and what is none (norms, biases, gates) is moved by half of it, so that nothing stands where it has no effect."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(case), dtype=dtype)
    precise = tuple(model._keep_in_fp32_modules_strict or ())  # which `from_pretrained` keeps so, and `from_config` not
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape) * std
            if any(part in name for part in precise):
                parameter.data = parameter.data.float()
            parameter.copy_(drawn if parameter.dim() > 1 else parameter.float() + drawn / 2)
    return model.eval()
