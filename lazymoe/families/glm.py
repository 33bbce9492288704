"""GLM-4-MoE, from Llama, Mistral and Qwen2: a class of transformers' own with a shared expert that has no gate.

Exact: with equal experts, and a shared expert of zeros, its logits are the dense model's. Weights come from sigmoids;
the bias that its training adjusts to balance the experts is zero.
"""

from __future__ import annotations

from typing import Any

from lazymoe.families.dense import LLAMA, MISTRAL, QWEN2
from lazymoe.families.types import MLP_EXPERTS, SHARED_EXPERTS, Config, Family, carry, window_misfit


def _config(dense: Config, experts: int, top_k: int, shared: int) -> dict[str, Any]:
    return {
        **carry(dense),
        "sliding_window": None,
        "architectures": ["Glm4MoeForCausalLM"],
        "model_type": "glm4_moe",
        "attention_bias": dense["model_type"] == "qwen2",
        "partial_rotary_factor": 1.0,
        "use_qk_norm": False,
        "n_routed_experts": experts,
        "n_shared_experts": shared,
        "num_experts_per_tok": top_k,
        "moe_intermediate_size": dense["intermediate_size"],
        "first_k_dense_replace": 0,
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.0,
        "num_nextn_predict_layers": 0,
    }


def _unfit(dense: Config, experts: int, top_k: int, shared: int) -> str | None:
    if not shared:
        return "it needs a shared expert"
    if experts < 2:
        return "it needs two experts at least"
    return window_misfit(dense)


GLM4_MOE = Family(
    name="glm4_moe",
    takes=(LLAMA, MISTRAL, QWEN2),
    experts=MLP_EXPERTS,
    router="mlp.gate.weight",
    constants=lambda _: {"mlp.gate.e_score_correction_bias": ("experts", 0.0)},
    shared=SHARED_EXPERTS,
    scores="sigmoid",
    config=_config,
    unfit=_unfit,
)
