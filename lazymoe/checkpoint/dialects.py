"""Other spellings of an architecture: the same weights under other names, read as if they had those of transformers'
class.

Of architectures that have a record only Phi-2's first layout, ``phi-msft``, from before transformers had a class for
it; phixtral itself was published in it. Its queries, keys and values lie one below the other in one matrix, so nothing
has to be moved. Of those that are learned, what transformers itself renames (EXAONE 3.5, Pythia).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lazymoe.architectures.learned import renamed
from lazymoe.architectures.registry import dense_of, recorded
from lazymoe.checkpoint.tensors import TensorInfo

CONFIG = {
    "activation_function": "hidden_act",
    "layer_norm_epsilon": "layer_norm_eps",
    "n_embd": "hidden_size",
    "n_head": "num_attention_heads",
    "n_head_kv": "num_key_value_heads",
    "n_inner": "intermediate_size",
    "n_layer": "num_hidden_layers",
    "n_positions": "max_position_embeddings",
}
NAMES = {  # in this order
    r"^transformer\.embd\.wte\.": "model.embed_tokens.",
    r"^lm_head\.linear\.": "lm_head.",
    r"^lm_head\.ln\.": "model.final_layernorm.",
    r"^transformer\.h\.": "model.layers.",
    r"\.ln\.": ".input_layernorm.",
    r"\.mixer\.out_proj\.": ".self_attn.dense.",
    r"\.mixer\.": ".self_attn.",
}


def translate(config: dict[str, Any], tensors: dict[str, TensorInfo]) -> tuple[dict[str, Any], dict[str, TensorInfo]]:
    """Put a checkpoint's config and tensors into today's spelling; they stay as they are if they have it.

    Args:
        config: its config.json.
        tensors: all its tensors, by name.
    """
    if config.get("model_type") != "phi-msft":
        if recorded(config) or not dense_of(config):
            return config, tensors
        return config, {new: replace(tensors[name], name=new) for name, new in renamed(config, tensors).items()}
    today = {CONFIG.get(key, key): value for key, value in config.items() if key != "auto_map"}
    hidden, heads, rotary = (today.get(key) for key in ("hidden_size", "num_attention_heads", "rotary_dim"))
    if isinstance(hidden, int):
        today["intermediate_size"] = today.get("intermediate_size") or 4 * hidden
    if isinstance(hidden, int) and isinstance(heads, int) and isinstance(rotary, int) and heads:
        today["partial_rotary_factor"] = rotary / (hidden // heads)
    return today | {"model_type": "phi"}, _renamed(tensors)


def _renamed(tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    found = {}
    for name, tensor in tensors.items():
        for old, new in NAMES.items():
            name = re.sub(old, new, name)
        if ".Wqkv." not in name:
            found[name] = replace(tensor, name=name)
            continue
        third = (tensor.shape[0] // 3, *tensor.shape[1:])
        for i, part in enumerate("qkv"):
            own = name.replace("Wqkv", f"{part}_proj")
            piece = tensor.part(i * tensor.elements // 3, tensor.elements // 3)
            found[own] = replace(piece, name=own, shape=third)
    return found
