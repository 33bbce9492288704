"""Mixtral, from Llama, Mistral and Phi-3.

Exact: with equal experts its logits are the dense model's. The names are those of Mixtral-8x7B on the Hub, which
transformers 4 and 5, vLLM and llama.cpp all read.
"""

from __future__ import annotations

from typing import Any

from lazymoe.architectures.configs import carry, rotated_part, window_misfit
from lazymoe.architectures.dense import LLAMA, MISTRAL, PHI3
from lazymoe.architectures.records import Host, MoE


def _config(moe: MoE) -> dict[str, Any]:
    return {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        **carry(moe.dense),
        "num_local_experts": moe.experts,
        "num_experts_per_tok": moe.top_k,
        "output_router_logits": False,
    }


def _unfit(moe: MoE) -> str | None:
    if rotated_part(moe.dense) != 1:
        return "it has no partial rotary positions, this model has"
    return window_misfit(moe.dense, one=True)


MIXTRAL = Host(
    name="mixtral",
    takes=(LLAMA, MISTRAL, PHI3),
    experts={
        "block_sparse_moe.experts.{expert}.w1.weight": "gate",
        "block_sparse_moe.experts.{expert}.w2.weight": "down",
        "block_sparse_moe.experts.{expert}.w3.weight": "up",
    },
    router="block_sparse_moe.gate.weight",
    config=_config,
    unfit=_unfit,
    vllm=True,
)
