"""FlexOlmo (https://arxiv.org/abs/2507.07024), from OLMo 2.

Exact: with equal experts its logits are the dense model's.
"""

from __future__ import annotations

from typing import Any

from lazymoe.families.dense import OLMO2
from lazymoe.families.types import MLP_EXPERTS, Config, Family, carry


def _config(dense: Config, experts: int, top_k: int, shared: int) -> dict[str, Any]:
    return {
        **carry(dense, "attention_bias"),
        "architectures": ["FlexOlmoForCausalLM"],
        "model_type": "flex_olmo",
        "num_experts": experts,
        "num_experts_per_tok": top_k,
        "norm_topk_prob": True,
        "output_router_logits": False,
    }


FLEX_OLMO = Family(
    name="flex_olmo",
    takes=(OLMO2,),
    experts=MLP_EXPERTS,
    router="mlp.gate.weight",
    config=_config,
)
