"""A tensor of a checkpoint: what it is called, its dtype and shape, and what reads it. Dtypes go by the names of the
safetensors format."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    import torch

# the dtypes a merge can read, and torch's name for each
FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
CODES = {name: code for code, name in FLOATS.items()}

# bits an element
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64,
    "C64": 64,
}  # fmt: skip


class Span(NamedTuple):
    """Bytes that lie in a file as a safetensors file would hold them."""

    path: Path
    offset: int
    nbytes: int


class Reader(Protocol):
    """What reads one tensor, in one way of storing tensors. Elements are counted flat."""

    def read(self, start: int, stop: int) -> torch.Tensor:
        """Elements start to stop, flat: ``[stop - start]``, in the tensor's dtype, or wider under an adapter."""

    def span(self, start: int, stop: int) -> Span | None:
        """Where the bytes of elements start to stop lie, if they lie anywhere as they are."""


@dataclass(frozen=True)
class TensorInfo:
    """A tensor, unread.

    Attributes:
        name: its name in the checkpoint.
        dtype: the format's name of its dtype, such as ``BF16``.
        shape: its shape.
        reader: what reads it.
        start: its first element among those of the reader.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    reader: Reader
    start: int = 0

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.elements * BITS[self.dtype] // 8

    def read(self, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Elements start to stop, flat: ``[stop - start]``, in its dtype, or wider under an adapter."""
        return self.reader.read(self.start + start, self.start + (self.elements if stop is None else stop))

    def load(self) -> torch.Tensor:
        """The whole tensor, in its shape."""
        return self.read().reshape(self.shape)

    def span(self) -> Span | None:
        """Where its bytes lie, if they lie anywhere as they are."""
        return self.reader.span(self.start, self.start + self.elements)

    def part(self, start: int, elements: int) -> TensorInfo:
        """So many of its elements, from one of them on, as a flat tensor of the same name."""
        return replace(self, shape=(elements,), start=self.start + start)
