"""Dense architectures, as their checkpoints lie on disk. Data only: a new one is a new record.

Shapes are words for `sizes`: ``"ffn hidden"`` is [intermediate_size, hidden_size]. Defaults are what transformers'
config class assumes for a key that config.json leaves out.
"""

from __future__ import annotations

from lazymoe.families.types import Dense

_OUTER = {"model.embed_tokens.weight": "vocab hidden", "model.norm.weight": "hidden", "lm_head.weight": "vocab hidden"}
_LAYER = {
    "input_layernorm.weight": "hidden",
    "self_attn.q_proj.weight": "heads hidden",
    "self_attn.k_proj.weight": "kv_heads hidden",
    "self_attn.v_proj.weight": "kv_heads hidden",
    "self_attn.o_proj.weight": "hidden heads",
    "post_attention_layernorm.weight": "hidden",
}
_FFN = {
    "gate": ("mlp.gate_proj.weight", "ffn hidden"),
    "up": ("mlp.up_proj.weight", "ffn hidden"),
    "down": ("mlp.down_proj.weight", "hidden ffn"),
}
_DEFAULTS = {
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

_BIASES = {f"self_attn.{part}_proj.bias": words for part, words in
           (("q", "heads"), ("k", "kv_heads"), ("v", "kv_heads"))}  # fmt: skip
_QWEN = {
    **_DEFAULTS,
    "bos_token_id": None,
    "eos_token_id": None,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "sliding_window": None,
    "use_sliding_window": False,
}

LLAMA = Dense("llama", outer=_OUTER, layer=_LAYER, ffn=_FFN, defaults={**_DEFAULTS, "sliding_window": None})
MISTRAL = Dense(
    "mistral",
    outer=_OUTER,
    layer=_LAYER,
    ffn=_FFN,
    defaults={**_DEFAULTS, "max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096},
)
QWEN2 = Dense("qwen2", outer=_OUTER, layer={**_LAYER, **_BIASES}, ffn=_FFN, defaults=_QWEN)
QWEN3 = Dense(
    "qwen3",
    outer=_OUTER,
    layer={**_LAYER, "self_attn.q_norm.weight": "head", "self_attn.k_norm.weight": "head"},
    ffn=_FFN,
    defaults={**_QWEN, "attention_bias": False, "head_dim": 128},
)
OLMO2 = Dense(
    "olmo2",
    outer=_OUTER,
    layer={
        **{name: words for name, words in _LAYER.items() if name != "input_layernorm.weight"},
        "post_feedforward_layernorm.weight": "hidden",
        "self_attn.q_norm.weight": "heads",
        "self_attn.k_norm.weight": "kv_heads",
    },
    ffn=_FFN,
    defaults={
        **_DEFAULTS,
        "attention_bias": False,
        "bos_token_id": None,
        "eos_token_id": 50279,
        "pad_token_id": 1,
        "rms_norm_eps": 1e-5,
    },
)
