"""What a GGUF file says of a mixture beside its tensors and its tokenizer: sizes, rotary positions, how experts are
weighted. A host's keys are data; their values are those of its config.json."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lazymoe.architectures.records import Config, Host
from lazymoe.errors import LazyMoEError, Problem, error
from lazymoe.quantizing.layout import experts_of

if TYPE_CHECKING:
    from gguf import GGUFWriter

SOFTMAX, SIGMOID = 1, 2  # how llama.cpp calls what makes weights of the router's logits
COMMON = {  # llama.cpp's key, below the architecture's name: the key in config.json
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "vocab_size": "vocab_size",
}
NUMBERS = ("scale", "epsilon", "freq_base")  # ends of the keys whose values are no sizes
ROPES = ("default", "linear", "yarn")  # kinds of rotary positions that it computes as transformers does
OWN_YARN = ("attention_factor", "mscale", "mscale_all_dim")  # settings of yarn that it takes otherwise


@dataclass(frozen=True)
class Architecture:
    """One of llama.cpp's architectures.

    Attributes:
        name: llama.cpp's.
        keys: what it has beside `COMMON`, or otherwise: its key to config.json's.
        more: what has to be worked out of a config.json.
        ropes: kinds of rotary positions that it has.
        lacks: why it can't compute a mixture all the same, and what to do; None if it can.
    """

    name: str
    keys: Mapping[str, str] = field(default_factory=dict)
    more: Callable[[Config], Mapping[str, Any]] = lambda _: {}
    ropes: tuple[str, ...] = ROPES
    lacks: Callable[[Config], tuple[str, str] | None] = lambda _: None


def _lfm2(config: Config) -> dict[str, Any]:
    attends = [kind == "full_attention" for kind in config["layer_types"]]
    return {
        "attention.head_count_kv": [config["num_key_value_heads"] * has for has in attends],
        "leading_dense_block_count": 0,
        "expert_gating_func": SIGMOID,
    }


def _cohere2(config: Config) -> dict[str, Any]:
    return {
        "attention.sliding_window_pattern": [kind == "sliding_attention" for kind in config["layer_types"]],
        "rope.scaling.type": "none",
        "leading_dense_block_count": 0,
        "expert_weights_norm": True,  # transformers takes the softmax of the chosen alone, which is the same
        "expert_gating_func": SOFTMAX,
    }


def _no_shared(config: Config) -> tuple[str, str] | None:
    what = "llama.cpp averages a shared expert of cohere2_moe with the others, transformers adds it"
    return (what, "Merge it without shared_experts.") if config["num_shared_experts"] else None


def _some_shared(config: Config) -> tuple[str, str] | None:
    what = "llama.cpp can't run glm4_moe without a shared expert"
    return None if config["n_shared_experts"] else (what, "Merge it with one: 'residual_scale: 0' keeps it silent.")


def _every_few(config: Config) -> tuple[str, str] | None:
    kinds = config["layer_types"]
    every = kinds.index("full_attention") + 1 if "full_attention" in kinds else len(kinds) + 1
    regular = ["full_attention" if (i + 1) % every == 0 else "linear_attention" for i in range(len(kinds))] == kinds
    if regular and every <= len(kinds) and config["linear_key_head_dim"] == config["linear_value_head_dim"]:
        return None
    return "llama.cpp has no such linear attention as this model", "Use models of the shapes that Qwen published."


def _ernie(config: Config) -> dict[str, Any]:
    return {
        "interleave_moe_layer_step": 1,
        "leading_dense_block_count": 0,
        "expert_shared_count": config["moe_num_shared_experts"],
        **({"expert_shared_feed_forward_length": config["moe_intermediate_size"] * config["moe_num_shared_experts"]}
           if config["moe_num_shared_experts"] else {}),
    }  # fmt: skip


def _glm4(config: Config) -> dict[str, Any]:
    return {
        "leading_dense_block_count": 0,
        "expert_gating_func": SIGMOID,
        "expert_weights_norm": True,
        "nextn_predict_layers": 0,
    }


def _hunyuan(config: Config) -> dict[str, Any]:
    return {"expert_shared_feed_forward_length": config["intermediate_size"]}


def _qwen3_5(config: Config) -> dict[str, Any]:
    head = int(_head(config) * _rope(config).get("partial_rotary_factor", 1)) // 2
    sections = _rope(config).get("mrope_section") or [head - 2 * (head // 3), head // 3, head // 3]
    return {
        "expert_shared_feed_forward_length": config["shared_expert_intermediate_size"],
        "ssm.inner_size": config["linear_num_value_heads"] * config["linear_value_head_dim"],
        "full_attention_interval": config["layer_types"].index("full_attention") + 1,
        "rope.dimension_sections": [*sections, 0],
    }


_WIDTH = {"expert_feed_forward_length": "moe_intermediate_size"}
ARCHITECTURES = {
    "mixtral": Architecture("llama", ropes=(*ROPES, "llama3")),
    "qwen3_moe": Architecture("qwen3moe", _WIDTH),
    "granitemoe": Architecture(
        "granitemoe",
        {
            "attention.scale": "attention_multiplier",
            "embedding_scale": "embedding_multiplier",
            "residual_scale": "residual_multiplier",
            "logit_scale": "logits_scaling",
        },
        ropes=(*ROPES, "llama3"),
    ),
    "ernie4_5_moe": Architecture("ernie4_5-moe", _WIDTH, _ernie),
    "lfm2_moe": Architecture(
        "lfm2moe",
        {**_WIDTH, "shortconv.l_cache": "conv_L_cache", "attention.layer_norm_rms_epsilon": "norm_eps"},
        _lfm2,
    ),
    "glm4_moe": Architecture(
        "glm4moe",
        {**_WIDTH, "expert_shared_count": "n_shared_experts", "expert_weights_scale": "routed_scaling_factor",
         "expert_group_count": "n_group", "expert_group_used_count": "topk_group"},
        _glm4,
        lacks=_some_shared,
    ),
    "cohere2_moe": Architecture(
        "cohere2moe",
        {"expert_feed_forward_length": "intermediate_size", "logit_scale": "logit_scale",
         "attention.sliding_window": "sliding_window", "attention.layer_norm_epsilon": "layer_norm_eps"},
        _cohere2,
        ropes=("default",),
        lacks=_no_shared,
    ),
    "qwen3_5_moe_text": Architecture(
        "qwen35moe",
        {**_WIDTH, "ssm.conv_kernel": "linear_conv_kernel_dim", "ssm.state_size": "linear_key_head_dim",
         "ssm.group_count": "linear_num_key_heads", "ssm.time_step_rank": "linear_num_value_heads"},
        _qwen3_5,
        ropes=("default",),
        lacks=_every_few,
    ),
    "hunyuan_v1_moe": Architecture("hunyuan-moe", _WIDTH, _hunyuan),
}  # fmt: skip
INSTEAD = {  # hosts that llama.cpp computes otherwise than transformers does, or not at all, and what would work
    "qwen2_moe": "Merge it with 'architecture: granitemoe', which takes these models too.",
    "deepseek": "Merge it with 'architecture: mixtral', which takes these models too.",
}


def architecture_of(host: Host, config: Config, where: Path) -> Architecture:
    """Find llama.cpp's architecture for a mixture.

    Args:
        host: the mixture's.
        config: its config.json.
        where: its folder.

    Raises:
        OutputError: if llama.cpp has none that gives the same, or hasn't its rotary positions or shared expert.
    """
    found = ARCHITECTURES.get(host.name)
    if found is None:
        what = f"llama.cpp doesn't compute {host.name} as transformers does"
        known = ", ".join(ARCHITECTURES)
        raise error("output.gguf", where, what, INSTEAD.get(host.name, f"It does for: {known}."))
    if lacks := found.lacks(config):
        raise error("output.gguf", where, *lacks)
    rope = _rope(config)
    kind = rope.get("rope_type", "default")
    own = rope.get("truncate") is False or any(rope.get(key) is not None for key in OWN_YARN)
    if kind not in found.ropes or (kind == "yarn" and own):
        what = f"llama.cpp doesn't compute its rotary positions, {kind} with these settings, as transformers does"
        raise error("output.gguf", where, what, f"Use models with plain ones of: {', '.join(found.ropes)}.")
    return found


def computes(host: Host, config: Config) -> bool:
    """Tell whether llama.cpp computes a mixture as transformers does.

    Args:
        host: the mixture's.
        config: its config.json.
    """
    try:
        return bool(architecture_of(host, config, Path()))
    except LazyMoEError:
        return False


def doubts(host: Host, config: Config, where: Path) -> list[Problem]:
    """List what llama.cpp does otherwise than transformers with long texts.

    Args:
        host: the mixture's.
        config: its config.json.
        where: its folder.
    """
    window = config.get("sliding_window")
    if (
        not window
        or window >= config["max_position_embeddings"]
        or host.name == "cohere2_moe"
        or config.get("use_sliding_window") is False
    ):
        return []
    what = f"its attention looks back {window} tokens; llama.cpp, which knows no window here, over all of them"
    return [Problem("output.window", str(where), what, "Up to that length of text they give the same.")]


def add_description(writer: GGUFWriter, architecture: Architecture, host: Host, config: Config) -> None:
    """Add to what a GGUF file says what it says of its model.

    Args:
        writer: of the file.
        architecture, host: of the mixture.
        config: its config.json.
    """
    head, rope = _head(config), _rope(config)
    values = {key: config[own] for key, own in {**COMMON, **architecture.keys}.items() if config.get(own) is not None}
    values |= {
        "attention.key_length": head,
        "attention.value_length": head,
        "rope.dimension_count": int(head * rope.get("partial_rotary_factor", 1)),
    }
    used = next(config[key] for key in ("num_experts_per_tok", "moe_k", "moe_topk") if key in config)
    values |= {"expert_count": experts_of(host, config), "expert_used_count": used}
    for key, value in {**values, **_rope_keys(rope), **architecture.more(config)}.items():
        _add(writer, f"{architecture.name}.{key}", float(value) if key.endswith(NUMBERS) else value)


def rope_factors(config: Config) -> np.ndarray | None:
    """Work out by how much each rotary frequency is stretched, float32 [head / 2]; None where llama.cpp does it itself.

    Args:
        config: the mixture's config.json.
    """
    rope = _rope(config)
    if rope.get("rope_type") != "llama3":
        return None
    head = _head(config)
    waves = 2 * math.pi * rope["rope_theta"] ** (np.arange(0, head, 2, dtype=np.float32) / head)  # tokens of a turn
    turns = rope["original_max_position_embeddings"] / waves  # in the context that it was trained on
    low, high, factor = (float(rope[key]) for key in ("low_freq_factor", "high_freq_factor", "factor"))
    kept = np.clip((turns - low) / (high - low), 0, 1)  # 1: fast turns stay as they are; 0: slow ones are stretched
    stretched: np.ndarray = (1 / ((1 - kept) / factor + kept)).astype(np.float32)
    return stretched


def _head(config: Config) -> int:
    """Give the width of an attention head."""
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _rope(config: Config) -> dict[str, Any]:
    """Read the settings of rotary positions, in transformers 5's spelling."""
    found = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope = {"rope_theta": config.get("rope_theta"), **found}
    if config.get("model_type") == "hunyuan_v1_moe" and rope.get("rope_type") == "dynamic" and rope.get("alpha"):
        head = _head(config)  # it is called dynamic, but stretches the base once for all
        return {"rope_theta": rope["rope_theta"] * rope["alpha"] ** (head / (head - 2)), "rope_type": "default"}
    return rope


def _rope_keys(rope: Mapping[str, Any]) -> dict[str, Any]:
    keys: dict[str, Any] = {"rope.freq_base": rope["rope_theta"]}
    if (kind := rope.get("rope_type")) not in ("linear", "yarn"):
        return keys
    scaling: dict[str, Any] = {"type": kind, "factor": float(rope["factor"])}
    if kind == "yarn":
        scaling["original_context_length"] = rope["original_max_position_embeddings"]
        given = (key for key in ("beta_fast", "beta_slow") if rope.get(key) is not None)
        scaling |= {f"yarn_{key}": float(rope[key]) for key in given}
    return keys | {f"rope.scaling.{key}": value for key, value in scaling.items()}


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    """Add a value, of the type that llama.cpp looks for: it has no signed sizes."""
    from gguf import GGUFValueType

    kinds = {
        bool: GGUFValueType.BOOL,
        int: GGUFValueType.UINT32,
        float: GGUFValueType.FLOAT32,
        str: GGUFValueType.STRING,
    }
    if isinstance(value, list):
        inner = GGUFValueType.BOOL if isinstance(value[0], bool) else GGUFValueType.INT32
        writer.add_key_value(key, value, GGUFValueType.ARRAY, inner)
    else:
        writer.add_key_value(key, value, kinds[type(value)])
