"""The plan: every tensor of the output, in order, with where it comes from and what is done to it.

Made from headers alone, in moments for models of any size. How large, how many parameters, how much memory: all are
questions to the plan. It checks nothing; that is `check`'s work.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from lazymoe.architectures.records import Dense, Host
from lazymoe.checkpoint.source import Source
from lazymoe.checkpoint.tensors import BITS, TensorInfo
from lazymoe.recipe.reference import Reference
from lazymoe.recipe.schema import SharedWeights

WORK = ".lazymoe"  # folder in the output for what is half-made
SHARD_SIZE = 4_000_000_000  # bytes
BLOCK_4, BLOCK_8 = 32, 256  # weights that have a scale in common, in 4 bit (half of what is usual) and in 8
BITS_8 = 8 + 32 / BLOCK_8  # of a weight, with its part of a float32
BITS_4 = 4 + BITS_8 / BLOCK_4  # and of a scale in 8 bit


Item = TypeVar("Item")


@dataclass(frozen=True)
class Piece:
    """Elements of a source's tensor: copied, or else ``(tensor + noise * N(0, 1)) * scale``, in float32, then cast.

    Attributes:
        source: number of the source in the plan.
        tensor: the tensor, as it lies in the source.
        start, elements: which of its elements.
    """

    source: int
    tensor: TensorInfo
    start: int
    elements: int
    noise: float = 0.0
    scale: float = 1.0

    def copied(self, dtype: str) -> bool:
        """Tell whether its bytes can be taken as they lie, for an output of this dtype.

        Args:
            dtype: the format's name of the dtype, such as ``BF16``.
        """
        return (self.tensor.dtype, self.noise, self.scale) == (dtype, 0, 1) and self.tensor.span() is not None


@dataclass(frozen=True)
class Constant:
    """Elements of one value, which the mixture's architecture wants and no source has."""

    value: float
    elements: int


@dataclass(frozen=True)
class Computed:
    """Elements of a tensor that is worked out before the writing: a router, weights merged from several sources, or an
    expert's that are corrected.

    Attributes:
        name: of the tensor; of merged and corrected weights the name that they have in the sources.
        start, elements: which of its elements.
        scale: what they are multiplied by when they are written.
        source: number of the source that they stand for in the plan: merged weights for the base model's,
            corrected ones for that expert's.
    """

    name: str
    start: int
    elements: int
    scale: float = 1.0
    source: int = 0


Part = Piece | Constant | Computed


@dataclass(frozen=True)
class Output:
    """One tensor of the output, and the parts that lie in it, one after the other."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]

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
        host, dense: the records it was made by.
        sources: the base model, then one source for each expert, then for each shared expert.
        experts: how many there are, without shared ones.
        top_k: how many of them each token passes through.
        config: the output's config.json.
        outputs: its tensors, in the order in which they are written.
        shared: where the tensors that all experts share come from, see `Recipe.shared_weights`.
        shard_size: the most bytes of tensors in one file.
        weighted: whether it is to be known how much columns count when a tensor is written, to quantize it.
    """

    host: Host
    dense: Dense
    sources: tuple[Source, ...]
    experts: int
    top_k: int
    config: dict[str, Any]
    outputs: tuple[Output, ...]
    shared: SharedWeights
    shard_size: int
    weighted: bool = False

    @property
    def architecture(self) -> str:
        """transformers' name of the output's class."""
        return str(self.config["architectures"][0])

    @property
    def layers(self) -> int:
        return int(self.config["num_hidden_layers"])

    @property
    def references(self) -> list[Reference]:
        """What names the sources, by number."""
        return [source.reference for source in self.sources]

    @property
    def expert_sources(self) -> tuple[Source, ...]:
        return self.sources[1 : 1 + self.experts]

    @property
    def shared_sources(self) -> tuple[Source, ...]:
        """What shared weights are made of: the base model, and the experts if they are merged."""
        return self.sources[: 1 + self.experts if self.shared != "base" else 1]

    @property
    def shared_experts(self) -> int:
        """How many experts every token passes through beside these."""
        return len(self.sources) - 1 - self.experts

    @functools.cached_property
    def corrected(self) -> tuple[int, ...]:
        """Numbers of the experts, from 0, whose down projections are computed."""
        parts = (part for o in self.outputs for part in o.parts if isinstance(part, Computed))
        return tuple(sorted({part.source - 1 for part in parts if part.source}))

    @property
    def gates(self) -> int:
        """Rows that are computed for each layer: one for each expert, then that of the shared expert's gate if any."""
        return self.experts + bool(self.shared_experts and self.host.shared_gate)

    @property
    def hidden_size(self) -> int:
        return int(self.config["hidden_size"])

    @property
    def parameters(self) -> int:
        return sum(o.parameters for o in self.outputs)

    def active(self, top_k: int) -> int:
        """Count the parameters that a token meets when it is sent to so many experts.

        Args:
            top_k: how many experts, without shared ones.
        """
        return self.parameters - self._expert_parameters * (self.experts - top_k) // self.experts

    @property
    def active_parameters(self) -> int:
        """Parameters that one token meets: all but the experts it isn't sent to."""
        return self.active(self.top_k)

    @property
    def nbytes(self) -> int:
        return sum(o.nbytes for o in self.outputs)

    @property
    def bytes_16bit(self) -> int:
        """Memory for the weights in 16 bit."""
        return self.parameters * 2

    @property
    def bytes_4bit(self) -> int:
        """Memory for the weights as `lazymoe.load` has them in 4 bit: attention in 8, what isn't in layers in 16."""
        bits = 0.0
        for o in self.outputs:
            _, _, inside = o.name.partition(".layers.")
            module = inside.partition(".")[2].partition(".")[0]
            packed = BITS_4 if module in self.host.modules else BITS_8
            bits += o.parameters * (packed if inside and len(o.shape) > 1 else 16)
        return int(bits / 8)

    @property
    def dense_layer_bytes(self) -> int:
        """One layer of the base model in float32: what the layer-streamed pass holds."""
        prefix = self.dense.within(0)
        return 4 * sum(t.elements for name, t in self.sources[0].tensors.items() if name.startswith(prefix))

    @property
    def _expert_parameters(self) -> int:
        parts = (part for o in self.outputs for part in o.parts if not isinstance(part, Constant))
        return sum(part.elements for part in parts if 0 < part.source <= self.experts)

    @property
    def shards(self) -> list[tuple[str, list[Output]]]:
        """The files, each with its tensors; a tensor larger than the shard size has a file to itself."""
        groups = cut(self.outputs, [output.nbytes for output in self.outputs], self.shard_size)
        return [(f"model-{i:05}-of-{len(groups):05}.safetensors", group) for i, group in enumerate(groups, 1)]

    def to_dict(self) -> dict[str, Any]:
        """Give its figures by name, for programs: numbers of parameters, and sizes in bytes."""
        return {
            "architecture": self.architecture,
            "layers": self.layers,
            "experts": self.experts,
            "experts_per_token": self.top_k,
            "parameters": self.parameters,
            "active_parameters": self.active_parameters,
            "dtype": self.config["dtype"],
            "output_bytes": self.nbytes,
            "run_memory_16bit_bytes": self.bytes_16bit,
            "run_memory_4bit_bytes": self.bytes_4bit,
        }

    @property
    def largest_file(self) -> int:
        """Bytes of the largest file of weights."""
        return max(sum(o.nbytes for o in outputs) for _, outputs in self.shards)

    def fingerprint(self, **settings: Any) -> str:
        """Tell two merges apart by a hash of what goes in, how it is cut, and the settings given. No weight is read.

        Args:
            settings: what else tells them apart, as JSON takes it.

        Returns:
            The hash, SHA-256, in hexadecimal.
        """
        pieces = [(o.name, o.dtype, repr(o.parts)) for o in self.outputs]
        sources = [source.fingerprint for source in self.sources]
        text = json.dumps([pieces, sources, self.config, self.shard_size, settings], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def cut(items: Iterable[Item], sizes: Iterable[int], most: int) -> list[list[Item]]:
    """Cut what lies one after the other into groups; an item larger than a group may be has one to itself.

    Args:
        items: what is cut.
        sizes: of the items.
        most: the largest size of a group.
    """
    groups: list[list[Item]] = [[]]
    size = 0
    for item, own in zip(items, sizes, strict=True):
        if groups[-1] and size + own > most:
            groups.append([])
            size = 0
        groups[-1].append(item)
        size += own
    return groups
