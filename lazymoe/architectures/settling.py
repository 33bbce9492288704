"""What the config.json of a dense model only implies, worked out in place; a settled config stays as it is.

Attention windows stand in several spellings, and some of transformers' classes ignore them: what counts is what these
do, in versions 4.57 and 5 alike.
"""

from __future__ import annotations

from typing import Any

from lazymoe.architectures.records import Config


def no_window(config: dict[str, Any]) -> None:
    """Forget a window: transformers' class has none, whatever a config says."""
    config["sliding_window"] = None
    config.pop("layer_types", None)


def mistral(config: dict[str, Any]) -> None:
    """Settle the window: one for all layers, or for those of a type (Ministral); none where it is as long as a text."""
    window, types = config["sliding_window"], config.get("layer_types") or []
    if window is not None and window >= config["max_position_embeddings"]:
        window = None
    if window is None or (types and "sliding_attention" not in types):
        window = None
    config["sliding_window"] = window
    if window is None or "full_attention" not in types:
        config.pop("layer_types", None)


def mistral_windows(config: Config) -> list[int | None]:
    window = config["sliding_window"]
    types = config.get("layer_types") or ["sliding_attention"] * config["num_hidden_layers"]
    return [window if kind == "sliding_attention" else None for kind in types]


def phi3(config: dict[str, Any]) -> None:
    """Settle the window, one for all layers or none, and old names of stretched rotary positions."""
    config.pop("layer_types", None)
    mistral(config)
    for key in ("rope_scaling", "rope_parameters"):
        settings = config.get(key)
        if settings:
            old = {name for name in ("type", "rope_type") if settings.get(name) in ("su", "yarn")}
            config[key] = settings | dict.fromkeys(old, "longrope")


def qwen(config: dict[str, Any]) -> None:
    """Settle the window where it is on, from one layer on or by type of layer; none where it is as long as a text."""
    window = config["sliding_window"] if config["use_sliding_window"] else None
    if window is not None and window >= config["max_position_embeddings"]:
        window = None
    first = config["max_window_layers"]
    layers = range(config["num_hidden_layers"])
    guessed = ["sliding_attention" if window is not None and i >= first else "full_attention" for i in layers]
    types = config.get("layer_types") or guessed
    if window is None or "sliding_attention" not in types:
        window, types = None, ["full_attention"] * len(layers)
    config["sliding_window"], config["layer_types"] = window, types
    config["use_sliding_window"] = window is not None


def typed_windows(config: Config) -> list[int | None]:
    """List the windows where `layer_types` has them."""
    types = config["layer_types"]
    return [config["sliding_window"] if kind == "sliding_attention" else None for kind in types]


def cohere2(config: dict[str, Any]) -> None:
    every = config.pop("sliding_window_pattern", None) or 4  # how often older configs have a layer without a window
    config["layer_types"] = config.get("layer_types") or [
        "full_attention" if (i + 1) % every == 0 else "sliding_attention" for i in range(config["num_hidden_layers"])
    ]


def lfm2(config: dict[str, Any]) -> None:
    """Work out which layers are which, and the width that its feed-forward networks have in truth."""
    layers = range(config["num_hidden_layers"])
    attention = config.get("full_attn_idxs") or layers
    kinds = ["full_attention" if i in attention else "conv" for i in layers]
    config["layer_types"] = config.get("layer_types") or kinds
    if config["block_auto_adjust_ff_dim"]:
        width, multiple = int(2 * config["intermediate_size"] / 3), config["block_multiple_of"]
        if config["block_ffn_dim_multiplier"] is not None:
            width = -(-int(config["block_ffn_dim_multiplier"] * width) // multiple) * multiple
        config["intermediate_size"] = width
        config["block_auto_adjust_ff_dim"] = False


def gemma4(config: dict[str, Any]) -> None:
    """Work out which layers are which, and the heads of those with full attention, which configs spell in two ways."""
    layers = range(config["num_hidden_layers"])
    kinds = config.get("layer_types") or ["sliding_attention" if (i + 1) % 6 else "full_attention" for i in layers]
    config["layer_types"] = [*kinds[:-1], "full_attention"]  # the last one is, whatever a config says
    config["rope_parameters"] = config["rope_parameters"] or {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1000000.0},
    }
    head, heads = config["global_head_dim"], config["attention_k_eq_v"] and config["num_global_key_value_heads"]
    if config.get("per_layer_config") is not None:
        config["per_layer_config"] = {str(int(i)): own for i, own in config["per_layer_config"].items()}  # "07" is "7"
        own = config["per_layer_config"].get(str(layers[-1]), {})
        head, heads = own.get("head_dim"), own.get("num_key_value_heads")
    config["global_head_dim"] = head or config["head_dim"]
    config["num_global_key_value_heads"] = heads or config["num_key_value_heads"]


def qwen3_5(config: dict[str, Any]) -> None:
    """Work out which layers have linear attention, from how often there is a layer with full attention."""
    every = int(config["full_attention_interval"])
    config["layer_types"] = config.get("layer_types") or [
        "full_attention" if (i + 1) % every == 0 else "linear_attention" for i in range(config["num_hidden_layers"])
    ]


def granite4(config: dict[str, Any]) -> None:
    """Take the width of its feed-forward networks from where it stands, and spell kinds of layers as both transformers
    read them."""
    own = {"linear_attention": "mamba", "full_attention": "attention"}
    kinds = config.get("layer_types") or ["mamba"] * config["num_hidden_layers"]
    config["layer_types"] = [own.get(kind, kind) for kind in kinds]
    if not config["num_local_experts"]:
        config["intermediate_size"] = config["shared_intermediate_size"]


def smollm3(config: dict[str, Any]) -> None:
    """Work out which layers turn nothing by positions, and which have a window: by default the same, if any has."""
    layers, every = range(config["num_hidden_layers"]), int(config["no_rope_layer_interval"])
    given = config.get("no_rope_layers")
    turned = [int((i + 1) % every != 0) if given is None else int(bool(given[i])) for i in layers]
    window = config["sliding_window"] if config["use_sliding_window"] else None
    guessed = ["full_attention" if on or window is None else "sliding_attention" for on in turned]
    config["no_rope_layers"], config["sliding_window"] = turned, window
    config["layer_types"] = guessed if window is None else config.get("layer_types") or guessed
    config["use_sliding_window"] = window is not None
