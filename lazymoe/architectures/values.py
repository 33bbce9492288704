"""Whether the values of a config.json can be meant: it is somebody else's input."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

SIZES = ("hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads", "vocab_size")
OPTIONAL_SIZES = ("num_key_value_heads", "head_dim", "sliding_window")
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
NULLABLE = (*OPTIONAL_SIZES, *TOKEN_IDS, "layer_types")  # where null means something else than the default
MOST = {"num_hidden_layers": 10_000}  # far above any model there is; other sizes fit 31 bits
LAYER_TYPES = ("full_attention", "sliding_attention", "linear_attention", "attention", "conv", "mamba")
ROTARY = ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings")  # numbers, beside the settings too
LEADING = (  # keys that no model here needs, that lead transformers to kernels, packages, other files
    "attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation",
    "quantization_config", "transformers_weights",
)  # fmt: skip


def unusable(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> str | None:
    """Name a key of a filled config whose value can't be meant, with the value; None if all can.

    Args:
        config: with every key of the defaults.
        defaults: of the architecture; what type a value must have is what type its default has.
    """
    for key in (*SIZES, *OPTIONAL_SIZES):
        value = config.get(key)
        if not (_is_size(value, MOST.get(key, 2**31)) or (value is None and key in OPTIONAL_SIZES)):
            return _named(key, value)
    heads, groups = config["num_attention_heads"], config.get("num_key_value_heads") or 1
    if heads % groups or config["hidden_size"] < heads:
        return f"{_named('num_attention_heads', heads)} for its other sizes"
    for key, default in defaults.items():
        if not _is_like(config[key], default, key):
            return _named(key, config[key])
    types = None if "layer_types" in defaults else config.get("layer_types")  # of what is learned transformers judged
    known = isinstance(types, list) and all(isinstance(kind, str) and kind in LAYER_TYPES for kind in types)
    if types is not None and not (known and len(types) == config["num_hidden_layers"]):
        return _named("layer_types", types)
    return unusable_rope(config)


def unusable_rope(config: Mapping[str, Any]) -> str | None:
    """Name a key of a config for rotary positions whose value can't be meant, with the value; None if all can.

    Args:
        config: of a dense model or a mixture.
    """
    for key in ROTARY:
        if not _is_optional_number(config.get(key)):
            return _named(key, config[key])
    for key in ("rope_parameters", "rope_scaling"):
        if not _is_rope(config.get(key), nested=key == "rope_parameters"):
            return _named(key, config[key])
    return None


def is_number(value: Any) -> bool:
    """Tell whether a value is a number, and one that a float can hold: JSON has integers of any length.

    Args:
        value: as JSON gives it.
    """
    return type(value) in (int, float) and abs(value) <= sys.float_info.max  # NaN isn't


def _named(key: str, value: Any) -> str:
    shown = repr(value)
    return f"{key} ({shown if len(shown) <= 60 else shown[:59] + '…'})"


def _is_size(value: Any, most: int) -> bool:
    return type(value) is int and 1 <= value < most


def _is_like(value: Any, default: Any, key: str) -> bool:
    """Tell whether a value can stand where the default does."""
    if value is None or key in (*SIZES, *OPTIONAL_SIZES):
        return True  # null was replaced where it can't stand; sizes were looked at
    if key in TOKEN_IDS:
        return all(type(token) is int for token in (value if isinstance(value, list) else [value]))
    if isinstance(default, bool):
        return isinstance(value, bool)
    if isinstance(default, (int, float)):
        return is_number(value) and abs(value) < 2**63
    return not isinstance(default, str) or isinstance(value, str)


def _is_rope(value: Any, nested: bool) -> bool:
    """Tell whether a value can be rotary settings, or settings for each type of layer."""
    if value is None:
        return True
    if not isinstance(value, dict):
        return False
    if nested and value and all(isinstance(own, dict) for own in value.values()):
        return all(_is_rope(own, nested=False) for own in value.values())
    return all(_is_optional_number(value.get(key)) for key in (*ROTARY, "factor")) and all(
        is_number(entry)
        or isinstance(entry, (str, bool, type(None)))
        or (isinstance(entry, list) and all(is_number(n) for n in entry))
        for entry in value.values()
    )


def _is_optional_number(value: Any) -> bool:
    return value is None or is_number(value)
