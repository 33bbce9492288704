"""What an architecture is here: a record of data, `Dense` for the models that go in, `Host` for the mixture that they
become."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lazymoe.architectures.values import NULLABLE, unusable

SMALL = 256  # width of a shared expert that has nothing to do
# one expert's tensors as most mixtures name them, and the role they come from
MLP_EXPERTS = {f"mlp.experts.{{expert}}.{role}_proj.weight": role for role in ("gate", "up", "down")}
SHARED_EXPERTS = {f"mlp.shared_experts.{role}_proj.weight": role for role in ("gate", "up", "down")}
LAYER = "model.layers.{layer}."  # how nearly every architecture names its layers

Config = Mapping[str, Any]  # the contents of a config.json
Shapes = dict[str, tuple[int, ...]]  # of tensors, by name


@dataclass(frozen=True)
class Place:
    """Where a tensor lies: in one of this name, from this element on, with this shape."""

    name: str
    start: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Dense:
    """A dense architecture on disk. A tensor whose shape comes to no elements isn't there.

    Attributes:
        model_type: as config.json has it.
        outer: tensors outside the layers, name to shape.
        layer: tensors of one layer but for its feed-forward network, name to shape.
        ffn: the feed-forward network: role (gate, up, down ...) to name and shape. Roles that begin with "down" add up
            to its output.
        defaults: config keys that a config.json may leave out.
        kinds: further tensors of layers of some kind, by what `layer_types` calls it.
        stacked: tensors that lie one below the other in a larger one, in the order given: name to the larger one's.
        renamed: what older versions call a config key, to its name.
        settle: works out what a config only implies, in place.
        prefix: how its layers are named.
        head: name of the output head's weight.
        each: in place of ``layer`` and ``kinds`` the tensors of each layer by its number, where no word tells them.
        adds: whether a layer adds what its feed-forward network gives as it is, or scaled, with no norm in between.
        maps: which tensors of the layers are weights of linear maps; None for all that are matrices.
        turned: which tensors of a layer are such weights that lie as ``[in, out]``, where others are ``[out, in]``.
        computes: the architecture whose layers it has, where it is another's but for what a config tells.
        gives: how long a tuple transformers' layers give; 0 for the states by themselves.
        windows: how far attention looks back in each layer, in tokens; None where it sees everything.
    """

    model_type: str
    outer: Mapping[str, str]
    layer: Mapping[str, str]
    ffn: Mapping[str, tuple[str, str]]
    defaults: Mapping[str, Any]
    kinds: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    stacked: Mapping[str, str] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    settle: Callable[[dict[str, Any]], None] | None = None
    windows: Callable[[Config], list[int | None]] = lambda config: [None] * int(config["num_hidden_layers"])
    prefix: str = LAYER
    head: str = "lm_head.weight"
    each: tuple[Mapping[str, str], ...] = ()
    adds: bool = True
    maps: frozenset[str] | None = None
    turned: frozenset[str] = frozenset()
    gives: int = 0
    computes: str = ""

    def is_like(self, other: Dense | None) -> bool:
        """Tell whether experts of another architecture fit, if their sizes do.

        Args:
            other: its record; None fits nowhere.
        """
        kinds = {d.computes or d.model_type for d in (self, other) if d}
        return other is not None and len(kinds) == 1

    @property
    def embeddings(self) -> str:
        """Name of the token embeddings' weight."""
        return next(iter(self.outer))

    @property
    def module(self) -> str:
        """Name of a layer's feed-forward module, as transformers has it."""
        name, _ = next(iter(self.ffn.values()))
        return name.partition(".")[0]

    def head_in(self, names: Container[str]) -> str:
        """Name the weight of a model's head: its own, or the embeddings where these are tied.

        Args:
            names: of the model's tensors.
        """
        return self.head if self.head in names else self.embeddings

    def within(self, layer: int) -> str:
        """Give what is before the names of a layer's tensors.

        Args:
            layer: its number, from 0.
        """
        return self.prefix.format(layer=layer)

    def layer_of(self, name: str) -> int | None:
        """Tell which layer a tensor is in, by its full name; None if it is outside of them.

        Args:
            name: as in a dense model, or in a mixture of them.
        """
        before, _ = self.prefix.split("{layer}")
        number = name[len(before) :].partition(".")[0] if name.startswith(before) else ""
        return int(number) if number.isdecimal() else None

    def fill(self, config: Config) -> dict[str, Any]:
        """Fill in the keys of a config.json that it may leave out or call otherwise; nothing is computed.

        Args:
            config: as the checkpoint has it.
        """
        named = {self.renamed.get(key, key): value for key, value in config.items()}
        return {**self.defaults, **{k: v for k, v in named.items() if v is not None or k in NULLABLE}}

    def complete(self, config: Config) -> dict[str, Any]:
        """Complete a config.json: every key that a merge looks at, by today's name, and the key ``windows``.

        A complete config comes back as it is.

        Args:
            config: as the checkpoint has it.

        Raises:
            ValueError: if a value can't be meant; the message names it.
        """
        full = self.fill(config)
        if reason := unusable(full, self.defaults):
            raise ValueError(reason)
        full["num_key_value_heads"] = full.get("num_key_value_heads") or full["num_attention_heads"]
        full["head_dim"] = full.get("head_dim") or full["hidden_size"] // full["num_attention_heads"]
        if self.settle:
            try:
                self.settle(full)
            except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as e:
                raise ValueError(f"settings of its layers ({e})") from None
        full["windows"] = self.windows(full)
        return full

    def backbone(self, layer: int, config: Config) -> dict[str, Place]:
        """List the tensors of a layer but for its feed-forward network, by the names that a mixture gives them.

        Args:
            layer: its number, from 0.
            config: a complete config.
        """
        if self.each:
            return self._places(self.each[layer], config)
        kind = (config.get("layer_types") or {layer: ""})[layer]
        return self._places({**self.layer, **self.kinds.get(kind, {})}, config)

    def roles(self, config: Config) -> dict[str, Place]:
        """List the tensors of a layer's feed-forward network, by role.

        Args:
            config: a complete config.
        """
        places = self._places(dict(self.ffn.values()), config)
        return {role: places[name] for role, (name, _) in self.ffn.items()}

    def outer_shapes(self, config: Config) -> Shapes:
        """List the tensors outside the layers, name to shape.

        Args:
            config: a complete config.
        """
        return {name: shape(words, config) for name, words in self.outer.items()}

    def layer_shapes(self, layer: int, config: Config) -> Shapes:
        """List the tensors of a layer but for its feed-forward network, as they lie on disk, by name.

        Args:
            layer: its number, from 0.
            config: a complete config.
        """
        return _whole(self.backbone(layer, config))

    def ffn_shapes(self, config: Config) -> Shapes:
        """List the tensors of a layer's feed-forward network, as they lie on disk, by name.

        Args:
            config: a complete config.
        """
        return _whole(self.roles(config))

    def linear(self, layer: int, config: Config) -> list[str]:
        """List the weights of a layer's linear maps outside its feed-forward network, as they lie on disk, by name.

        Args:
            layer: its number, from 0.
            config: a complete config.
        """
        shapes = self.layer_shapes(layer, config)
        return [n for n, size in shapes.items() if (len(size) == 2 if self.maps is None else n in self.maps)]

    def is_turned(self, name: str) -> bool:
        """Tell whether a tensor is the weight of a linear map that lies as ``[in, out]``.

        Args:
            name: its full name, as in a dense model.
        """
        layer = self.layer_of(name)
        return layer is not None and name.removeprefix(self.within(layer)) in self.turned

    def all_shapes(self, config: Config) -> tuple[Shapes, Shapes]:
        """List all tensors of a model, full names to shape: those of its backbone, those of its feed-forward networks.

        Args:
            config: a complete config.
        """
        backbone, ffn = self.outer_shapes(config), Shapes()
        for layer in range(config["num_hidden_layers"]):
            prefix = self.within(layer)
            backbone |= {prefix + name: of for name, of in self.layer_shapes(layer, config).items()}
            ffn |= {prefix + name: of for name, of in self.ffn_shapes(config).items()}
        return backbone, ffn

    def _places(self, tensors: Mapping[str, str], config: Config) -> dict[str, Place]:
        filled: dict[str, int] = {}  # elements taken so far in each tensor on disk
        places = {}
        for name, words in tensors.items():
            own, whole = shape(words, config), self.stacked.get(name, name)
            if 0 not in own:
                places[name] = Place(whole, filled.get(whole, 0), own)
                filled[whole] = places[name].start + math.prod(own)
        return places


def _whole(places: Mapping[str, Place]) -> Shapes:
    """Work out what lies on disk, from where the parts of it lie: they are stacked by their rows."""
    shapes: Shapes = {}
    for place in places.values():
        above = shapes.get(place.name, (0,))[0] if place.shape else 0
        shapes[place.name] = (above + place.shape[0], *place.shape[1:]) if place.shape else ()
    return shapes


def shape(words: str, config: Config) -> tuple[int, ...]:
    """Put a shape in words, such as ``"ffn hidden"``, into numbers.

    Args:
        words: the size of each dimension: a word of this function, a key of the config, a number, or products and sums
            of these, such as ``2*hidden+heads``.
        config: a complete config, with the number of ``experts`` where that is one of the words.
    """
    sizes = {
        "vocab": config["vocab_size"],
        "hidden": config["hidden_size"],
        "head": config["head_dim"],
        "heads": config["num_attention_heads"] * config["head_dim"],
        "kv_heads": config["num_key_value_heads"] * config["head_dim"],
        "global_keys": (config.get("num_global_key_value_heads") or 0) * (config.get("global_head_dim") or 0),
        "ffn": config["intermediate_size"],
        "one": 1,
        "small": SMALL,
    }
    sizes["global_values"] = 0 if config.get("attention_k_eq_v") else sizes["global_keys"]

    def size(word: str) -> int:
        return int(word) if word.isdigit() else int(sizes[word] if word in sizes else config[word])

    return tuple(sum(math.prod(map(size, part.split("*"))) for part in word.split("+")) for word in words.split())


@dataclass(frozen=True)
class MoE:
    """The mixture that a recipe asks for, as far as a host's config depends on it.

    Attributes:
        dense: the base model's complete config.
        experts: how many there are, without shared ones.
        top_k: how many of them each token passes through.
        shared: how many experts every token passes through beside these.
    """

    dense: Config
    experts: int
    top_k: int
    shared: int


@dataclass(frozen=True)
class Host:
    """A mixture-of-experts architecture, and where its tensors come from.

    All tensors of the dense model but for its feed-forward networks keep their names.

    Attributes:
        name: what a recipe calls it (`architecture:`), which is also its model_type.
        aliases: what else a recipe may call it, such as mergekit-moe's name.
        takes: the dense architectures that fit it exactly.
        experts: tensors of a layer's experts, name to the roles that lie in it, one below the other. With ``{expert}``
            in its name each expert has one; without, the experts lie in it one after the other.
        router: name of the router's weight [experts, hidden] in a layer.
        config: makes its config.json.
        constants: tensors of a layer that it needs and a dense model of this config doesn't have: name to shape and
            value. Those of a shared expert are left out where a recipe has one.
        copies: tensors of a layer that are one of the dense model's under another name: name to that one's, and what it
            is multiplied by.
        shared: tensors of a layer's shared expert, name to the roles that lie in it; empty if it can't have one. With
            ``{shared}`` in their names there can be several.
        shared_gate: name of the weight [1, hidden] that tells how much of the shared expert a token gets.
        scores: what makes the chosen experts' weights of the router's logits, before they are scaled to sum 1.
        unfit: why a dense model of a family that it takes doesn't fit after all; None if it does.
        doubt: what a user should know of such a mixture, though it is exact; None if nothing.
        code: file in templates/ with its model, where transformers has none.
        vllm: whether vLLM's code asks for these names of tensors, which isn't run in the tests. What llama.cpp computes
            as transformers does, `quantizing` knows.
        since: the first transformers that has it (or can run its code), of those that LazyMoE's results are tested in.
    """

    name: str
    takes: tuple[Dense, ...]
    experts: Mapping[str, str]
    router: str
    config: Callable[[MoE], dict[str, Any]]
    constants: Callable[[Config], Mapping[str, tuple[str, float]]] = lambda _: {}
    copies: Mapping[str, tuple[str, Callable[[Config], float]]] = field(default_factory=dict)
    shared: Mapping[str, str] = field(default_factory=dict)
    shared_gate: str | None = None
    scores: Literal["softmax", "sigmoid"] = "softmax"
    unfit: Callable[[MoE], str | None] = lambda _: None
    doubt: Callable[[MoE], str | None] = lambda _: None
    code: str | None = None
    vllm: bool = False
    since: Literal["4.57", "5"] = "4.57"
    aliases: tuple[str, ...] = ()

    @property
    def modules(self) -> frozenset[str]:
        """Names of the modules in a layer that hold its experts, on disk and in transformers 5."""
        return frozenset({"mlp", *(name.partition(".")[0] for name in self.experts)})
