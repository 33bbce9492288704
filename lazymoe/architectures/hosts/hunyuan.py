"""Hunyuan MoE, from dense Hunyuan of the first version (0.5B to 7B).

Exact: with equal experts its logits are the dense model's. It can't do without a shared expert as wide as the others,
so where a recipe has none that is of zeros. Keys that transformers doesn't read are those that vLLM asks for.
"""

from __future__ import annotations

from typing import Any

from lazymoe.architectures.configs import carry
from lazymoe.architectures.dense import HUNYUAN
from lazymoe.architectures.records import MLP_EXPERTS, Host, MoE

SHARED = {f"mlp.shared_mlp.{role}_proj.weight": role for role in ("gate", "up", "down")}
NO_SHARED = {name: ("hidden ffn" if role == "down" else "ffn hidden", 0.0) for name, role in SHARED.items()}


def _config(moe: MoE) -> dict[str, Any]:
    return {
        **carry(moe.dense, "attention_bias"),
        "architectures": ["HunYuanMoEV1ForCausalLM"],
        "model_type": "hunyuan_v1_moe",
        "num_experts": moe.experts,
        "moe_topk": moe.top_k,
        "moe_intermediate_size": moe.dense["intermediate_size"],
        "num_shared_expert": 1,
        "use_mixed_mlp_moe": True,
        "use_qk_norm": True,
        "output_router_logits": False,
    }


def _doubt(moe: MoE) -> str | None:
    if moe.shared:
        return None
    return (
        "hunyuan_v1_moe can't do without a shared expert, so every token passes one of zeros, which takes as much room "
        "as another expert would"
    )


HUNYUAN_MOE = Host(
    name="hunyuan_v1_moe",
    aliases=("hunyuan",),
    takes=(HUNYUAN,),
    experts=MLP_EXPERTS,
    router="mlp.gate.wg.weight",
    constants=lambda _: NO_SHARED,
    shared=SHARED,
    config=_config,
    doubt=_doubt,
    vllm=True,
)
