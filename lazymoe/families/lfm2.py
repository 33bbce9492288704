"""LFM2-MoE, from dense LFM2, whose layers are short convolutions and attention.

Exact: with equal experts its logits are the dense model's. Weights come from sigmoids; the bias that its training
adjusts to balance the experts is zero.
"""

from __future__ import annotations

from typing import Any

from lazymoe.families.dense import LFM2
from lazymoe.families.types import Config, Family, carry


def _config(dense: Config, experts: int, top_k: int, shared: int) -> dict[str, Any]:
    return {
        **carry(dense, "conv_L_cache", "conv_bias", "layer_types", "norm_eps"),
        "architectures": ["Lfm2MoeForCausalLM"],
        "model_type": "lfm2_moe",
        "tie_embedding": dense["tie_word_embeddings"],  # as transformers 4 calls it
        "num_experts": experts,
        "num_experts_per_tok": top_k,
        "moe_intermediate_size": dense["intermediate_size"],
        "num_dense_layers": 0,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.0,
        "use_expert_bias": True,
    }


LFM2_MOE = Family(
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
