"""The plan: every tensor of the output, in order, with where it comes from and what is done to it.

Made from headers alone, in moments for models of any size. How large, how many parameters, how much memory: all are
questions to the plan. It checks nothing; that is `check`'s work.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lazymoe.families import Dense, Family
from lazymoe.families.types import LAYER, shape
from lazymoe.header import BITS, FLOATS, Tensor
from lazymoe.recipe import Recipe
from lazymoe.source import Source

CODES = {name: code for code, name in FLOATS.items()}  # torch's name of a dtype to the format's
NF4_BITS = 4.5  # bitsandbytes: four bits a weight and a float32 for each block of 64


@dataclass(frozen=True)
class Piece:
    """A tensor of a source: copied, or else ``(tensor + noise * N(0, 1)) * scale``, in float32, then cast."""

    source: int
    tensor: Tensor
    noise: float = 0.0
    scale: float = 1.0


@dataclass(frozen=True)
class Constant:
    """A tensor of one value, which the mixture's architecture wants and no source has."""

    value: float


@dataclass(frozen=True)
class Computed:
    """A tensor that is worked out before the writing: a router, or weights merged from several sources."""


@dataclass(frozen=True)
class Output:
    """One tensor of the output."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    origin: Piece | Constant | Computed

    @property
    def parameters(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.parameters * BITS[self.dtype] // 8


@dataclass(frozen=True)
class Plan:
    """The output as a whole.

    Attributes:
        family, dense: the records it was made by.
        sources: the base model, then one source for each expert.
        config: the output's config.json.
        outputs: its tensors, in the order in which they are written.
        shared: where the tensors that all experts share come from, see `Recipe.shared_weights`.
        shard_size: the most bytes of tensors in one file.
    """

    family: Family
    dense: Dense
    sources: tuple[Source, ...]
    config: dict[str, Any]
    outputs: tuple[Output, ...]
    shared: str
    shard_size: int

    @property
    def layers(self) -> int:
        return int(self.config["num_hidden_layers"])

    @property
    def experts(self) -> int:
        return len(self.sources) - 1

    @property
    def top_k(self) -> int:
        return int(self.config["num_experts_per_tok"])

    @property
    def hidden_size(self) -> int:
        return int(self.config["hidden_size"])

    @property
    def parameters(self) -> int:
        return sum(o.parameters for o in self.outputs)

    def active(self, top_k: int) -> int:
        """Parameters that a token meets when it is sent to so many experts."""
        return self.parameters - self._expert_parameters * (self.experts - top_k) // self.experts

    @property
    def active_parameters(self) -> int:
        """Parameters that one token meets: all but the experts it isn't sent to."""
        return self.active(self.top_k)

    @property
    def nbytes(self) -> int:
        return sum(o.nbytes for o in self.outputs)

    @property
    def computed_bytes(self) -> int:
        """Disk that a merge takes for a while, for what is computed before it is written."""
        return sum(o.nbytes for o in self.outputs if isinstance(o.origin, Computed))

    @property
    def bytes_16bit(self) -> int:
        """Memory for the weights in 16 bit."""
        return self.parameters * 2

    @property
    def bytes_4bit(self) -> int:
        """Memory for the weights with the layers' matrices, experts included, in bitsandbytes' 4 bit (NF4)."""
        matrices = sum(o.parameters for o in self.outputs if len(o.shape) > 1 and ".layers." in o.name)
        return int(matrices * NF4_BITS / 8) + (self.parameters - matrices) * 2

    @property
    def dense_layer_bytes(self) -> int:
        """One layer of the base model in float32: what the layer-streamed pass holds."""
        prefix = LAYER.format(layer=0)
        return 4 * sum(t.elements for name, t in self.sources[0].tensors.items() if name.startswith(prefix))

    @property
    def _expert_parameters(self) -> int:
        return sum(o.parameters for o in self.outputs if isinstance(o.origin, Piece) and o.origin.source > 0)

    @property
    def shards(self) -> list[tuple[str, list[Output]]]:
        """The files, each with its tensors; a tensor larger than the shard size has a file to itself."""
        groups: list[list[Output]] = [[]]
        size = 0
        for output in self.outputs:
            if groups[-1] and size + output.nbytes > self.shard_size:
                groups.append([])
                size = 0
            groups[-1].append(output)
            size += output.nbytes
        return [(f"model-{i:05}-of-{len(groups):05}.safetensors", group) for i, group in enumerate(groups, 1)]

    def fingerprint(self, **settings: Any) -> str:
        """Tells two merges apart: by what goes in, how it is cut, and the settings given. No weight is read."""
        pieces = [(o.name, o.dtype, repr(o.origin)) for o in self.outputs]
        sources = [source.fingerprint() for source in self.sources]
        text = json.dumps([pieces, sources, self.config, self.shard_size, settings], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def make_plan(
    recipe: Recipe,
    sources: Sequence[Source],
    dense: Dense,
    family: Family,
    shared: str = "base",
    shard_size: int = 4_000_000_000,
) -> Plan:
    """Lay out the output of a recipe.

    Args:
        recipe: what is wanted.
        sources: the base model, then one for each expert, as the recipe lists them. They must fit each other.
        dense, family: the records from `families.find`.
        shared: `base`, `average` or `regmean`.
        shard_size: the most bytes of tensors in one file.
    """
    base = sources[0]
    config = dense.complete(base.config)
    embeddings = base.tensors[next(iter(dense.outer))]
    dtype = CODES[recipe.dtype or FLOATS[embeddings.dtype]]
    top_k = min(recipe.experts_per_token, len(recipe.experts))

    def body(name: str) -> list[Output]:
        tensor = base.tensors.get(name)  # a tied lm_head has no tensor of its own
        if not tensor:
            return []
        return [Output(name, dtype, tensor.shape, Piece(0, tensor) if shared == "base" else Computed())]

    first, *last = dense.outer
    outputs = body(first)
    for layer in range(config["num_hidden_layers"]):
        prefix = LAYER.format(layer=layer)
        for name in dense.layer:
            outputs += body(prefix + name)
        for name, (words, value) in family.constants.items():
            if name not in dense.layer:
                outputs.append(Output(prefix + name, dtype, shape(words, config), Constant(value)))
        outputs.append(Output(prefix + family.router, dtype, (len(recipe.experts), config["hidden_size"]), Computed()))
        for number, expert in enumerate(recipe.experts):
            for name, role in family.experts.items():
                tensor = sources[number + 1].tensors[prefix + dense.ffn[role][0]]
                scale = expert.residual_scale if role == "down" and expert.residual_scale is not None else 1.0
                piece = Piece(number + 1, tensor, expert.noise_scale or 0.0, scale)
                outputs.append(Output(prefix + name.format(expert=number), dtype, tensor.shape, piece))
    for name in last:
        outputs += body(name)

    written = family.config(config, len(recipe.experts), top_k) | {"dtype": FLOATS[dtype], "torch_dtype": FLOATS[dtype]}
    return Plan(family, dense, tuple(sources), written, tuple(outputs), shared, shard_size)
