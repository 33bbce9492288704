"""Other spellings of an architecture: the same weights under other names, read as if they had those of transformers'
class.

Of architectures that have a record these are Phi-2's first layout, ``phi-msft``, in which phixtral itself was
published, and two that compute as Llama does: InternLM 2 and EXAONE 3. Of each only names and shapes are known here; no
code that comes with it runs. Of architectures that are learned, what transformers itself renames (Pythia).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lazymoe.architectures.learned import renamed
from lazymoe.architectures.registry import dense_of, recorded
from lazymoe.checkpoint.tensors import Picked, TensorInfo


@dataclass(frozen=True)
class Dialect:
    """A spelling of an architecture.

    Attributes:
        means: the model_type that it is another spelling of.
        embeddings: what it calls the token embeddings' weight.
        names: what its names have, as a regular expression, to what that is today; in this order.
        config: what it calls a config key, to its name.
        defaults: what it assumes for keys that a config leaves out, where that is something else.
        fused: what its names have where queries, keys and values lie in one tensor.
        grouped: whether the queries that share a key lie there with it and its value; else all queries come first, then
            all keys, then all values.
        settle: works out what a config only implies, in place.
    """

    means: str
    embeddings: str
    names: Mapping[str, str]
    config: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    fused: str = ""
    grouped: bool = False
    settle: Callable[[dict[str, Any]], None] = lambda _: None


def _phi(config: dict[str, Any]) -> None:
    hidden, heads, rotary = (config.get(key) for key in ("hidden_size", "num_attention_heads", "rotary_dim"))
    if isinstance(hidden, int):
        config["intermediate_size"] = config.get("intermediate_size") or 4 * hidden
    if isinstance(hidden, int) and isinstance(heads, int) and isinstance(rotary, int) and heads:
        config["partial_rotary_factor"] = rotary / (hidden // heads)


DIALECTS = {
    "phi-msft": Dialect(
        "phi",
        embeddings="transformer.embd.wte.weight",
        names={
            r"^transformer\.embd\.wte\.": "model.embed_tokens.",
            r"^lm_head\.linear\.": "lm_head.",
            r"^lm_head\.ln\.": "model.final_layernorm.",
            r"^transformer\.h\.": "model.layers.",
            r"\.ln\.": ".input_layernorm.",
            r"\.mixer\.out_proj\.": ".self_attn.dense.",
            r"\.mixer\.": ".self_attn.",
        },
        config={
            "activation_function": "hidden_act",
            "layer_norm_epsilon": "layer_norm_eps",
            "n_embd": "hidden_size",
            "n_head": "num_attention_heads",
            "n_head_kv": "num_key_value_heads",
            "n_inner": "intermediate_size",
            "n_layer": "num_hidden_layers",
            "n_positions": "max_position_embeddings",
        },
        fused="Wqkv",
        settle=_phi,
    ),
    "internlm2": Dialect(
        "llama",
        embeddings="model.tok_embeddings.weight",
        names={
            r"^model\.tok_embeddings\.": "model.embed_tokens.",
            r"^output\.": "lm_head.",
            r"\.attention\.wo\.": ".self_attn.o_proj.",
            r"\.attention\.": ".self_attn.",
            r"\.attention_norm\.": ".input_layernorm.",
            r"\.ffn_norm\.": ".post_attention_layernorm.",
            r"\.feed_forward\.w1\.": ".mlp.gate_proj.",
            r"\.feed_forward\.w2\.": ".mlp.down_proj.",
            r"\.feed_forward\.w3\.": ".mlp.up_proj.",
        },
        defaults={"pad_token_id": 0},
        fused="wqkv",
        grouped=True,
    ),
    "exaone": Dialect(
        "llama",
        embeddings="transformer.wte.weight",
        names={
            r"^transformer\.wte\.": "model.embed_tokens.",
            r"^transformer\.ln_f\.": "model.norm.",
            r"^transformer\.h\.": "model.layers.",
            r"\.attn\.attention\.out_proj\.": ".self_attn.o_proj.",
            r"\.attn\.attention\.": ".self_attn.",
            r"\.ln_1\.": ".input_layernorm.",
            r"\.ln_2\.": ".post_attention_layernorm.",
            r"\.mlp\.c_fc_0\.": ".mlp.gate_proj.",
            r"\.mlp\.c_fc_1\.": ".mlp.up_proj.",
            r"\.mlp\.c_proj\.": ".mlp.down_proj.",
        },
        config={
            "activation_function": "hidden_act",
            "layer_norm_epsilon": "rms_norm_eps",
            "num_layers": "num_hidden_layers",
        },
        defaults={"bos_token_id": 0, "pad_token_id": 0, "rms_norm_eps": 1e-5},
    ),
}


def translate(config: dict[str, Any], tensors: dict[str, TensorInfo]) -> tuple[dict[str, Any], dict[str, TensorInfo]]:
    """Put a checkpoint's config and tensors into today's spelling; they stay as they are if they have it.

    Args:
        config: its config.json.
        tensors: all its tensors, by name.
    """
    dialect = DIALECTS.get(str(config.get("model_type")))
    if dialect is None:
        if recorded(config) or not dense_of(config):
            return config, tensors
        return config, {new: replace(tensors[name], name=new) for name, new in renamed(config, tensors).items()}
    today = {dialect.config.get(key, key): value for key, value in config.items() if key != "auto_map"}
    today = {**dialect.defaults, **today, "model_type": dialect.means}
    dialect.settle(today)
    found = {}
    for name, tensor in tensors.items():
        for old, new in dialect.names.items():
            name = re.sub(old, new, name)
        fused = bool(dialect.fused) and f".{dialect.fused}." in name
        for part, own in (_split(dialect, tensor, today) if fused else {"": tensor}).items():
            new = name.replace(dialect.fused, f"{part}_proj") if fused else name
            found[new] = replace(own, name=new)
    return today, found


def _split(dialect: Dialect, tensor: TensorInfo, config: Mapping[str, Any]) -> dict[str, TensorInfo]:
    """Take queries, keys and values apart; nothing if the tensor isn't of the size that the config says."""
    try:
        heads = int(config["num_attention_heads"])
        keys = int(config.get("num_key_value_heads") or heads)
        groups = keys if dialect.grouped else 1
        head, every = tensor.shape[0] // (heads + 2 * keys), tensor.shape[0] // groups  # rows
    except (TypeError, ValueError, LookupError, ArithmeticError):
        return {}
    found, at, width = {}, 0, math.prod(tensor.shape[1:])
    for part, count in (("q", heads), ("k", keys), ("v", keys)):
        rows = range(at, at + count // groups * head)
        piece = tensor.part(at * width, len(rows) * width)
        if groups > 1:
            piece = replace(tensor, reader=Picked(tensor, every, rows), start=0)
        found[part] = replace(piece, shape=(groups * len(rows), *tensor.shape[1:]))
        at = rows.stop
    return found if at == every else {}
