"""Dense architectures, as their checkpoints lie on disk. Data only: a new one is a new record.

Shapes are words for `shape`: ``"ffn hidden"`` is [intermediate_size, hidden_size]. Defaults are what transformers'
config class assumes for a key that config.json leaves out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lazymoe.architectures import settling
from lazymoe.architectures.records import Dense

OUTER = {"model.embed_tokens.weight": "vocab hidden", "model.norm.weight": "hidden", "lm_head.weight": "vocab hidden"}
LAYER = {
    "input_layernorm.weight": "hidden",
    "self_attn.q_proj.weight": "heads hidden",
    "self_attn.k_proj.weight": "kv_heads hidden",
    "self_attn.v_proj.weight": "kv_heads hidden",
    "self_attn.o_proj.weight": "hidden heads",
    "post_attention_layernorm.weight": "hidden",
}
ATTENTION = {name: words for name, words in LAYER.items() if "self_attn" in name}
NORMS = {name: words for name, words in LAYER.items() if name not in ATTENTION}
FFN = {
    "gate": ("mlp.gate_proj.weight", "ffn hidden"),
    "up": ("mlp.up_proj.weight", "ffn hidden"),
    "down": ("mlp.down_proj.weight", "hidden ffn"),
}
DEFAULTS = {
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "use_cache": True,
}

BIASES = {f"self_attn.{part}_proj.bias": words for part, words in
           (("q", "heads"), ("k", "kv_heads"), ("v", "kv_heads"))}  # fmt: skip
_QWEN = {
    **DEFAULTS,
    "bos_token_id": None,
    "eos_token_id": None,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "sliding_window": None,
    "use_sliding_window": False,
}


def without(items: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in items.items() if name not in names}


LLAMA = Dense(
    "llama",
    outer=OUTER,
    layer=LAYER,
    ffn=FFN,
    defaults={**DEFAULTS, "sliding_window": None},
    settle=settling.no_window,
)
MISTRAL = Dense(
    "mistral",
    outer=OUTER,
    layer=LAYER,
    ffn=FFN,
    defaults={**DEFAULTS, "max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096},
    computes="llama",
    settle=settling.mistral,
    windows=settling.mistral_windows,
)
PHI3 = Dense(
    "phi3",
    outer=OUTER,
    layer=LAYER,
    ffn=FFN,
    stacked={
        **{f"self_attn.{part}_proj.weight": "self_attn.qkv_proj.weight" for part in "qkv"},
        **{f"mlp.{part}_proj.weight": "mlp.gate_up_proj.weight" for part in ("gate", "up")},
    },
    defaults={
        **DEFAULTS,
        "eos_token_id": 32000,
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "pad_token_id": 32000,
        "partial_rotary_factor": 1.0,
        "rms_norm_eps": 1e-5,
        "sliding_window": None,
    },
    settle=settling.phi3,
    windows=settling.mistral_windows,
)
QWEN2 = Dense(
    "qwen2",
    outer=OUTER,
    layer={**LAYER, **BIASES},
    ffn=FFN,
    defaults=_QWEN,
    settle=settling.qwen,
    windows=settling.typed_windows,
)
QWEN3 = Dense(
    "qwen3",
    outer=OUTER,
    layer={**LAYER, "self_attn.q_norm.weight": "head", "self_attn.k_norm.weight": "head"},
    ffn=FFN,
    defaults={**_QWEN, "attention_bias": False, "head_dim": 128},
    settle=settling.qwen,
    windows=settling.typed_windows,
)
OLMO2 = Dense(
    "olmo2",
    outer=OUTER,
    layer={
        **without(LAYER, "input_layernorm.weight"),
        "post_feedforward_layernorm.weight": "hidden",
        "self_attn.q_norm.weight": "heads",
        "self_attn.k_norm.weight": "kv_heads",
    },
    ffn=FFN,
    adds=False,
    defaults={
        **DEFAULTS,
        "attention_bias": False,
        "bos_token_id": None,
        "eos_token_id": 50279,
        "pad_token_id": 1,
        "rms_norm_eps": 1e-5,
    },
)
GRANITE = Dense(
    "granite",
    outer=OUTER,
    layer=LAYER,
    ffn=FFN,
    defaults={
        **DEFAULTS,
        "attention_multiplier": 1.0,
        "embedding_multiplier": 1.0,
        "logits_scaling": 1.0,
        "residual_multiplier": 1.0,
    },
)
ERNIE4_5 = Dense(
    "ernie4_5",
    outer=OUTER,
    layer=LAYER,
    ffn=FFN,
    defaults={
        **DEFAULTS,
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "use_bias": False,
    },
)
COHERE2 = Dense(
    "cohere2",
    outer=OUTER,
    layer=without(LAYER, "post_attention_layernorm.weight"),
    ffn=FFN,
    defaults={
        **DEFAULTS,
        "bos_token_id": 5,
        "eos_token_id": 255001,
        "layer_norm_eps": 1e-5,
        "logit_scale": 0.0625,
        "max_position_embeddings": 8192,
        "pad_token_id": 0,
        "sliding_window": 4096,
        "tie_word_embeddings": True,
    },
    settle=settling.cohere2,
    windows=settling.typed_windows,
)
PHI = Dense(
    "phi",
    outer={
        "model.embed_tokens.weight": "vocab hidden",
        "model.final_layernorm.weight": "hidden",
        "model.final_layernorm.bias": "hidden",
        "lm_head.weight": "vocab hidden",
        "lm_head.bias": "vocab",
    },
    layer={
        "input_layernorm.weight": "hidden",
        "input_layernorm.bias": "hidden",
        **{name: words for name, words in LAYER.items() if name[10:11] in ("q", "k", "v")},
        **BIASES,
        "self_attn.dense.weight": "hidden heads",
        "self_attn.dense.bias": "hidden",
    },
    ffn={
        "up": ("mlp.fc1.weight", "ffn hidden"),
        "up_bias": ("mlp.fc1.bias", "ffn"),
        "down": ("mlp.fc2.weight", "hidden ffn"),
        "down_bias": ("mlp.fc2.bias", "hidden"),
    },
    defaults={
        **DEFAULTS,
        "embd_pdrop": 0.0,
        "hidden_act": "gelu_new",
        "layer_norm_eps": 1e-5,
        "partial_rotary_factor": 0.5,
        "qk_layernorm": False,
        "resid_pdrop": 0.0,
    },
)
COHERE = Dense(
    "cohere",
    outer=OUTER,
    layer=COHERE2.layer,
    ffn=FFN,
    defaults={
        **without(COHERE2.defaults, "sliding_window"),
        "attention_bias": False,
        "rope_theta": 500000.0,
        "use_qk_norm": False,
    },
)
SEED_OSS = Dense(
    "seed_oss",
    outer=OUTER,
    layer={**LAYER, **BIASES},
    ffn=FFN,
    defaults={
        **DEFAULTS,
        "attention_dropout": 0.1,
        "bos_token_id": 0,
        "head_dim": 128,
        "max_position_embeddings": 524288,
        "num_key_value_heads": 8,
        "pad_token_id": 1,
    },
)
HUNYUAN = Dense(
    "hunyuan_v1_dense",
    outer=OUTER,
    layer={**LAYER, "self_attn.query_layernorm.weight": "head", "self_attn.key_layernorm.weight": "head"},
    ffn=FFN,
    defaults={**DEFAULTS, "pad_token_id": 0, "rms_norm_eps": 1e-5},
)
SMOLLM3 = Dense(
    "smollm3",
    outer=OUTER,
    layer=LAYER,
    ffn=FFN,
    defaults={
        **DEFAULTS,
        "bos_token_id": 128000,
        "eos_token_id": 128001,
        "max_position_embeddings": 32768,
        "no_rope_layer_interval": 4,
        "num_key_value_heads": 4,
        "pad_token_id": 128004,
        "rope_theta": 2000000.0,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
    },
    settle=settling.smollm3,
    windows=settling.typed_windows,
)
GLM4 = Dense(  # GLM-4-MoE with dense layers alone
    "glm4_moe",
    outer=OUTER,
    layer={**LAYER, **{name: f"attention_bias*{words}" for name, words in BIASES.items()}},
    ffn=FFN,
    defaults={
        **DEFAULTS,
        "attention_bias": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "first_k_dense_replace": 1,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "partial_rotary_factor": 0.5,
        "rms_norm_eps": 1e-5,
        "use_qk_norm": False,
    },
)
