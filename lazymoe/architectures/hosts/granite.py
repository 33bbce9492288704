"""Granite-MoE, from Granite, Llama, Mistral and Qwen2.

Exact: with equal experts its logits are the dense model's. All experts of a layer lie in two tensors: these are the
names of granite-3.0-1b-a400m on the Hub, which transformers 4 and 5 and llama.cpp read.
"""

from __future__ import annotations

from typing import Any

from lazymoe.architectures.configs import carry, head_misfit, window_misfit
from lazymoe.architectures.dense import GRANITE, LLAMA, MISTRAL, QWEN2
from lazymoe.architectures.records import Config, Host, MoE

MULTIPLIERS = ("attention_multiplier", "embedding_multiplier", "logits_scaling", "residual_multiplier")


def _config(moe: MoE) -> dict[str, Any]:
    plain = {"attention_multiplier": moe.dense["head_dim"] ** -0.5, **dict.fromkeys(MULTIPLIERS[1:], 1.0)}
    return {
        **carry(moe.dense),
        "sliding_window": None,
        "architectures": ["GraniteMoeForCausalLM"],
        "model_type": "granitemoe",
        **{key: moe.dense.get(key, value) for key, value in plain.items()},
        "attention_bias": moe.dense["model_type"] == "qwen2",
        "num_local_experts": moe.experts,
        "num_experts_per_tok": moe.top_k,
        "output_router_logits": False,
    }


def _constants(dense: Config) -> dict[str, tuple[str, float]]:
    return {"self_attn.o_proj.bias": ("hidden", 0.0)} if dense["model_type"] == "qwen2" else {}


def _unfit(moe: MoE) -> str | None:
    return window_misfit(moe.dense) or head_misfit(moe.dense)


GRANITE_MOE = Host(
    name="granitemoe",
    takes=(GRANITE, LLAMA, MISTRAL, QWEN2),
    experts={
        "block_sparse_moe.input_linear.weight": "gate up",
        "block_sparse_moe.output_linear.weight": "down",
    },
    router="block_sparse_moe.router.layer.weight",
    constants=_constants,
    config=_config,
    unfit=_unfit,
    vllm=True,
)
