"""Ernie 4.5 MoE, from dense Ernie 4.5.

Exact: with equal experts its logits are the dense model's.
"""

from __future__ import annotations

from typing import Any

from lazymoe.architectures.configs import carry
from lazymoe.architectures.dense import ERNIE4_5
from lazymoe.architectures.records import MLP_EXPERTS, SHARED_EXPERTS, Host, MoE


def _config(moe: MoE) -> dict[str, Any]:
    return {
        **carry(moe.dense),
        "architectures": ["Ernie4_5_MoeForCausalLM"],
        "model_type": "ernie4_5_moe",
        "use_bias": False,
        "moe_num_experts": moe.experts,
        "moe_k": moe.top_k,
        "moe_num_shared_experts": moe.shared,
        "moe_intermediate_size": moe.dense["intermediate_size"],
        "moe_layer_start_index": 0,
        "moe_layer_end_index": moe.dense["num_hidden_layers"] - 1,
        "moe_layer_interval": 1,
    }


ERNIE4_5_MOE = Host(
    name="ernie4_5_moe",
    takes=(ERNIE4_5,),
    experts=MLP_EXPERTS,
    router="mlp.gate.weight",
    constants=lambda _: {"mlp.moe_statics.e_score_correction_bias": ("one experts", 0.0)},
    shared=SHARED_EXPERTS,
    config=_config,
)
