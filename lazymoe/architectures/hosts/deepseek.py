"""DeepSeek-MoE of the first version (https://arxiv.org/abs/2401.06066), from Llama and Mistral.

Exact: with equal experts its logits are the dense model's. transformers has no class for it, so the checkpoint carries
one (templates/modeling_deepseek.py). Names and config are those of deepseek-moe-16b-base on the Hub, which vLLM and
llama.cpp read without it; llama.cpp ignores ``norm_topk_prob``.
"""

from __future__ import annotations

from typing import Any

from lazymoe.architectures.configs import auto_map, carry, head_misfit, window_misfit
from lazymoe.architectures.dense import LLAMA, MISTRAL
from lazymoe.architectures.records import MLP_EXPERTS, SHARED_EXPERTS, Host, MoE

CODE = "modeling_deepseek.py"


def _config(moe: MoE) -> dict[str, Any]:
    return {
        **carry(moe.dense),
        "sliding_window": None,
        "architectures": ["DeepseekForCausalLM"],
        "model_type": "deepseek",
        "auto_map": auto_map(CODE, "Deepseek"),
        "attention_bias": False,
        "n_routed_experts": moe.experts,
        "n_shared_experts": moe.shared or None,
        "num_experts_per_tok": moe.top_k,
        "moe_intermediate_size": moe.dense["intermediate_size"],
        "first_k_dense_replace": 0,
        "moe_layer_freq": 1,
        "norm_topk_prob": True,
        "scoring_func": "softmax",
    }


def _unfit(moe: MoE) -> str | None:
    return window_misfit(moe.dense) or head_misfit(moe.dense)


DEEPSEEK = Host(
    name="deepseek",
    takes=(LLAMA, MISTRAL),
    experts=MLP_EXPERTS,
    router="mlp.gate.weight",
    shared=SHARED_EXPERTS,
    config=_config,
    unfit=_unfit,
    code=CODE,
)
