"""FlexOlmo (https://arxiv.org/abs/2507.07024), from OLMo 2.

Exact: with equal experts its logits are the dense model's.
"""

from __future__ import annotations

from typing import Any

from lazymoe.architectures.configs import carry
from lazymoe.architectures.dense import OLMO2
from lazymoe.architectures.records import MLP_EXPERTS, Host, MoE


def _config(moe: MoE) -> dict[str, Any]:
    return {
        **carry(moe.dense, "attention_bias"),
        "architectures": ["FlexOlmoForCausalLM"],
        "model_type": "flex_olmo",
        "num_experts": moe.experts,
        "num_experts_per_tok": moe.top_k,
        "norm_topk_prob": True,
        "output_router_logits": False,
    }


FLEX_OLMO = Host(
    name="flex_olmo",
    takes=(OLMO2,),
    experts=MLP_EXPERTS,
    router="mlp.gate.weight",
    config=_config,
)
