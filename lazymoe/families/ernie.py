"""Ernie 4.5 MoE, from dense Ernie 4.5.

Exact: with equal experts its logits are the dense model's.
"""

from __future__ import annotations

from typing import Any

from lazymoe.families.dense import ERNIE4_5
from lazymoe.families.types import MLP_EXPERTS, SHARED_EXPERTS, Config, Family, carry


def _config(dense: Config, experts: int, top_k: int, shared: int) -> dict[str, Any]:
    return {
        **carry(dense),
        "architectures": ["Ernie4_5_MoeForCausalLM"],
        "model_type": "ernie4_5_moe",
        "use_bias": False,
        "moe_num_experts": experts,
        "moe_k": top_k,
        "moe_num_shared_experts": shared,
        "moe_intermediate_size": dense["intermediate_size"],
        "moe_layer_start_index": 0,
        "moe_layer_end_index": dense["num_hidden_layers"] - 1,
        "moe_layer_interval": 1,
    }


ERNIE4_5_MOE = Family(
    name="ernie4_5_moe",
    takes=(ERNIE4_5,),
    experts=MLP_EXPERTS,
    router="mlp.gate.weight",
    constants=lambda _: {"mlp.moe_statics.e_score_correction_bias": ("one experts", 0.0)},
    shared=SHARED_EXPERTS,
    config=_config,
)
