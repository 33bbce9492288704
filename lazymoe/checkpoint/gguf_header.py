"""What a GGUF file says of itself, walked over before anything else reads it: the gguf package makes several objects of
each element, so a small file can claim all of a machine's memory.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import functools
import mmap
import struct
from pathlib import Path

ELEMENTS = 4_000_000  # of all arrays together; 256 thousand tokens with their kinds and merges have a third of that
BYTES = 1 << 27  # of metadata
TENSORS = 100_000
DIMENSIONS = 4  # of a tensor, as in ggml
DEPTH = 2  # of arrays in arrays; no known key has any
SIZES = (1, 1, 2, 2, 4, 4, 4, 1, None, None, 8, 8, 8)  # bytes of a value, by the number of its type
STRING, ARRAY = 8, 9


class CutError(ValueError):
    """A file ends within its metadata."""


def inspect(file: Path) -> None:
    """Look whether a GGUF file's metadata are what a model's can be.

    Args:
        file: where it is.

    Raises:
        CutError: if it ends within them.
        ValueError: if they aren't; the message says why.
    """
    with open(file, "rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            _Walk(data).whole()
        except struct.error:
            raise CutError("it ends within its metadata") from None


class _Walk:
    """A walk over a file's metadata, which counts what it passes."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._at, self._elements = data, 8, 0
        version = data[4:6] or b"\0\0"
        order = "<" if version != b"\0\0" else ">"  # the version is a small number
        self._u32, self._u64 = struct.Struct(f"{order}I"), struct.Struct(f"{order}Q")

    def whole(self) -> None:
        """Pass the metadata, then the list of tensors."""
        if self._data[:4] != b"GGUF":
            raise ValueError("it doesn't begin as one does")
        tensors, keys = self._long(), self._long()
        if tensors > TENSORS:
            raise ValueError(f"it claims {tensors} tensors")
        self._count(keys)
        for _ in range(keys):
            self._string()
            self._value(self._int(), 0)
        for _ in range(tensors):
            self._string()
            if (dimensions := self._int()) > DIMENSIONS:
                raise ValueError(f"it claims a tensor of {dimensions} dimensions")
            self._skip(8 * dimensions + 12)  # how large each is, the type, where it lies

    def _value(self, kind: int, depth: int) -> None:
        """Pass a value of this type, in so many arrays."""
        if kind == ARRAY:
            self._array(depth + 1)
        elif kind == STRING:
            self._string()
        else:
            self._skip(_size(kind))

    def _array(self, depth: int) -> None:
        kind, n = self._int(), self._long()
        self._count(n)
        if depth > DEPTH:
            raise ValueError("it has arrays in arrays in arrays")
        if kind not in (STRING, ARRAY):
            self._skip(n * _size(kind))
            return
        step = self._string if kind == STRING else functools.partial(self._array, depth + 1)
        for _ in range(n):
            step()

    def _count(self, n: int) -> None:
        self._elements += n
        if self._elements > ELEMENTS:
            raise ValueError(f"its metadata claim {self._elements} values, where {ELEMENTS} would be many")

    def _string(self) -> None:
        self._skip(self._long())

    def _skip(self, n: int) -> None:
        self._at += n
        if self._at > BYTES:
            raise ValueError(f"its metadata have more than {BYTES >> 20} MB")
        if self._at > len(self._data):
            raise CutError("its metadata claim more bytes than the file has")

    def _int(self) -> int:
        (n,) = self._u32.unpack_from(self._data, self._at)
        self._at += 4
        return int(n)

    def _long(self) -> int:
        (n,) = self._u64.unpack_from(self._data, self._at)
        self._at += 8
        return int(n)


def _size(kind: int) -> int:
    """Give the bytes of a number of this type."""
    size = SIZES[kind] if kind < len(SIZES) else None
    if size is None:
        raise ValueError(f"its metadata have a value of unknown type {kind}")
    return size
