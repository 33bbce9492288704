"""The generic host: a mixture of any dense model that transformers knows, where no class of transformers' own fits.

Exact: with equal experts its logits are the dense model's, for it is the dense model's own class, in which each layer
has its feed-forward module several times behind a router. Code that comes with the checkpoint makes it
(templates/modeling_generic_moe.py), so transformers asks for ``trust_remote_code``; vLLM and llama.cpp don't read it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lazymoe.architectures.configs import any_rope, auto_map
from lazymoe.architectures.learned import general_keys, transformers_config
from lazymoe.architectures.records import Config, Dense, Host, MoE

CODE = "modeling_generic_moe.py"


def _doubt(moe: MoE) -> str:
    kind = moe.dense["model_type"]
    return (
        f"no mixture of transformers' own takes a {kind} model as this recipe wants it, so this one comes with code of "
        "its own: transformers needs trust_remote_code=True, vLLM, llama.cpp and Ollama don't read it"
    )


GENERIC = Host(
    name="generic_moe", takes=(), experts={}, router="", config=lambda _: {}, doubt=_doubt, code=CODE,
)  # fmt: skip


def host_for(dense: Dense) -> Host:
    """Give the generic host as it is for a dense architecture.

    Args:
        dense: its record, as `learned.learn` makes it.
    """
    inside = {name.removeprefix(f"{dense.module}."): role for role, (name, _) in dense.ffn.items()}
    return replace(
        GENERIC,
        experts={f"{dense.module}.experts.{{expert}}.{name}": role for name, role in inside.items()},
        router=f"{dense.module}.router.weight",
        shared={f"{dense.module}.shared_experts.{{shared}}.{name}": role for name, role in inside.items()},
        config=lambda moe: _config(moe, dense),
    )


def host_in(config: Config) -> Host | None:
    """Give the generic host as far as a mixture's own config tells it; None if that says nothing usable.

    Args:
        config: the mixture's config.json.
    """
    mixture = config.get("mixture")
    module = mixture.get("feed_forward") if isinstance(mixture, dict) else None
    if not isinstance(module, str):
        return None
    return replace(GENERIC, experts={f"{module}.experts.{{expert}}": "all"}, router=f"{module}.router.weight")


def _config(moe: MoE, dense: Dense) -> dict[str, Any]:
    """Make its config.json: the dense model's as it was given, completed, and what is in place of its networks."""
    made, layers = transformers_config(moe.dense), dense.prefix.removesuffix(".{layer}.")
    general, given = general_keys(made), moe.dense.get("given", moe.dense)
    written = {
        key: value
        for key, value in (made.to_dict() | {k: v for k, v in given.items() if v is not None}).items()
        if key not in general and not key.startswith("_")
    }
    rope = any_rope({**written, "rope_scaling": getattr(made, "rope_scaling", None)}, made.model_type)
    return {
        **written,
        **{key: value for key, value in rope.items() if key != "rope_scaling"},
        "hidden_size": moe.dense["hidden_size"],
        "num_hidden_layers": moe.dense["num_hidden_layers"],
        "architectures": ["GenericMoeForCausalLM"],
        "model_type": GENERIC.name,
        "auto_map": auto_map(CODE, "GenericMoe"),
        "mixture": {
            "dense": made.model_type,
            "layers": layers.partition(".")[2] or layers,  # as the decoder by itself names them
            "feed_forward": dense.module,
            "experts": moe.experts,
            "experts_per_token": moe.top_k,
            "shared_experts": moe.shared,
            # beside the rest transformers 5 would stumble over it, where it looks for a tokenizer's class
            "rope_scaling": rope.get("rope_scaling"),
        },
    }
