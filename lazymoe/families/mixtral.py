"""Mixtral, from Llama and Mistral.

Exact: with equal experts its logits are the dense model's. The names are those of Mixtral-8x7B on the Hub, which
transformers 4 and 5, vLLM and llama.cpp all read.
"""

from __future__ import annotations

from typing import Any

from lazymoe.families.dense import LLAMA, MISTRAL
from lazymoe.families.types import Config, Family, carry


def _config(dense: Config, experts: int, top_k: int) -> dict[str, Any]:
    return {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        **carry(dense),
        "num_local_experts": experts,
        "num_experts_per_tok": top_k,
        "output_router_logits": False,
    }


MIXTRAL = Family(
    name="mixtral",
    takes=(LLAMA, MISTRAL),
    experts={
        "block_sparse_moe.experts.{expert}.w1.weight": "gate",
        "block_sparse_moe.experts.{expert}.w2.weight": "down",
        "block_sparse_moe.experts.{expert}.w3.weight": "up",
    },
    router="block_sparse_moe.gate.weight",
    config=_config,
)
