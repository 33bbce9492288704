"""Granite-MoE, from Granite, Llama, Mistral and Qwen2; Granite-MoE-Hybrid, from dense Granite 4.

Exact: with equal experts the logits are the dense model's. All experts of a layer lie in two tensors: these are the
names of granite-3.0-1b-a400m on the Hub, which transformers 4 and 5 and llama.cpp read. The hybrid can't do without a
shared expert, so where a recipe has none it gets a narrow one of zeros.
"""

from __future__ import annotations

from typing import Any

from lazymoe.architectures.configs import carry, head_misfit, window_misfit
from lazymoe.architectures.dense import GRANITE, LLAMA, MISTRAL, QWEN2
from lazymoe.architectures.hybrids import GRANITE4
from lazymoe.architectures.records import SMALL, Config, Host, MoE

MULTIPLIERS = ("attention_multiplier", "embedding_multiplier", "logits_scaling", "residual_multiplier")
EXPERTS = {
    "block_sparse_moe.input_linear.weight": "gate up",
    "block_sparse_moe.output_linear.weight": "down",
}
ROUTER = "block_sparse_moe.router.layer.weight"
MAMBA = ("chunk_size", "conv_bias", "d_conv", "d_head", "d_state", "expand", "n_groups", "n_heads", "proj_bias")


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


def _hybrid(moe: MoE) -> dict[str, Any]:
    own = (*MULTIPLIERS, *(f"mamba_{key}" for key in MAMBA))
    return {
        **carry(moe.dense, *own, "attention_bias", "layer_types", "position_embedding_type", "time_step_limit"),
        "architectures": ["GraniteMoeHybridForCausalLM"],
        "model_type": "granitemoehybrid",
        "num_local_experts": moe.experts,
        "num_experts_per_tok": moe.top_k,
        "shared_intermediate_size": moe.dense["intermediate_size"] if moe.shared else SMALL,
        "output_router_logits": False,
    }


def _constants(dense: Config) -> dict[str, tuple[str, float]]:
    return {"self_attn.o_proj.bias": ("hidden", 0.0)} if dense["model_type"] == "qwen2" else {}


def _unfit(moe: MoE) -> str | None:
    return window_misfit(moe.dense) or head_misfit(moe.dense)


def _hybrid_unfit(moe: MoE) -> str | None:
    if moe.dense["num_local_experts"]:
        return "this model is a mixture of experts already"
    return head_misfit(moe.dense)


GRANITE_MOE = Host(
    name="granitemoe",
    takes=(GRANITE, LLAMA, MISTRAL, QWEN2),
    experts=EXPERTS,
    router=ROUTER,
    constants=_constants,
    config=_config,
    unfit=_unfit,
    vllm=True,
)
GRANITE_MOE_HYBRID = Host(
    name="granitemoehybrid",
    aliases=("granite4",),
    takes=(GRANITE4,),
    experts=EXPERTS,
    router=ROUTER,
    constants=lambda _: {
        "shared_mlp.input_linear.weight": ("2*small hidden", 0.0),
        "shared_mlp.output_linear.weight": ("hidden small", 0.0),
    },
    shared={"shared_mlp.input_linear.weight": "gate up", "shared_mlp.output_linear.weight": "down"},
    config=_hybrid,
    unfit=_hybrid_unfit,
    vllm=True,
)
