"""What the config.json of a mixture has in common with that of the dense models it is made of."""

from __future__ import annotations

from typing import Any

from lazymoe.architectures.records import Config

CARRIED = (  # config keys that mean the same in a mixture as in the dense models it is made of
    "attention_dropout", "bos_token_id", "eos_token_id", "head_dim", "hidden_act", "hidden_size", "initializer_range",
    "intermediate_size", "max_position_embeddings", "num_attention_heads", "num_hidden_layers", "num_key_value_heads",
    "pad_token_id", "rms_norm_eps", "sliding_window", "tie_word_embeddings", "use_cache", "vocab_size",
)  # fmt: skip
GEMMA3 = "gemma3_text"  # the kind that has two rotary settings in transformers 4 too
STRETCHED = ("llama3", "yarn", "longrope")  # kinds of rotary settings for longer texts than it was first trained on


def carry(dense: Config, *more: str) -> dict[str, Any]:
    """Give what a mixture's config.json has in common with the dense model's, rotary settings in both spellings.

    Args:
        dense: the dense model's, complete.
        more: further keys to take where it has them.
    """
    carried = {key: dense[key] for key in (*CARRIED, *more) if key in dense}
    return carried | ({"sliding_window": window(dense)} if "sliding_window" in dense else {}) | rope_spellings(dense)


def auto_map(file: str, name: str) -> dict[str, str]:
    """Give what leads transformers from a mixture's config.json to modelling code that comes with it.

    Args:
        file: the code's.
        name: that its classes begin with.
    """
    module = file.removesuffix(".py")
    return {
        "AutoConfig": f"{module}.{name}Config",
        "AutoModel": f"{module}.{name}Model",
        "AutoModelForCausalLM": f"{module}.{name}ForCausalLM",
    }


def window(dense: Config) -> int | None:
    """Say how far attention looks back in the layers that have a window, in tokens; None if none has.

    Args:
        dense: a complete config.
    """
    return next((size for size in dense["windows"] if size is not None), None)


def window_misfit(dense: Config, one: bool = False) -> str | None:
    """Say why a model doesn't fit a host without a window, or with one for all layers; None if it does.

    Args:
        dense: a complete config.
        one: whether the host can have one for all layers.
    """
    if window(dense) is None or (one and None not in dense["windows"]):
        return None
    if one:
        return "it has one attention window for all layers, this model one in some of them"
    return "it has no sliding window, this model one"


def head_misfit(dense: Config) -> str | None:
    """Say why a model doesn't fit a family whose heads share out the hidden size; None if it does.

    Args:
        dense: its complete config.
    """
    own = dense["head_dim"] * dense["num_attention_heads"] != dense["hidden_size"]
    return "it can't have a head_dim of its own" if own else None


def rotated_part(dense: Config) -> float:
    """Say how much of a head rotary positions turn, 1 for all of it.

    Args:
        dense: a complete config.
    """
    return float(rope_spellings(dense).get("partial_rotary_factor", 1.0))


def rope_spellings(config: Config) -> dict[str, Any]:
    """Spell rotary position settings as both transformers 4 and 5 do, from a complete config in either spelling.

    With only one of them the other version falls back to its defaults without a word.

    Args:
        config: a complete config.
    """
    settings = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    if any(isinstance(value, dict) for value in settings.values()):  # one for each type of layer: transformers 5 alone
        return {"rope_parameters": settings}
    theta = settings.pop("rope_theta", config.get("rope_theta"))
    part = settings.pop("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))  # partial rotary, if < 1
    kind = settings["rope_type"] = settings.get("rope_type") or settings.get("type") or "default"
    if "type" in settings:
        settings["type"] = kind
    partial = {} if part == 1 else {"partial_rotary_factor": part}
    trained = {}  # the context before it was stretched: transformers 4 looks for longrope's beside the settings
    if kind in STRETCHED and config.get("original_max_position_embeddings"):
        settings["original_max_position_embeddings"] = config["original_max_position_embeddings"]
    if kind == "longrope" and "original_max_position_embeddings" in settings:
        trained = {"original_max_position_embeddings": settings["original_max_position_embeddings"]}
    return {
        "rope_theta": theta,
        "rope_scaling": None if kind == "default" else settings,
        "rope_parameters": {**settings, "rope_theta": theta, **partial},
        **partial,
        **trained,
    }


def any_rope(config: Config, kind: str) -> dict[str, Any]:
    """Spell rotary settings of any kind of model as both transformers 4 and 5 do; nothing where there are none.

    Args:
        config: with the settings in either spelling.
        kind: its model_type.
    """
    settings = config.get("rope_parameters")
    if not settings and config.get("rope_theta") is None:
        return {}
    if not settings:  # transformers 4
        settings = rope_spellings(config)["rope_parameters"]
        if kind == GEMMA3:
            local = {"rope_type": "default", "rope_theta": config["rope_local_base_freq"]}
            settings = {"full_attention": settings, "sliding_attention": local}
    if any(isinstance(value, dict) for value in settings.values()):  # for each type of layer
        if kind != GEMMA3:
            return {"rope_parameters": settings}
        main, local = settings["full_attention"], settings["sliding_attention"]
        spelled = rope_spellings({**config, "rope_parameters": main})
        return {**spelled, "rope_parameters": settings, "rope_local_base_freq": local["rope_theta"]}
    spelled = {**rope_spellings({**config, "rope_parameters": settings}), "rope_parameters": settings}
    if settings.get("rope_type") == "longrope":  # transformers 4 takes these three and no other
        factors = {key: settings[key] for key in ("long_factor", "short_factor") if key in settings}
        spelled["rope_scaling"] = {"type": "longrope", **factors}
    return spelled
