"""GLM-4-MoE, from GLM-4 9B, Phi-4-mini, Seed-OSS, Llama, Mistral, Phi-3 and Qwen2.

Exact: with equal experts its logits are the dense model's. Positions may turn a part of each head only. Weights come
from sigmoids; the bias that its training adjusts to balance the experts is zero. Its shared expert has no gate; where a
recipe has none it is of no width, which transformers takes and llama.cpp doesn't.
"""

from __future__ import annotations

from typing import Any

from lazymoe.architectures.configs import carry, rotated_part, window_misfit
from lazymoe.architectures.dense import BIASES, GLM4, LLAMA, MISTRAL, PHI3, QWEN2, SEED_OSS
from lazymoe.architectures.records import MLP_EXPERTS, SHARED_EXPERTS, Config, Host, MoE

TAKEN = (GLM4, SEED_OSS, LLAMA, MISTRAL, PHI3, QWEN2)
BIASED = {dense.model_type for dense in TAKEN if BIASES.keys() <= dense.layer.keys()}
NO_SHARED = {name: ("hidden 0" if role == "down" else "0 hidden", 0.0) for name, role in SHARED_EXPERTS.items()}


def _config(moe: MoE) -> dict[str, Any]:
    return {
        **carry(moe.dense),
        "sliding_window": None,
        "architectures": ["Glm4MoeForCausalLM"],
        "model_type": "glm4_moe",
        "attention_bias": _biased(moe.dense),
        "partial_rotary_factor": rotated_part(moe.dense),  # its default is another
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


def _biased(dense: Config) -> bool:
    kind = dense["model_type"]
    return bool(dense["attention_bias"] if kind == GLM4.model_type else kind in BIASED)


def _unfit(moe: MoE) -> str | None:
    if moe.dense["model_type"] == GLM4.model_type:
        if moe.dense["first_k_dense_replace"] < moe.dense["num_hidden_layers"]:
            return "this model is a mixture of experts already"
        if moe.dense["use_qk_norm"]:
            return "it has no norms of queries and keys here, this model has"
    if moe.experts < 2:
        return "it needs two experts at least"
    return window_misfit(moe.dense)


GLM4_MOE = Host(
    name="glm4_moe",
    takes=TAKEN,
    experts=MLP_EXPERTS,
    router="mlp.gate.weight",
    constants=lambda _: {"mlp.gate.e_score_correction_bias": ("experts", 0.0), **NO_SHARED},
    shared=SHARED_EXPERTS,
    scores="sigmoid",
    config=_config,
    unfit=_unfit,
)
