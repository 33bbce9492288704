"""What of a mixture goes where in its GGUF files, and in which types. From its config.json and its shapes alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lazymoe.architectures.records import Config, Host
from lazymoe.errors import error
from lazymoe.quantizing.description import Architecture, architecture_of, rope_factors
from lazymoe.quantizing.file_types import PLAIN, Model, choose, starved
from lazymoe.quantizing.gguf_file import tensor_bytes
from lazymoe.quantizing.layout import Part, Shape, experts_of, lay_out

ROPE_FACTORS = "rope_freqs.weight"


@dataclass(frozen=True)
class Scheme:
    """The tensors of a mixture's GGUF files.

    Attributes:
        host, config: the mixture's architecture, and its config.json.
        architecture: llama.cpp's.
        shapes: of llama.cpp's tensors, by name, in their order.
        parts: of each tensor of the mixture, by its name, where its rows go.
        factors: what rotary frequencies are stretched by, float32 ``[head / 2]``; None where no tensor says so.
        types: by file type, of each of llama.cpp's tensors.
    """

    host: Host
    config: Config
    architecture: Architecture
    shapes: Mapping[str, Shape]
    parts: Mapping[str, list[Part]]
    factors: np.ndarray | None
    types: Mapping[str, Mapping[str, str]]

    @property
    def experts(self) -> int:
        """How many there are, without shared ones."""
        return experts_of(self.host, self.config)

    @property
    def plain(self) -> bool:
        """Whether nothing has to be quantized."""
        return all(kind in PLAIN for chosen in self.types.values() for kind in chosen.values())

    def sizes(self, kind: str) -> dict[str, int]:
        """Count the bytes of each of llama.cpp's tensors in a file of a type.

        Args:
            kind: the file type.
        """
        return {name: tensor_bytes(self.types[kind][name], shape) for name, shape in self.shapes.items()}


def make_scheme(
    host: Host, config: Config, shapes: Mapping[str, Shape], kinds: Sequence[str], weighted: bool, where: Path
) -> Scheme:
    """Work out what goes where.

    Args:
        host, config: the mixture's architecture, and its config.json.
        shapes: of its tensors, by name.
        kinds: the types of files, as `FILE_TYPES` has them.
        weighted: whether it is known how much columns count.
        where: the mixture is, for messages.

    Raises:
        OutputError: if llama.cpp has no such model.
        LazyMoEError: if a type is no good without importance.
    """
    architecture = architecture_of(host, config, where)
    targets, parts = lay_out(host, config, shapes)
    factors = rope_factors(config)
    if factors is not None:
        targets[ROPE_FACTORS] = factors.shape
    keys = architecture.more(config).get("attention.head_count_kv", [config["num_key_value_heads"]])[0]
    model = Model(
        config["num_hidden_layers"], experts_of(host, config), config["num_attention_heads"],
        keys, architecture.name, weighted,
    )  # fmt: skip
    types = {kind: choose(kind, targets, model) for kind in kinds}
    for kind, chosen in types.items():
        if not weighted and starved(kind, chosen):
            remedy = "Give one with --imatrix FILE, or choose a larger type."
            raise error("input.type", "TYPE", f"{kind} is no good without an importance matrix", remedy)
    return Scheme(host, config, architecture, targets, parts, factors, types)
