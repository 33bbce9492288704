"""What a family is: two records, one for the dense models it is made of and one for the mixture it becomes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

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
        shapes = {name: self._shape(words, config) for name, words in self.outer.items()}
        return shapes | self._every_layer(dict(self.layer), config)

    def ffn_shapes(self, config: Config) -> Shapes:
        """The tensors of the feed-forward networks, name to shape, for a complete config."""
        return self._every_layer(dict(self.ffn.values()), config)

    def _every_layer(self, tensors: Mapping[str, str], config: Config) -> Shapes:
        layers = [LAYER.format(layer=i) for i in range(config["num_hidden_layers"])]
        return {prefix + name: self._shape(words, config) for prefix in layers for name, words in tensors.items()}

    def _shape(self, words: str, config: Config) -> tuple[int, ...]:
        """A shape in words, such as ``"ffn hidden"``, in numbers."""
        sizes = {
            "vocab": config["vocab_size"],
            "hidden": config["hidden_size"],
            "heads": config["num_attention_heads"] * config["head_dim"],
            "kv_heads": config["num_key_value_heads"] * config["head_dim"],
            "ffn": config["intermediate_size"],
        }
        return tuple(sizes[word] for word in words.split())


@dataclass(frozen=True)
class Family:
    """A mixture-of-experts architecture, and where its tensors come from.

    All tensors of the dense model but for its feed-forward networks keep their names.

    Attributes:
        name: what a recipe calls it (`architecture:`), which is also its model_type.
        takes: the dense architectures that fit it exactly.
        experts: names of one expert's tensors in a layer, with ``{expert}``, to the role they come from.
        router: name of the router's weight [experts, hidden] in a layer.
        config: makes its config.json from the base model's complete config, the number of experts, and top-k.
    """

    name: str
    takes: tuple[Dense, ...]
    experts: Mapping[str, str]
    router: str
    config: Callable[[Config, int, int], dict[str, Any]]


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
