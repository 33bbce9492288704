"""What a GGUF file says of itself, walked over before anything else reads it: the gguf package makes several objects of
each element, so a small file can claim all of a machine's memory.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import functools
import hashlib
import mmap
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from lazymoe.files import cache, settle

ELEMENTS = 4_000_000  # of all arrays together; 256 thousand tokens with their kinds and merges have a third of that
BYTES = 1 << 27  # of metadata
TENSORS = 100_000
DIMENSIONS = 4  # of a tensor, as in ggml
DEPTH = 2  # of arrays in arrays; no known key has any
SIZES = (1, 1, 2, 2, 4, 4, 4, 1, None, None, 8, 8, 8)  # bytes of a value, by the number of its type
START = 1 << 23  # bytes of a file to begin with: names and merges of 128 thousand tokens take nearly as many
UINT32, STRING, ARRAY = 4, 8, 9
ALIGNMENT = 32  # bytes, at which each tensor begins where a file says no other


class Lies(NamedTuple):
    """Where a tensor lies in a file: its name, its shape, rows last, the number of its type, and its first byte."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


class Head(NamedTuple):
    """What a file says of itself, of what is needed here: the architecture, empty if it says none, and the tensors."""

    architecture: str
    tensors: list[Lies]


class CutError(ValueError):
    """A file ends within its metadata."""


def inspect(file: Path) -> Head:
    """Look whether a GGUF file's metadata are what a model's can be, and read what is needed of them.

    Args:
        file: where it is.

    Raises:
        CutError: if it ends within them.
        ValueError: if they aren't; the message says why.
    """
    with open(file, "rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return _Walk(data).whole()
        except struct.error:
            raise CutError("it ends within its metadata") from None


def bring_head(name: str, size: int, read: Callable[[int, int], bytes | bytearray | memoryview]) -> Path:
    """Bring as much of a GGUF file as it says of itself.

    Args:
        name: what tells it from all others.
        size: of the file, in bytes.
        read: gives bytes of it, by the first one's offset and how many they are.

    Returns:
        A file as long as that one, a hole where its weights are.
    """
    head = cache() / f"gguf-{hashlib.sha256(name.encode()).hexdigest()[:16]}.head"
    if not head.exists():
        head.parent.mkdir(parents=True, exist_ok=True)
        temporary = head.with_name(f"{head.name}.{os.getpid()}")
        try:
            with open(temporary, "wb") as f:
                length = 0
                while length < size and not (length and _has_all(temporary)):
                    more = min(size, max(START, 2 * length)) - length
                    f.write(read(length, more))
                    f.flush()
                    length += more
                f.truncate(size)
            settle(temporary, head)
        finally:
            temporary.unlink(missing_ok=True)
    return head


def _has_all(beginning: Path) -> bool:
    """Tell whether there is no need to read on: the beginning of a file has its metadata, or can't be one's."""
    try:
        inspect(beginning)
    except CutError:
        return False
    except ValueError:
        pass  # said when it is opened
    return True


class _Walk:
    """A walk over a file's metadata, which counts what it passes."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._at, self._elements = data, 8, 0
        version = data[4:6] or b"\0\0"
        order = "<" if version != b"\0\0" else ">"  # the version is a small number
        self._u32, self._u64 = struct.Struct(f"{order}I"), struct.Struct(f"{order}Q")

    def whole(self) -> Head:
        """Pass the metadata, then the list of tensors."""
        if self._data[:4] != b"GGUF":
            raise ValueError("it doesn't begin as one does")
        tensors, keys = self._long(), self._long()
        if tensors > TENSORS:
            raise ValueError(f"it claims {tensors} tensors")
        self._count(keys)
        known: dict[str, str | int] = {}  # of the values those that are read
        for _ in range(keys):
            key, kind = self._text(), self._int()
            if (key, kind) == ("general.architecture", STRING):
                known[key] = self._text()
            elif (key, kind) == ("general.alignment", UINT32):
                known[key] = self._int()
            else:
                self._value(kind, 0)
        found: list[Lies] = []
        for _ in range(tensors):
            name = self._text()
            if (dimensions := self._int()) > DIMENSIONS:
                raise ValueError(f"it claims a tensor of {dimensions} dimensions")
            shape = tuple(self._long() for _ in range(dimensions))[::-1]  # it has them the other way round
            found.append(Lies(name, shape, self._int(), self._long()))
        if len({lies.name for lies in found}) < len(found):
            raise ValueError("it has two tensors of one name")
        step = int(known.get("general.alignment", ALIGNMENT)) or ALIGNMENT
        begin = -(-self._at // step) * step
        return Head(
            str(known.get("general.architecture", "")),
            [lies._replace(offset=begin + lies.offset) for lies in found],
        )

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

    def _text(self) -> str:
        n = self._long()
        self._skip(n)
        return self._data[self._at - n : self._at].decode()

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
