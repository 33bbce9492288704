"""LFM2-MoE, from dense LFM2, whose layers are short convolutions and attention.

Exact: with equal experts its logits are the dense model's. Weights come from sigmoids; the bias that its training
adjusts to balance the experts is zero.
"""

from __future__ import annotations

from typing import Any

from lazymoe.architectures.configs import carry
from lazymoe.architectures.hybrids import LFM2
from lazymoe.architectures.records import Host, MoE


def _config(moe: MoE) -> dict[str, Any]:
    return {
        **carry(moe.dense, "conv_L_cache", "conv_bias", "layer_types", "norm_eps"),
        "architectures": ["Lfm2MoeForCausalLM"],
        "model_type": "lfm2_moe",
        "tie_embedding": moe.dense["tie_word_embeddings"],  # as transformers 4 calls it
        "num_experts": moe.experts,
        "num_experts_per_tok": moe.top_k,
        "moe_intermediate_size": moe.dense["intermediate_size"],
        "num_dense_layers": 0,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.0,
        "use_expert_bias": True,
    }


LFM2_MOE = Host(
    name="lfm2_moe",
    takes=(LFM2,),
    experts={
        "feed_forward.experts.{expert}.w1.weight": "gate",
        "feed_forward.experts.{expert}.w2.weight": "down",
        "feed_forward.experts.{expert}.w3.weight": "up",
    },
    router="feed_forward.gate.weight",
    constants=lambda _: {"feed_forward.expert_bias": ("experts", 0.0)},
    scores="sigmoid",
    config=_config,
    since="5",
)
