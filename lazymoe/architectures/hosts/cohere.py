"""Cohere 2 MoE, from dense Cohere 2 (Command R7B, Command A), for transformers 5.

Exact: with equal experts its logits are the dense model's. Its router reads what attention reads: the two run side by
side.
"""

from __future__ import annotations

from typing import Any

from lazymoe.architectures.configs import carry
from lazymoe.architectures.dense import COHERE2
from lazymoe.architectures.records import MLP_EXPERTS, SHARED_EXPERTS, Host, MoE


def _config(moe: MoE) -> dict[str, Any]:
    return {
        **carry(moe.dense, "attention_bias", "layer_norm_eps", "layer_types", "logit_scale"),
        "rms_norm_eps": None,  # its norms are layer norms
        "architectures": ["Cohere2MoeForCausalLM"],
        "model_type": "cohere2_moe",
        "num_experts": moe.experts,
        "num_experts_per_tok": moe.top_k,
        "num_shared_experts": moe.shared,
        "shared_expert_combination_strategy": "sum",
        "expert_selection_fn": "softmax",
        "first_k_dense_replace": 0,
    }


COHERE2_MOE = Host(
    name="cohere2_moe",
    takes=(COHERE2,),
    experts=MLP_EXPERTS,
    router="mlp.gate.weight",
    shared=SHARED_EXPERTS,
    config=_config,
    since="5",
)
