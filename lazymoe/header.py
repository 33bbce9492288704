"""The header of a safetensors file: which tensor lies where, without reading a tensor.

Written here because the safetensors package doesn't tell where in the file a tensor begins, which is what lets its
bytes be copied as they lie. Every field is checked against the size of the file: a header is somebody else's input.
Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

HEADER_LIMIT = 100_000_000  # bytes, the limit of the reference implementation
DIMENSIONS_LIMIT = 8  # no checkpoint has more; keeps the product of a hostile shape small

# the dtypes a merge can read, by the format's name, and torch's name for each
FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
CODES = {name: code for code, name in FLOATS.items()}

# bits an element, by the format's name of the dtype
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64,
    "C64": 64,
}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """A tensor in a file.

    Attributes:
        name: its name in the checkpoint.
        dtype: the format's name of its dtype, such as ``BF16``.
        shape: its shape.
        file: name of the file that holds it.
        offset: where its first byte is, from the start of the file; None where only torch can tell (pickles).
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    offset: int | None

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.elements * BITS[self.dtype] // 8


def within(tensor: Tensor, start: int, elements: int) -> Tensor:
    """So many elements of a tensor, from one of them on, as a flat tensor of the same name."""
    offset = None if tensor.offset is None else tensor.offset + start * BITS[tensor.dtype] // 8
    return replace(tensor, shape=(elements,), offset=offset)


def read_header(file: str, size: int, read: Callable[[int, int], bytes | bytearray]) -> dict[str, Tensor]:
    """The tensors of a safetensors file, by name, in the order of their bytes.

    Args:
        file: its name, kept in each tensor.
        size: its size in bytes.
        read: ``read(offset, n)`` gives n bytes of it.

    Raises:
        ValueError: if the header and the file don't fit each other; the message says how.
    """
    if size < 8:
        raise ValueError(f"the file is cut short: it has {size} bytes")
    length = int.from_bytes(read(0, 8), "little")
    if length > HEADER_LIMIT:
        raise ValueError(f"its header claims {length:,} bytes; is this a safetensors file?")
    if 8 + length > size:
        raise ValueError(f"the file is cut short: it ends within its header, at {size:,} bytes")
    try:
        entries = json.loads(read(8, length).decode())
    except (ValueError, RecursionError):
        raise ValueError("its header isn't JSON") from None
    if not isinstance(entries, dict):
        raise ValueError("its header isn't a JSON object")
    entries.pop("__metadata__", None)

    start, end = 8 + length, 8 + length
    tensors = {}
    for name, dtype, shape, begin, stop in sorted(map(_entry, entries.items()), key=lambda e: (e[3], e[4])):
        tensor = Tensor(name, dtype, shape, file, start + begin)
        if stop - begin != tensor.nbytes or math.prod(shape) * BITS[dtype] % 8:
            raise ValueError(
                f"its header gives '{name}' {stop - begin:,} bytes, but {shape} of {dtype} takes another number"
            )
        if start + begin != end:
            raise ValueError(f"its header leaves a hole or an overlap before '{name}'")
        end = start + stop
        tensors[name] = tensor
    if end != size:
        what = "the file is cut short" if end > size else "the file is longer than its header says"
        raise ValueError(f"{what}: {end:,} bytes expected, {size:,} found")
    return tensors


def _entry(item: tuple[str, Any]) -> tuple[str, str, tuple[int, ...], int, int]:
    name, fields = item
    try:
        dtype, shape, (begin, stop) = fields["dtype"], fields["shape"], fields["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise ValueError(f"its header has no dtype, shape and offsets for '{name}'") from None
    numbers = [*shape, begin, stop] if isinstance(shape, list) and len(shape) <= DIMENSIONS_LIMIT else [None]
    if any(type(n) is not int or not 0 <= n < 2**63 for n in numbers) or begin > stop:
        raise ValueError(f"its header has impossible numbers for '{name}'")
    if not isinstance(dtype, str) or dtype not in BITS:
        raise ValueError(f"its header gives '{name}' the unknown dtype {dtype!r}")
    return name, dtype, tuple(shape), begin, stop


def write_header(tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> bytes:
    """The bytes before the data of a file that holds these (name, dtype, shape), in this order, without holes."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, dtype, shape in tensors:
        begin, end = end, end + math.prod(shape) * BITS[dtype] // 8
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight bytes
    return len(text).to_bytes(8, "little") + text
