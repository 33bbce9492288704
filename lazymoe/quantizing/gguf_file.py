"""GGUF files that are filled in any order: the header first, then each tensor's rows where they belong.

What was put into one that isn't finished is noted with its checksums, and a rerun believes what it finds to be so.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import tempfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lazymoe.checkpoint.gguf_header import ALIGNMENT
from lazymoe.files import checksum_of, combined, is_sealed, readable, seal, seal_of, settle, write_whole

if TYPE_CHECKING:
    from gguf import GGUFWriter

Shape = tuple[int, ...]
Run = tuple[int, int, int]  # of bytes one after the other: where in the file, how many, and their CRC-32
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
    return kept.get("whole") == fingerprint and is_sealed(path, kept.get("seal"))


def note_whole(path: Path, record: Path, fingerprint: str, known: str = "") -> None:
    """Note that a file is whole.

    Args:
        path, record, fingerprint: as `is_whole` takes them.
        known: its seal, if that is known.
    """
    write_whole(record, json.dumps({"whole": fingerprint, "seal": known or seal_of(path)}))


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
        """Work out where all of it goes; `find` looks what is there.

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
        self._file: FileIO | None = None
        self._runs: dict[str, list[Run]] = {}  # what was put, by who gave it
        self.whole, self.done = False, set[str]()

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
        self.whole = is_whole(self.path, self._record, self._fingerprint)
        self._runs = {}
        kept = readable(self._record)
        if not self.whole and kept.get("fingerprint") == self._fingerprint:
            with suppress(OSError), open(self._temporary, "rb", buffering=0) as f:
                if f.read(len(self._header)) == self._header:
                    self._runs = _found(f, kept["done"])
        self.done = set(self._runs)

    def open(self) -> None:
        """Begin it, or go on where it was left, unless it is whole. No other process must be at work on it."""
        if not self.whole:
            self.find()
        if self.whole:
            return
        self._file = FileIO(self._temporary, "r+" if self.done else "w+")
        if not self.done:
            self._file.write(self._header)
            self._file.truncate(len(self._header) + self.nbytes)

    def put(self, of: str, name: str, row: int, rows: np.ndarray) -> None:
        """Write rows of a tensor.

        Args:
            of: what they are of, as the one who gives them calls it.
            name: the tensor's.
            row: the number of the first.
            rows: their bytes, ``[n, bytes of a row]``.
        """
        assert self._file is not None, "open it first"
        self._put(of, self._begins[name] + row * rows.shape[1], rows.data.cast("B"))

    def keep(self, done: set[str]) -> None:
        """See to it that what was put is on the disk, and note it: a rerun goes on from here.

        Args:
            done: names of what it was given since.
        """
        if self._file is None:
            return
        os.fsync(self._file.fileno())
        self.done |= done
        runs = {of: self._runs.get(of, []) for of in sorted(self.done)}
        write_whole(self._record, json.dumps({"fingerprint": self._fingerprint, "done": runs}))

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
        note_whole(self.path, self._record, self._fingerprint, self._seal())
        self.whole = True

    def _put(self, of: str, at: int, data: memoryview) -> None:
        """Write bytes, and add them to the run that they go on, or begin one."""
        assert self._file is not None
        self._file.seek(at)
        left = data
        while left:
            left = left[self._file.write(left) :]
        runs = self._runs.setdefault(of, [])
        begin, n, checksum = runs.pop() if runs and sum(runs[-1][:2]) == at else (at, 0, 0)
        runs.append((begin, n + len(data), zlib.crc32(data, checksum)))

    def _seal(self) -> str:
        """Give the seal of the whole: of the header, of what was put, and of the zeros between."""
        end, checksum = len(self._header), zlib.crc32(self._header)
        for at, n, own in sorted(itertools.chain(*self._runs.values())):
            for length, more in ((at - end, zlib.crc32(bytes(at - end))), (n, own)):
                checksum = combined(checksum, more, length)
            end = at + n
        rest = len(self._header) + self.nbytes - end
        return seal(end + rest, zlib.crc32(bytes(rest), checksum))

    def _padded_bytes(self, name: str) -> int:
        return _padded(tensor_bytes(self.types[name], self.shapes[name]))


def _found(f: FileIO, noted: Mapping[str, list[list[int]]]) -> dict[str, list[Run]]:
    """Take of what was noted what is there."""

    def is_there(at: int, n: int, checksum: int) -> bool:
        f.seek(at)
        return checksum_of(f, n) == checksum

    runs = {of: [(at, n, checksum) for at, n, checksum in listed] for of, listed in noted.items()}
    return {of: listed for of, listed in runs.items() if all(is_there(*run) for run in listed)}


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
