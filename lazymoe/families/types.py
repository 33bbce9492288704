"""What a family is: two records, one for the dense models it is made of and one for the mixture it becomes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

SMALL = 256  # width of a shared expert that has nothing to do
CARRIED = (  # config keys that mean the same in a mixture as in the dense models it is made of
    "attention_dropout", "bos_token_id", "eos_token_id", "head_dim", "hidden_act", "hidden_size", "initializer_range",
    "intermediate_size", "max_position_embeddings", "num_attention_heads", "num_hidden_layers", "num_key_value_heads",
    "pad_token_id", "rms_norm_eps", "sliding_window", "tie_word_embeddings", "use_cache", "vocab_size",
)  # fmt: skip
# one expert's tensors as most mixtures name them, and the role they come from
MLP_EXPERTS = {f"mlp.experts.{{expert}}.{role}_proj.weight": role for role in ("gate", "up", "down")}
LAYER = "model.layers.{layer}."  # how every architecture here names its layers

Config = Mapping[str, Any]  # the contents of a config.json
Shapes = dict[str, tuple[int, ...]]  # of tensors, by name


@dataclass(frozen=True)
class Dense:
    """A dense architecture on disk.

    Attributes:
        model_type: as config.json has it.
        outer: tensors outside the layers, name to shape.
        layer: tensors of one layer but for its feed-forward network, name to shape.
        ffn: the feed-forward network: role (gate, up, down) to name and shape.
        defaults: config keys that a config.json may leave out.
    """

    model_type: str
    outer: Mapping[str, str]
    layer: Mapping[str, str]
    ffn: Mapping[str, tuple[str, str]]
    defaults: Mapping[str, Any]

    def complete(self, config: Config) -> dict[str, Any]:
        """A config.json with every key that a merge looks at."""
        full = {**self.defaults, **config}
        full["num_key_value_heads"] = full.get("num_key_value_heads") or full["num_attention_heads"]
        full["head_dim"] = full.get("head_dim") or full["hidden_size"] // full["num_attention_heads"]
        return full

    def body_shapes(self, config: Config) -> Shapes:
        """All tensors but those of the feed-forward networks, name to shape, for a complete config."""
        shapes = {name: shape(words, config) for name, words in self.outer.items()}
        return shapes | self._every_layer(dict(self.layer), config)

    def ffn_shapes(self, config: Config) -> Shapes:
        """The tensors of the feed-forward networks, name to shape, for a complete config."""
        return self._every_layer(dict(self.ffn.values()), config)

    def _every_layer(self, tensors: Mapping[str, str], config: Config) -> Shapes:
        layers = [LAYER.format(layer=i) for i in range(config["num_hidden_layers"])]
        return {prefix + name: shape(words, config) for prefix in layers for name, words in tensors.items()}


def shape(words: str, config: Config) -> tuple[int, ...]:
    """A shape in words, such as ``"ffn hidden"``, in numbers, for a complete config."""
    sizes = {
        "vocab": config["vocab_size"],
        "hidden": config["hidden_size"],
        "head": config["head_dim"],
        "heads": config["num_attention_heads"] * config["head_dim"],
        "kv_heads": config["num_key_value_heads"] * config["head_dim"],
        "ffn": config["intermediate_size"],
        "one": 1,
        "small": SMALL,
    }
    return tuple(sizes[word] for word in words.split())


@dataclass(frozen=True)
class Family:
    """A mixture-of-experts architecture, and where its tensors come from.

    All tensors of the dense model but for its feed-forward networks keep their names.

    Attributes:
        name: what a recipe calls it (`architecture:`), which is also its model_type.
        aliases: what mergekit-moe calls it.
        takes: the dense architectures that fit it exactly.
        experts: names of one expert's tensors in a layer, with ``{expert}``, to the role they come from.
        router: name of the router's weight [experts, hidden] in a layer.
        config: makes its config.json from the base model's complete config, the number of experts, and top-k.
        constants: tensors of a layer that it needs and the dense model may lack: name to shape and value.
    """

    name: str
    takes: tuple[Dense, ...]
    experts: Mapping[str, str]
    router: str
    config: Callable[[Config, int, int], dict[str, Any]]
    constants: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()


def carry(dense: Config, *more: str) -> dict[str, Any]:
    """What a mixture's config.json has in common with the dense model's, with more keys where that has them."""
    return {key: dense[key] for key in (*CARRIED, *more) if key in dense} | rope_spellings(dense)


def rope_spellings(config: Config) -> dict[str, Any]:
    """Rotary position settings in the spellings of both transformers 4 and 5, from a config in either.

    With only one of them the other version falls back to its default theta without a word.
    """
    settings = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    theta = settings.pop("rope_theta", config["rope_theta"])
    kind = settings["rope_type"] = settings.get("rope_type") or settings.get("type") or "default"
    return {
        "rope_theta": theta,
        "rope_scaling": None if kind == "default" else settings,
        "rope_parameters": {**settings, "rope_theta": theta},
    }
