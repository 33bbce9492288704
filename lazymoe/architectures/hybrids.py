"""Dense architectures whose layers are of several kinds, as their checkpoints lie on disk. Data only, as in `dense`."""

from __future__ import annotations

from lazymoe.architectures import settling
from lazymoe.architectures.dense import ATTENTION, DEFAULTS, FFN, GRANITE, NORMS, OUTER, without
from lazymoe.architectures.records import Dense

_KEYS = "linear_num_key_heads*linear_key_head_dim"  # widths of Qwen 3.5's linear attention
_VALUES = "linear_num_value_heads*linear_value_head_dim"
_INNER, _STATES = "mamba_expand*hidden", "mamba_n_groups*mamba_d_state"  # and of Granite 4's Mamba

LFM2 = Dense(
    "lfm2",
    outer={**without(OUTER, "model.norm.weight"), "model.embedding_norm.weight": "hidden"},
    layer={"operator_norm.weight": "hidden", "ffn_norm.weight": "hidden"},
    kinds={
        "conv": {
            "conv.in_proj.weight": "3*hidden hidden",
            "conv.conv.weight": "hidden one conv_L_cache",
            "conv.out_proj.weight": "hidden hidden",
        },
        "full_attention": {
            "self_attn.q_proj.weight": "heads hidden",
            "self_attn.k_proj.weight": "kv_heads hidden",
            "self_attn.v_proj.weight": "kv_heads hidden",
            "self_attn.out_proj.weight": "hidden heads",
            "self_attn.q_layernorm.weight": "head",
            "self_attn.k_layernorm.weight": "head",
        },
    },
    ffn={
        "gate": ("feed_forward.w1.weight", "ffn hidden"),
        "up": ("feed_forward.w3.weight", "ffn hidden"),
        "down": ("feed_forward.w2.weight", "hidden ffn"),
    },
    defaults={
        **DEFAULTS,
        "block_auto_adjust_ff_dim": True,
        "block_ffn_dim_multiplier": 1.0,
        "block_multiple_of": 256,
        "conv_L_cache": 3,
        "conv_bias": False,
        "max_position_embeddings": 128000,
        "norm_eps": 1e-5,
        "num_key_value_heads": 8,
        "pad_token_id": 0,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": True,
    },
    renamed={"block_ff_dim": "intermediate_size", "tie_embedding": "tie_word_embeddings"},
    settle=settling.lfm2,
)
GEMMA4 = Dense(
    "gemma4_text",
    outer=OUTER,
    layer={
        **NORMS,
        "pre_feedforward_layernorm.weight": "hidden",
        "post_feedforward_layernorm.weight": "hidden",
        "layer_scalar": "one",
    },
    kinds={
        "sliding_attention": {
            **ATTENTION,
            "self_attn.q_norm.weight": "head",
            "self_attn.k_norm.weight": "head",
        },
        "full_attention": {
            "self_attn.q_proj.weight": "num_attention_heads*global_head_dim hidden",
            "self_attn.k_proj.weight": "global_keys hidden",
            "self_attn.v_proj.weight": "global_values hidden",
            "self_attn.o_proj.weight": "hidden num_attention_heads*global_head_dim",
            "self_attn.q_norm.weight": "global_head_dim",
            "self_attn.k_norm.weight": "global_head_dim",
        },
    },
    ffn=FFN,
    adds=False,
    defaults={
        **without(DEFAULTS, "hidden_act", "rope_theta"),
        "attention_bias": False,
        "attention_k_eq_v": False,
        "bos_token_id": 2,
        "enable_moe_block": False,
        "eos_token_id": 1,
        "final_logit_softcapping": None,
        "global_head_dim": 512,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size_per_layer_input": 256,
        "max_position_embeddings": 131072,
        "num_global_key_value_heads": None,
        "num_key_value_heads": 4,
        "num_kv_shared_layers": 0,
        "pad_token_id": 0,
        "rope_parameters": None,
        "sliding_window": 512,
        "tie_word_embeddings": True,
        "use_bidirectional_attention": None,
    },
    settle=settling.gemma4,
    windows=settling.typed_windows,
)
QWEN3_5 = Dense(
    "qwen3_5_text",
    outer=OUTER,
    layer=NORMS,
    kinds={
        "linear_attention": {
            "linear_attn.A_log": "linear_num_value_heads",
            "linear_attn.dt_bias": "linear_num_value_heads",
            "linear_attn.conv1d.weight": f"2*{_KEYS}+{_VALUES} one linear_conv_kernel_dim",
            "linear_attn.in_proj_qkv.weight": f"2*{_KEYS}+{_VALUES} hidden",
            "linear_attn.in_proj_z.weight": f"{_VALUES} hidden",
            "linear_attn.in_proj_a.weight": "linear_num_value_heads hidden",
            "linear_attn.in_proj_b.weight": "linear_num_value_heads hidden",
            "linear_attn.norm.weight": "linear_value_head_dim",
            "linear_attn.out_proj.weight": f"hidden {_VALUES}",
        },
        "full_attention": {
            **ATTENTION,
            "self_attn.q_proj.weight": "2*heads hidden",  # with a gate for what attention gives
            "self_attn.q_norm.weight": "head",
            "self_attn.k_norm.weight": "head",
        },
    },
    ffn=FFN,
    defaults={
        **DEFAULTS,
        "attention_bias": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "full_attention_interval": 4,
        "head_dim": 256,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 32,
        "linear_value_head_dim": 128,
        "max_position_embeddings": 32768,
        "num_key_value_heads": 4,
        "pad_token_id": None,
        "partial_rotary_factor": 0.25,
    },
    settle=settling.qwen3_5,
)
GRANITE4 = Dense(
    "granitemoehybrid",
    outer=OUTER,
    layer=NORMS,
    kinds={
        "mamba": {
            "mamba.A_log": "mamba_n_heads",
            "mamba.D": "mamba_n_heads",
            "mamba.dt_bias": "mamba_n_heads",
            "mamba.conv1d.weight": f"{_INNER}+2*{_STATES} one mamba_d_conv",
            "mamba.conv1d.bias": f"mamba_conv_bias*{_INNER}+2*mamba_conv_bias*{_STATES}",
            "mamba.in_proj.weight": f"2*{_INNER}+2*{_STATES}+mamba_n_heads hidden",
            "mamba.norm.weight": _INNER,
            "mamba.out_proj.weight": f"hidden {_INNER}",
        },
        "attention": ATTENTION,
    },
    ffn={
        "gate": ("shared_mlp.gate_proj.weight", "ffn hidden"),
        "up": ("shared_mlp.up_proj.weight", "ffn hidden"),
        "down": ("shared_mlp.output_linear.weight", "hidden ffn"),
    },
    stacked={f"shared_mlp.{part}_proj.weight": "shared_mlp.input_linear.weight" for part in ("gate", "up")},
    defaults={
        **GRANITE.defaults,
        "mamba_chunk_size": 256,
        "mamba_conv_bias": True,
        "mamba_d_conv": 4,
        "mamba_d_state": 256,
        "mamba_expand": 2,
        "mamba_n_groups": 1,
        "mamba_n_heads": 128,
        "mamba_proj_bias": False,
        "num_local_experts": 8,
        "position_embedding_type": None,
        "shared_intermediate_size": 1024,
    },
    settle=settling.granite4,
)
