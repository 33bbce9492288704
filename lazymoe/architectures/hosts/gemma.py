"""Gemma 4 MoE, from dense Gemma 4 text models (the 31B), for transformers 5.

Exact: with equal experts its logits are the dense model's. Beside its experts each layer has a dense feed-forward
network, here a narrow one of zeros. The experts have a norm of their own before them, here a copy of the dense model's,
and one after them, which is followed by the dense model's and changes nothing before that but for the norms' epsilon:
by about epsilon / (2 x the mean square of the feed-forward output), relative, far below bfloat16's own rounding.
The router's own norm has no weights; with its scale it reads what the dense feed-forward network does.
"""

from __future__ import annotations

from typing import Any

from lazymoe.architectures.configs import carry
from lazymoe.architectures.hybrids import GEMMA4
from lazymoe.architectures.records import SMALL, Config, Host, MoE


def _own_heads(dense: Config) -> dict[str, dict[str, int]]:
    """Spell how the layers with full attention differ from the others, as the newest transformers does."""
    own = {"head_dim": dense["global_head_dim"], "num_key_value_heads": dense["num_global_key_value_heads"]}
    return {str(i): own for i, kind in enumerate(dense["layer_types"]) if kind == "full_attention"}


def _config(moe: MoE) -> dict[str, Any]:
    return {
        **carry(moe.dense, "attention_bias", "attention_k_eq_v", "final_logit_softcapping", "global_head_dim",
                "hidden_activation", "layer_types", "num_global_key_value_heads", "use_bidirectional_attention"),
        "architectures": ["Gemma4ForCausalLM"],
        "model_type": "gemma4_text",
        "per_layer_config": _own_heads(moe.dense),
        "hidden_size_per_layer_input": 0,
        "num_kv_shared_layers": 0,
        "use_double_wide_mlp": False,
        "enable_moe_block": True,
        "num_experts": moe.experts,
        "top_k_experts": moe.top_k,
        "intermediate_size": SMALL,
        "moe_intermediate_size": moe.dense["intermediate_size"],
    }  # fmt: skip


def _unfit(moe: MoE) -> str | None:
    if moe.dense["enable_moe_block"]:
        return "this model is a mixture of experts already"
    if moe.dense["hidden_size_per_layer_input"]:
        return "it has no embeddings for each layer here, this model some"
    if moe.dense["num_kv_shared_layers"]:
        return "its layers can't share keys and values here, this model's do"
    if moe.dense["use_bidirectional_attention"] == "all":  # "vision" is for images, of which a text model sees none
        return "its attention is causal, this model's looks both ways"
    plain = {key: moe.dense[key] for key in ("head_dim", "num_key_value_heads")}
    given, own = moe.dense.get("per_layer_config") or {}, _own_heads(moe.dense)
    layers = map(str, range(moe.dense["num_hidden_layers"]))
    if given and any(plain | given.get(i, {}) != plain | own.get(i, {}) for i in layers):
        return "its layers differ by their type of attention only, this model's otherwise"
    return None


GEMMA4_MOE = Host(
    name="gemma4_text",
    takes=(GEMMA4,),
    experts={"experts.gate_up_proj": "gate up", "experts.down_proj": "down"},
    router="router.proj.weight",
    constants=lambda _: {
        "mlp.gate_proj.weight": ("small hidden", 0.0),
        "mlp.up_proj.weight": ("small hidden", 0.0),
        "mlp.down_proj.weight": ("hidden small", 0.0),
        "post_feedforward_layernorm_1.weight": ("hidden", 1.0),
        "post_feedforward_layernorm_2.weight": ("hidden", 1.0),
        "router.per_expert_scale": ("experts", 1.0),
    },
    copies={
        "pre_feedforward_layernorm_2.weight": ("pre_feedforward_layernorm.weight", lambda _: 1.0),
        "router.scale": ("pre_feedforward_layernorm.weight", lambda dense: dense["hidden_size"] ** 0.5),
    },
    config=_config,
    unfit=_unfit,
    since="5",
    aliases=("gemma4",),
)
