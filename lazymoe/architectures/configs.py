"""What the config.json of a mixture has in common with that of the dense models it is made of."""

from __future__ import annotations

from typing import Any

from lazymoe.architectures.records import Config

CARRIED = (  # config keys that mean the same in a mixture as in the dense models it is made of
    "attention_dropout", "bos_token_id", "eos_token_id", "head_dim", "hidden_act", "hidden_size", "initializer_range",
    "intermediate_size", "max_position_embeddings", "num_attention_heads", "num_hidden_layers", "num_key_value_heads",
    "pad_token_id", "rms_norm_eps", "sliding_window", "tie_word_embeddings", "use_cache", "vocab_size",
)  # fmt: skip


def carry(dense: Config, *more: str) -> dict[str, Any]:
    """What a mixture's config.json has in common with the dense model's, with more keys where that has them."""
    return {key: dense[key] for key in (*CARRIED, *more) if key in dense} | rope_spellings(dense)


def windowed(dense: Config) -> bool:
    """Whether attention sees a window only, for a complete config."""
    return dense.get("sliding_window") is not None and bool(dense.get("use_sliding_window", True))


def window_misfit(dense: Config) -> str | None:
    """Why a model doesn't fit a family without a sliding window, if it doesn't."""
    return "it has no sliding window, this model one" if windowed(dense) else None


def head_misfit(dense: Config) -> str | None:
    """Why a model doesn't fit a family whose heads share out the hidden size, if it doesn't."""
    own = dense["head_dim"] * dense["num_attention_heads"] != dense["hidden_size"]
    return "it can't have a head_dim of its own" if own else None


def rope_spellings(config: Config) -> dict[str, Any]:
    """Rotary position settings in the spellings of both transformers 4 and 5, from a config in either.

    With only one of them the other version falls back to its defaults without a word.
    """
    settings = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    if any(isinstance(value, dict) for value in settings.values()):  # one for each type of layer: transformers 5 alone
        return {"rope_parameters": settings}
    theta = settings.pop("rope_theta", config["rope_theta"])
    part = settings.pop("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))  # of a head that is turned
    kind = settings["rope_type"] = settings.get("rope_type") or settings.get("type") or "default"
    partial = {} if part == 1 else {"partial_rotary_factor": part}
    return {
        "rope_theta": theta,
        "rope_scaling": None if kind == "default" else settings,
        "rope_parameters": {**settings, "rope_theta": theta, **partial},
        **partial,
    }
