"""Granite-MoE, from Granite, Llama, Mistral and Qwen2; Granite-MoE-Hybrid, from dense Granite 4; Granite-MoE-SWA, from
SmolLM3.

Exact: with equal experts the logits are the dense model's. All experts of a layer lie in two tensors: these are the
names of granite-3.0-1b-a400m on the Hub, which transformers 4 and 5 and llama.cpp read. The hybrid can't do without a
shared expert, so where a recipe has none it gets a narrow one of zeros. Of the one with windows each layer has a rotary
base of its own, 0 for a layer whose queries and keys aren't turned, and sinks that draw attention, here none.
"""

from __future__ import annotations

from typing import Any

from lazymoe.architectures.configs import carry, head_misfit, rope_spellings, window, window_misfit
from lazymoe.architectures.dense import GRANITE, LLAMA, MISTRAL, QWEN2, SMOLLM3
from lazymoe.architectures.hybrids import GRANITE4
from lazymoe.architectures.records import SMALL, Config, Host, MoE

MULTIPLIERS = ("attention_multiplier", "embedding_multiplier", "logits_scaling", "residual_multiplier")
EXPERTS = {
    "block_sparse_moe.input_linear.weight": "gate up",
    "block_sparse_moe.output_linear.weight": "down",
}
SHARED = {"shared_mlp.input_linear.weight": "gate up", "shared_mlp.output_linear.weight": "down"}
ROUTER = "block_sparse_moe.router.layer.weight"
MAMBA = ("chunk_size", "conv_bias", "d_conv", "d_head", "d_state", "expand", "n_groups", "n_heads", "proj_bias")


NO_SINK = -1e4  # its part of attention is 0 in every dtype


def _plain(dense: Config) -> dict[str, float]:
    """Give the multipliers of a model that multiplies nothing."""
    return {"attention_multiplier": dense["head_dim"] ** -0.5, **dict.fromkeys(MULTIPLIERS[1:], 1.0)}


def _config(moe: MoE) -> dict[str, Any]:
    return {
        **carry(moe.dense),
        "sliding_window": None,
        "architectures": ["GraniteMoeForCausalLM"],
        "model_type": "granitemoe",
        **{key: moe.dense.get(key, value) for key, value in _plain(moe.dense).items()},
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


def _swa(moe: MoE) -> dict[str, Any]:
    base = rope_spellings(moe.dense)["rope_theta"]
    return {
        **carry(moe.dense, "layer_types"),
        "sliding_window": window(moe.dense) or moe.dense["max_position_embeddings"],  # asked for in any case
        **_plain(moe.dense),
        "architectures": ["GraniteMoeSWAForCausalLM"],
        "model_type": "granitemoe_swa",
        "attention_bias": False,
        "layer_rope_theta": [base if turned else 0 for turned in moe.dense["no_rope_layers"]],
        "num_local_experts": moe.experts,
        "num_experts_per_tok": moe.top_k,
        "shared_intermediate_size": moe.dense["intermediate_size"] if moe.shared else 0,
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
    shared=SHARED,
    config=_hybrid,
    unfit=_hybrid_unfit,
    vllm=True,
)
GRANITE_MOE_SWA = Host(
    name="granitemoe_swa",
    takes=(SMOLLM3,),
    experts={"block_sparse_moe.experts.gate_up_proj": "gate up", "block_sparse_moe.experts.down_proj": "down"},
    router="block_sparse_moe.router.weight",
    constants=lambda _: {"self_attn.sinks": ("num_attention_heads", NO_SINK)},
    shared=SHARED,
    config=_swa,
    since="5",
)
