"""Cohere 2 MoE, from dense Cohere 2 (Command R7B, Command A) and Cohere (Command R), for transformers 5.

Exact: with equal experts its logits are the dense model's. Its router reads what attention reads: the two run side by
side. Its layers turn queries and keys by their positions only where they have a window, so Cohere's, which all do and
have none, get one as long as a text.
"""

from __future__ import annotations

from typing import Any

from lazymoe.architectures.configs import carry
from lazymoe.architectures.dense import COHERE, COHERE2
from lazymoe.architectures.records import MLP_EXPERTS, SHARED_EXPERTS, Host, MoE


def _config(moe: MoE) -> dict[str, Any]:
    layers, whole = moe.dense["num_hidden_layers"], moe.dense["max_position_embeddings"]
    turned = {"layer_types": ["sliding_attention"] * layers, "sliding_window": whole}
    return {
        **carry(moe.dense, "attention_bias", "layer_norm_eps", "layer_types", "logit_scale"),
        **(turned if moe.dense["model_type"] == "cohere" else {}),
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


def _unfit(moe: MoE) -> str | None:
    return "it has no norms of queries and keys, this model has" if moe.dense.get("use_qk_norm") else None


COHERE2_MOE = Host(
    name="cohere2_moe",
    takes=(COHERE2, COHERE),
    experts=MLP_EXPERTS,
    router="mlp.gate.weight",
    shared=SHARED_EXPERTS,
    config=_config,
    unfit=_unfit,
    since="5",
)
