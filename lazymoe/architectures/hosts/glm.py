"""GLM-4-MoE, from Llama, Mistral and Qwen2: a class of transformers' own with a shared expert that has no gate.

Exact: with equal experts, and a shared expert of zeros, its logits are the dense model's. Weights come from sigmoids;
the bias that its training adjusts to balance the experts is zero.
"""

from __future__ import annotations

from typing import Any

from lazymoe.architectures.configs import carry, window_misfit
from lazymoe.architectures.dense import LLAMA, MISTRAL, QWEN2
from lazymoe.architectures.records import MLP_EXPERTS, SHARED_EXPERTS, Host, MoE


def _config(moe: MoE) -> dict[str, Any]:
    return {
        **carry(moe.dense),
        "sliding_window": None,
        "architectures": ["Glm4MoeForCausalLM"],
        "model_type": "glm4_moe",
        "attention_bias": moe.dense["model_type"] == "qwen2",
        "partial_rotary_factor": 1.0,
        "use_qk_norm": False,
        "n_routed_experts": moe.experts,
        "n_shared_experts": moe.shared,
        "num_experts_per_tok": moe.top_k,
        "moe_intermediate_size": moe.dense["intermediate_size"],
        "first_k_dense_replace": 0,
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.0,
        "num_nextn_predict_layers": 0,
    }


def _unfit(moe: MoE) -> str | None:
    if not moe.shared:
        return "it needs a shared expert"
    if moe.experts < 2:
        return "it needs two experts at least"
    return window_misfit(moe.dense)


GLM4_MOE = Host(
    name="glm4_moe",
    takes=(LLAMA, MISTRAL, QWEN2),
    experts=MLP_EXPERTS,
    router="mlp.gate.weight",
    constants=lambda _: {"mlp.gate.e_score_correction_bias": ("experts", 0.0)},
    shared=SHARED_EXPERTS,
    scores="sigmoid",
    elsewhere=frozenset({"llama.cpp"}),
    config=_config,
    unfit=_unfit,
)
