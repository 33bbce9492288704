"""Phixtral, a mixture of Phi-2 models.

Exact: with equal experts its logits are the dense model's. The published phixtrals came with modelling code that no
longer runs; this one has its own (templates/modeling_phixtral.py), and transformers' names for Phi's tensors.
"""

from __future__ import annotations

from typing import Any

from lazymoe.architectures.configs import auto_map, carry
from lazymoe.architectures.dense import PHI
from lazymoe.architectures.records import Host, MoE

CODE = "modeling_phixtral.py"
CARRIED = ("embd_pdrop", "layer_norm_eps", "partial_rotary_factor", "qk_layernorm", "resid_pdrop")


def _config(moe: MoE) -> dict[str, Any]:
    return {
        **carry(moe.dense, *CARRIED),
        "architectures": ["PhixtralForCausalLM"],
        "model_type": "phixtral",
        "auto_map": auto_map(CODE, "Phixtral"),
        "num_local_experts": moe.experts,
        "num_experts_per_tok": moe.top_k,
    }


PHIXTRAL = Host(
    name="phixtral",
    takes=(PHI,),
    experts={
        "mlp.experts.{expert}.fc1.weight": "up",
        "mlp.experts.{expert}.fc1.bias": "up_bias",
        "mlp.experts.{expert}.fc2.weight": "down",
        "mlp.experts.{expert}.fc2.bias": "down_bias",
    },
    router="mlp.gate.weight",
    config=_config,
    code=CODE,
)
