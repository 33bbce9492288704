"""Qwen3.5-MoE, from Qwen 3.5; Qwen3-MoE, from Qwen3; Qwen2-MoE, from Qwen2 and 2.5, Llama and Mistral.

Exact: with equal experts the logits are the dense model's. In the older two, ``norm_topk_prob`` must be set: it is off
by default. Qwen2-MoE and Qwen3.5-MoE can't do without a shared expert, so where a recipe has none they get a narrow one
of zeros. Its gate is not zero, or llama.cpp would divide by it; and vLLM wants Qwen2-MoE's biases of queries, keys and
values, so where a dense model has none they are zero. There a head_dim of its own (Mistral Nemo's) is read by
transformers 5 only.
"""

from __future__ import annotations

from typing import Any

from lazymoe.architectures.configs import carry, rotated_part, window, window_misfit
from lazymoe.architectures.dense import BIASES, LLAMA, MISTRAL, QWEN2, QWEN3
from lazymoe.architectures.hybrids import QWEN3_5
from lazymoe.architectures.records import MLP_EXPERTS, SMALL, Config, Host, MoE

CARRIED = ("attention_bias", "max_window_layers", "use_sliding_window")
SHARED = {f"mlp.shared_expert.{role}_proj.weight": role for role in ("gate", "up", "down")}
NO_SHARED = {  # a shared expert with nothing to do
    "mlp.shared_expert.gate_proj.weight": ("small hidden", 0.0),
    "mlp.shared_expert.up_proj.weight": ("small hidden", 0.0),
    "mlp.shared_expert.down_proj.weight": ("hidden small", 0.0),
    "mlp.shared_expert_gate.weight": ("one hidden", 1.0),
}
LINEAR = (
    "linear_conv_kernel_dim", "linear_key_head_dim", "linear_num_key_heads", "linear_num_value_heads",
    "linear_value_head_dim",
)  # fmt: skip


def _config(moe: MoE) -> dict[str, Any]:
    return {
        **carry(moe.dense, *CARRIED),
        "num_experts": moe.experts,
        "num_experts_per_tok": moe.top_k,
        "moe_intermediate_size": moe.dense["intermediate_size"],
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "output_router_logits": False,
    }


def _qwen2(moe: MoE) -> dict[str, Any]:
    return {
        **_config(moe),
        "architectures": ["Qwen2MoeForCausalLM"],
        "model_type": "qwen2_moe",
        "use_sliding_window": window(moe.dense) is not None,
        "max_window_layers": moe.dense.get("max_window_layers", 0),
        # transformers 5 would guess them otherwise; transformers 4 has one window for all layers
        "layer_types": ["full_attention" if size is None else "sliding_attention" for size in moe.dense["windows"]],
        "qkv_bias": True,
        "shared_expert_intermediate_size": moe.dense["intermediate_size"] if moe.shared else SMALL,
    }


def _qwen3(moe: MoE) -> dict[str, Any]:
    return {
        **_config(moe),
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
    }


def _qwen3_5(moe: MoE) -> dict[str, Any]:
    return {
        **carry(moe.dense, "attention_bias", "layer_types", *LINEAR),
        "partial_rotary_factor": rotated_part(moe.dense),  # its default is another
        "architectures": ["Qwen3_5MoeForCausalLM"],
        "model_type": "qwen3_5_moe_text",
        "num_experts": moe.experts,
        "num_experts_per_tok": moe.top_k,
        "moe_intermediate_size": moe.dense["intermediate_size"],
        "shared_expert_intermediate_size": moe.dense["intermediate_size"] if moe.shared else SMALL,
        "output_router_logits": False,
    }


def _qwen2_doubt(moe: MoE) -> str | None:
    if window_misfit(moe.dense, one=True):
        return "transformers 4 gives all its layers the attention window that only some have; transformers 5 does not"
    return None


def _qwen3_unfit(moe: MoE) -> str | None:
    return window_misfit(moe.dense, one=True)


def _qwen2_constants(dense: Config) -> dict[str, tuple[str, float]]:
    biases = {} if dense["model_type"] == "qwen2" else {name: (words, 0.0) for name, words in BIASES.items()}
    return biases | NO_SHARED


QWEN2_MOE = Host(
    name="qwen2_moe",
    aliases=("qwen",),
    takes=(QWEN2, LLAMA, MISTRAL),
    experts=MLP_EXPERTS,
    router="mlp.gate.weight",
    constants=_qwen2_constants,
    shared=SHARED,
    shared_gate="mlp.shared_expert_gate.weight",
    config=_qwen2,
    doubt=_qwen2_doubt,
    vllm=True,
)
QWEN3_MOE = Host(
    name="qwen3_moe",
    aliases=("qwen", "qwen3"),
    takes=(QWEN3,),
    experts=MLP_EXPERTS,
    router="mlp.gate.weight",
    config=_qwen3,
    unfit=_qwen3_unfit,
    vllm=True,
)
QWEN3_5_MOE = Host(
    name="qwen3_5_moe_text",
    aliases=("qwen", "qwen3_5_moe"),
    takes=(QWEN3_5,),
    experts=MLP_EXPERTS,
    router="mlp.gate.weight",
    constants=lambda _: NO_SHARED,
    shared=SHARED,
    shared_gate="mlp.shared_expert_gate.weight",
    config=_qwen3_5,
    since="5",
)
