"""GGUF files that are filled in any order: the header first, then each tensor's rows where they belong.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from lazymoe.files import readable, settle, write_whole

if TYPE_CHECKING:
    from gguf import GGUFWriter

Shape = tuple[int, ...]
ALIGNMENT = 32  # bytes; where each tensor begins
DONE = ".json"  # ends the name of the file that lists what a half-made one holds, or tells that it is whole
RECORDS = f"*.gguf{DONE}"  # names of those


def row_bytes(kind: str, width: int) -> int:
    """Count the bytes of a row.

    Args:
        kind: the type of its weights.
        width: how many there are.
    """
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    return int(width // block * size)


def tensor_bytes(kind: str, shape: Shape) -> int:
    """Count the bytes of a tensor.

    Args:
        kind: the type of its weights.
        shape: its shape.
    """
    return math.prod(shape[:-1]) * row_bytes(kind, shape[-1])


def is_whole(path: Path, record: Path, fingerprint: str) -> bool:
    """Tell whether a file is there, as it was when that was noted.

    Args:
        path: the file's.
        record: where it was noted.
        fingerprint: tells it from others that were there before it.
    """
    kept = readable(record)
    there = path.is_file() and path.stat().st_size == kept.get("bytes")
    return there and kept.get("whole") == fingerprint


def note_whole(path: Path, record: Path, fingerprint: str) -> None:
    """Note that a file is whole.

    Args:
        path, record, fingerprint: as `is_whole` takes them.
    """
    write_whole(record, json.dumps({"whole": fingerprint, "bytes": path.stat().st_size}))


class GgufFile:
    """A GGUF file in the making. It has its name when it is whole and on the disk.

    Attributes:
        path: where it will be.
        shapes, types: of its tensors, by name.
        whole: whether it is there.
        done: what was given to it so far and is on the disk, as the one who gives it calls it.
    """

    def __init__(
        self, path: Path, partial: Path, says: GGUFWriter, shapes: Mapping[str, Shape], types: Mapping[str, str],
        made_of: str,
    ) -> None:  # fmt: skip
        """Find what is there of it; nothing is written yet.

        Args:
            path: where it will be.
            partial: a folder on the same disk for what is half-made.
            says: holds what it says of itself.
            shapes, types: of its tensors, by name.
            made_of: tells its weights from others.
        """
        self.path, self.shapes, self.types = path, shapes, types
        self._temporary, self._record = partial / path.name, partial / f"{path.name}{DONE}"
        self._header = _header(says, shapes, types)
        self._fingerprint = hashlib.sha256(made_of.encode() + self._header).hexdigest()
        begins = itertools.accumulate((self._padded_bytes(name) for name in shapes), initial=len(self._header))
        self._begins = dict(zip(shapes, begins, strict=False))
        self._file: BinaryIO | None = None
        self.find()

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return sum(map(self._padded_bytes, self.shapes))

    @property
    def held(self) -> int:
        """Bytes that it takes on the disk already, half-made."""
        if not self._temporary.is_file():
            return 0
        found = self._temporary.stat()
        return found.st_blocks * 512 if hasattr(found, "st_blocks") else found.st_size  # what wasn't put takes none

    def find(self) -> None:
        """Look what is there of it."""
        kept = readable(self._record)
        self.whole = is_whole(self.path, self._record, self._fingerprint)
        goes_on = kept.get("fingerprint") == self._fingerprint and self._temporary.is_file()
        self.done = set[str](kept["done"] if goes_on else ())

    def open(self) -> None:
        """Begin it, or go on where it was left, unless it is whole. No other process must be at work on it."""
        self.find()
        if self.whole:
            return
        self._file = open(self._temporary, "r+b" if self.done else "w+b")  # noqa: SIM115
        if not self.done:
            self._file.write(self._header)
            self._file.truncate(len(self._header) + self.nbytes)

    def put(self, name: str, row: int, rows: np.ndarray) -> None:
        """Write rows of a tensor.

        Args:
            name: the tensor's.
            row: the number of the first.
            rows: their bytes, ``[n, bytes of a row]``.
        """
        assert self._file is not None, "open it first"
        self._file.seek(self._begins[name] + row * rows.shape[1])
        self._file.write(rows.data)

    def keep(self, done: set[str]) -> None:
        """See to it that what was put is on the disk, and note it: a rerun goes on from here.

        Args:
            done: names of what it was given since.
        """
        if self._file is None:
            return
        self._file.flush()
        os.fsync(self._file.fileno())
        self.done |= done
        write_whole(self._record, json.dumps({"fingerprint": self._fingerprint, "done": sorted(self.done)}))

    def close(self) -> None:
        """Let go of it, half-made as it is."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def discard(self) -> None:
        """Remove what is half-made of it."""
        if not self.whole:
            self.close()
            self._temporary.unlink(missing_ok=True)
            self._record.unlink(missing_ok=True)

    def finish(self) -> None:
        """Give it its name, if it hasn't got it."""
        if self._file is None:
            return
        self.close()
        settle(self._temporary, self.path)
        note_whole(self.path, self._record, self._fingerprint)
        self.whole = True

    def _padded_bytes(self, name: str) -> int:
        return _padded(tensor_bytes(self.types[name], self.shapes[name]))


def _header(says: GGUFWriter, shapes: Mapping[str, Shape], types: Mapping[str, str]) -> bytes:
    """Make the bytes that come before the tensors; the package writes them into a file."""
    from gguf import GGMLQuantizationType

    for name, shape in shapes.items():
        kind = types[name]
        stored = (*shape[:-1], row_bytes(kind, shape[-1]))  # the package wants the shape of the bytes
        number = GGMLQuantizationType[kind]
        says.add_tensor_info(name, stored, np.dtype(np.uint8), tensor_bytes(kind, shape), number)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "header"
        says.write_header_to_file(file)
        says.write_kv_data_to_file()
        says.write_ti_data_to_file()
        says.close()
        header = file.read_bytes()
    return header + bytes(_padded(len(header)) - len(header))


def _padded(n: int) -> int:
    return -(-n // ALIGNMENT) * ALIGNMENT
