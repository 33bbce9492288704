"""Other spellings of an architecture: the same weights under other names, read as if they had those of transformers'
class.

Of architectures that have a record these are Phi-2's first layout, ``phi-msft``, in which phixtral itself was
published; two that compute as Llama does, InternLM 2 and EXAONE 3; Ministral 8B as transformers 5 calls it; and GLM-4
9B, which is a GLM-4-MoE of dense layers but for the order of rows. Of each only names and shapes are known here; no
code that comes with it runs. Of architectures that are learned, what transformers itself renames (Pythia).
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lazymoe.architectures.configs import rotated_part
from lazymoe.architectures.learned import renamed
from lazymoe.architectures.records import Config
from lazymoe.architectures.registry import dense_of, recorded
from lazymoe.checkpoint.tensors import Picked, TensorInfo

Rows = Mapping[str, Mapping[str, tuple[int, Sequence[int]]]]


@dataclass(frozen=True)
class Dialect:
    """A spelling of an architecture.

    Attributes:
        means: the model_type that it is another spelling of.
        embeddings: what it calls the token embeddings' weight.
        names: what its names have, as a regular expression, to what that is today; in this order.
        config: what it calls a config key, to its name.
        defaults: what it assumes for keys that a config leaves out, where that is something else.
        apart: gives what lies otherwise in its tensors: by the name of a map, the maps whose rows lie in it, each with
            how many rows follow one another in the same order, and which of these are its own.
        settle: works out what a config only implies, in place.
    """

    means: str
    embeddings: str
    names: Mapping[str, str]
    config: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    apart: Callable[[Config], Rows] = lambda _: {}
    settle: Callable[[dict[str, Any]], None] = lambda _: None


def _phi(config: dict[str, Any]) -> None:
    hidden, heads, rotary = (config.get(key) for key in ("hidden_size", "num_attention_heads", "rotary_dim"))
    if isinstance(hidden, int):
        config["intermediate_size"] = config.get("intermediate_size") or 4 * hidden
    if isinstance(hidden, int) and isinstance(heads, int) and isinstance(rotary, int) and heads:
        config["partial_rotary_factor"] = rotary / (hidden // heads)


def _fused(name: str, grouped: bool, config: Config) -> Rows:
    """Tell where queries, keys and values lie in one map: the queries that share a key with it and its value, or else
    all queries first, then all keys, then all values."""
    heads, keys, head = (int(config[key]) for key in ("num_attention_heads", "num_key_value_heads", "head_dim"))
    groups = keys if grouped else 1
    ends = [head * n // groups for n in (0, heads, heads + keys, heads + 2 * keys)]
    return {name: {f"{part}_proj": (ends[-1], range(ends[i], ends[i + 1])) for i, part in enumerate("qkv")}}


def _glm(config: dict[str, Any]) -> None:
    config |= {"first_k_dense_replace": config.get("num_hidden_layers"), "use_qk_norm": False}


def _glm_apart(config: Config) -> Rows:
    """Tell how queries and keys lie: what turns together are neighbours, not the halves of what is turned of a head."""
    head, width = int(config["head_dim"]), int(config["intermediate_size"])
    turned = int(head * rotated_part(config))
    halves = (head, (*range(0, turned, 2), *range(1, turned, 2), *range(turned, head)))
    fused = {"gate_proj": (2 * width, range(width)), "up_proj": (2 * width, range(width, 2 * width))}
    return {"q_proj": {"q_proj": halves}, "k_proj": {"k_proj": halves}, "gate_up_proj": fused}


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
        apart=functools.partial(_fused, "Wqkv", False),
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
        apart=functools.partial(_fused, "wqkv", True),
    ),
    "glm": Dialect(
        "glm4_moe",
        embeddings="model.embed_tokens.weight",
        names={},
        defaults={
            "attention_bias": True,
            "bos_token_id": None,
            "eos_token_id": None,
            "head_dim": 128,
            "max_position_embeddings": 131072,
            "num_key_value_heads": 2,
            "pad_token_id": 151329,
            "partial_rotary_factor": 0.5,
            "rms_norm_eps": 1.5625e-07,
        },
        settle=_glm,
        apart=_glm_apart,
    ),
    "ministral": Dialect("mistral", embeddings="model.embed_tokens.weight", names={}),
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
        found[name] = replace(tensor, name=name)
    return today, found


def take_apart(kind: str, config: Config, tensors: dict[str, TensorInfo]) -> dict[str, TensorInfo]:
    """Give the rows of a checkpoint's maps as they lie today, of tensors that aren't quantized any more.

    Args:
        kind: its own model_type.
        config: today's, completed.
        tensors: all its tensors, by today's names.
    """
    dialect = DIALECTS.get(kind)
    if dialect is None:
        return tensors
    lies, found = dialect.apart(config), dict[str, TensorInfo]()
    for name, tensor in tensors.items():
        before, _, leaf = name.rpartition(".")
        above, _, own = before.rpartition(".")
        for today, (every, rows) in lies.get(own, {}).items():
            new = f"{above}.{today}.{leaf}"
            found[new] = replace(_picked(tensor, every, rows), name=new)
        if own not in lies:
            found[name] = tensor
    return found


def _picked(tensor: TensorInfo, every: int, rows: Sequence[int]) -> TensorInfo:
    """Take some of so many rows, again and again; a tensor of another size stays, and its shape is wrong then."""
    length, *width = tensor.shape
    if not every or length % every:
        return tensor
    shape = (length // every * len(rows), *width)
    if length == every and isinstance(rows, range):  # in one piece
        size = math.prod(width)
        return replace(tensor.part(rows.start * size, len(rows) * size), shape=shape)
    return replace(tensor, shape=shape, reader=Picked(tensor, every, rows), start=0)
