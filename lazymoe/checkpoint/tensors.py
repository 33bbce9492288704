"""A tensor of a checkpoint: what it is called, its dtype and shape, and what reads it. Dtypes go by the names of the
safetensors format."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from lazymoe.files import read_bytes

if TYPE_CHECKING:
    import numpy as np
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


SAMPLES, SAMPLE = 16, 4096  # how many samples of a tensor are compared, and their elements
# reads a file's bytes without downloading it: name, offset, length
Remote = Callable[[str, int, int], bytearray | memoryview]


class Span(NamedTuple):
    """Bytes that lie in a file as a safetensors file would hold them."""

    path: Path
    offset: int
    nbytes: int


class Reader(Protocol):
    """What reads one tensor, in one way of storing tensors. Elements are counted flat."""

    def read(self, start: int, stop: int) -> torch.Tensor:
        """Read elements start to stop, flat: ``[stop - start]``, in the tensor's dtype, or wider under an adapter.

        Args:
            start, stop: the first element, and the one after the last.
        """

    def span(self, start: int, stop: int) -> Span | None:
        """Find where the bytes of elements start to stop lie; None if they don't lie anywhere as they are.

        Args:
            start, stop: the first element, and the one after the last.
        """

    def stamp(self) -> tuple[object, ...]:
        """Give what changes when one of the files that it reads does, for those who keep what was read."""


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
        """Read elements start to stop, flat: ``[stop - start]``, in its dtype, or wider under an adapter.

        Args:
            start, stop: the first element, and the one after the last; all of them by default.

        Raises:
            SourceError: if its file ends early, or what is quantized in it can't be unpacked.
        """
        return self.reader.read(self.start + start, self.start + (self.elements if stop is None else stop))

    def load(self) -> torch.Tensor:
        """Read the whole tensor, in its shape.

        Raises:
            SourceError: as `read`.
        """
        return self.read().reshape(self.shape)

    def floats(self) -> np.ndarray:
        """Read all of it as float32, flat; without torch, whose import takes longer, where its bytes lie here.

        Raises:
            SourceError: as `read`.
        """
        from lazymoe.floats import decode

        lies = self.span()
        if lies and lies.path.exists():
            return decode(read_bytes(*lies), self.dtype)
        values: np.ndarray = self.read().float().numpy()
        return values

    def span(self) -> Span | None:
        """Find where its bytes lie; None if they don't lie anywhere as they are."""
        return self.reader.span(self.start, self.start + self.elements)

    def part(self, start: int, elements: int) -> TensorInfo:
        """Take so many of its elements, from one of them on, as a flat tensor of the same name.

        Args:
            start: the first element.
            elements: how many.
        """
        return replace(self, shape=(elements,), start=self.start + start)


@dataclass(frozen=True)
class Picked:
    """Reads rows of another tensor: of every so many some, in their own order.

    Attributes:
        below: the tensor, of one dimension or two.
        every: how many rows these are; they divide its rows.
        rows: which of them.
    """

    below: TensorInfo
    every: int
    rows: Sequence[int]

    def read(self, start: int, stop: int) -> torch.Tensor:
        """Read elements start to stop, flat: ``[stop - start]``."""
        width = math.prod(self.below.shape[1:])
        whole, taken = self.every * width, len(self.rows) * width  # elements, of all these rows and of those picked
        first, last = start // taken, -(-stop // taken)
        found = self.below.read(first * whole, last * whole).reshape(-1, self.every, width)[:, list(self.rows)]
        return found.reshape(-1)[start - first * taken : stop - first * taken]

    def span(self, start: int, stop: int) -> None:
        """Give nothing: its rows lie apart."""

    def stamp(self) -> tuple[object, ...]:
        """Give what changes when the file does."""
        return self.below.reader.stamp()


@dataclass(eq=False)
class InMemory:
    """Reads a tensor that is in memory, for a while or for good.

    Attributes:
        values: all of it, flat, until they are let go; nobody may change what it gives.
        below: the tensor where it lies, from when they are.
    """

    values: torch.Tensor | None
    below: TensorInfo | None = None

    def read(self, start: int, stop: int) -> torch.Tensor:
        """Give elements start to stop, flat: ``[stop - start]``."""
        if self.values is not None:
            return self.values[start:stop]
        assert self.below, "or nothing lets them go"
        return self.below.read(start, stop)

    def span(self, start: int, stop: int) -> None:
        """Give nothing: who asks is to have it from memory."""

    def stamp(self) -> tuple[object, ...]:
        """Give what changes when its file does."""
        return self.below.reader.stamp() if self.below else ()


def same_bytes(a: TensorInfo, b: TensorInfo, remote: Remote | None) -> bool:
    """Tell whether two tensors hold the same, by samples from all of their length.

    Args:
        a, b: the tensors.
        remote: reads ranges of files that aren't here.
    """
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    size = min(SAMPLE, a.elements)
    starts = {i * (a.elements - size) // (SAMPLES - 1) for i in range(SAMPLES)}
    return all(_raw(a.part(start, size), remote) == _raw(b.part(start, size), remote) for start in sorted(starts))


def _raw(tensor: TensorInfo, remote: Remote | None) -> bytes:
    """Read a tensor's bytes, from where it lies or from the Hub; of one that lies nowhere, of its values."""
    lies = tensor.span()
    if lies is None:
        return tensor.read().float().numpy().tobytes()
    return bytes(read_bytes(*lies) if lies.path.exists() or remote is None else remote(lies.path.name, *lies[1:]))


def some(names: Sequence[str]) -> str:
    """Spell tensors in a few words: the first by name.

    Args:
        names: theirs, at least one.
    """
    return f"the tensor '{names[0]}'" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
