"""The safetensors format: where in a file a tensor lies, without reading it, and what its bytes hold.

The header is read here because the safetensors package doesn't tell where in the file a tensor begins, which is what
lets its bytes be copied as they lie. Every field is checked against the size of the file: a header is somebody else's
input. Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lazymoe.checkpoint.tensors import BITS, Remote, Span, TensorInfo
from lazymoe.files import read_bytes, stamp

if TYPE_CHECKING:
    import torch

HEADER_LIMIT = 100_000_000  # bytes, the limit of the reference implementation
DIMENSIONS_LIMIT = 8  # no checkpoint has more; keeps the product of a hostile shape small
STORED = {  # torch's names of the dtypes that can be read
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "U8": "uint8", "I8": "int8",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """Reads a tensor of a safetensors file.

    Attributes:
        folder: where the file is.
        file: its name.
        offset: of the tensor's first byte, from the start of the file.
        dtype: the format's name of the dtype.
        remote: what reads the file where it is, as long as it isn't in the folder.
    """

    folder: Path = field(repr=False)  # a checkpoint is the same wherever it lies
    file: str
    offset: int
    dtype: str
    remote: Remote | None = field(default=None, repr=False, compare=False)

    def span(self, start: int, stop: int) -> Span:
        """Find where the bytes of elements start to stop lie."""
        bits = BITS[self.dtype]
        return Span(self.folder / self.file, self.offset + start * bits // 8, (stop - start) * bits // 8)

    def stamp(self) -> tuple[object, ...]:
        """Give what changes when the file does: on the Hub nothing, at one commit."""
        path = self.folder / self.file
        return () if self.remote and not path.exists() else stamp(path)

    def raw(self, start: int, stop: int) -> bytearray | memoryview:
        """Read the bytes of elements start to stop. Nobody may change a view: others are given it too.

        Raises:
            SourceError: if the file ends before them.
            HubError: if it is on the Hub, and that can't be reached or refuses.
        """
        lies = self.span(start, stop)
        if self.remote and not lies.path.exists():
            return self.remote(self.file, lies.offset, lies.nbytes)
        return read_bytes(*lies)

    def read(self, start: int, stop: int) -> torch.Tensor:
        """Read elements start to stop, flat: ``[stop - start]``.

        Raises:
            LazyMoEError: as `raw`.
        """
        import torch

        data = self.raw(start, stop)
        own = bytearray(data) if isinstance(data, memoryview) else data
        return torch.frombuffer(own, dtype=getattr(torch, STORED[self.dtype]))


def open_file(path: Path) -> dict[str, TensorInfo]:
    """List the tensors of a safetensors file on the disk, by name, in the order of their bytes.

    Args:
        path: of the file.

    Raises:
        ValueError: as `read_header`.
    """
    return read_header(path.parent, path.name, path.stat().st_size, functools.partial(read_bytes, path))


def read_header(
    folder: Path,
    file: str,
    size: int,
    read: Callable[[int, int], bytearray | memoryview],
    remote: Remote | None = None,
) -> dict[str, TensorInfo]:
    """List the tensors of a safetensors file, by name, in the order of their bytes.

    Args:
        folder: where it is, or will be.
        file: its name.
        size: its size in bytes.
        read: ``read(offset, n)`` gives n bytes of it.
        remote: what reads its tensors as long as it isn't there.

    Raises:
        ValueError: if the header and the file don't fit each other; the message says how.
    """
    if size == 0:
        raise ValueError("the file is empty")
    if size < 8:
        raise ValueError(f"the file is cut short: it has {size} bytes")
    length = int.from_bytes(read(0, 8), "little")
    if length > HEADER_LIMIT:
        raise ValueError(f"its header claims {length:,} bytes; is this a safetensors file?")
    if 8 + length > size:
        raise ValueError(f"the file is cut short: it ends within its header, at {size:,} bytes")
    try:
        entries = json.loads(str(read(8, length), "utf-8"))
    except (ValueError, RecursionError):
        raise ValueError("its header isn't JSON") from None
    if not isinstance(entries, dict):
        raise ValueError("its header isn't a JSON object")
    entries.pop("__metadata__", None)

    start, end = 8 + length, 8 + length
    tensors = {}
    for name, dtype, shape, begin, stop in sorted(map(_entry, entries.items()), key=lambda e: (e[3], e[4])):
        tensor = TensorInfo(name, dtype, shape, Stored(folder, file, start + begin, dtype, remote))
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
    """Write the bytes that come before the data in a safetensors file.

    Args:
        tensors: the (name, dtype, shape) of each that the file holds, in this order, without holes.
    """
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, dtype, shape in tensors:
        begin, end = end, end + math.prod(shape) * BITS[dtype] // 8
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight bytes
    return len(text).to_bytes(8, "little") + text
