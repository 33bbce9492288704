"""Importance matrices: how much each column of a weight counts, by the mean square of what it is multiplied with.

In both of llama.cpp's formats: the one of its GGUF files, and the older ``.dat``.
"""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np

from lazymoe.checkpoint.gguf_header import inspect
from lazymoe.errors import error

Importance = dict[str, np.ndarray]  # by llama.cpp's name of a tensor: float32 [experts, columns], one where it has none
SUMS, COUNTS = ".in_sum2", ".counts"
LIMIT = 1 << 24  # entries, letters and columns that a file may claim


def read_importance(file: Path) -> Importance:
    """Read an importance matrix.

    Args:
        file: where it is.

    Raises:
        LazyMoEError: if it can't be read as one.
    """
    try:
        with open(file, "rb") as f:
            found = _from_gguf(file) if f.read(4) == b"GGUF" else _from_dat(f)
        if not found:
            raise ValueError("there is none in it")
        if any(not np.isfinite(values).all() for values in found.values()):
            raise ValueError("it has values that are NaN or infinite")
        return found
    except Exception as e:  # whatever a broken file makes the gguf package raise
        why = (e.strerror or "") if isinstance(e, OSError) else str(e)[:150] or type(e).__name__
        what = f"it can't be read as an importance matrix ({why})"
        raise error("input.imatrix", str(file), what, "Name one that llama.cpp's llama-imatrix made.") from None


def _from_gguf(file: Path) -> Importance:
    from gguf import GGUFReader

    inspect(file)
    tensors = {tensor.name: np.array(tensor.data, np.float32) for tensor in GGUFReader(file).tensors}
    found = {}
    for name, sums in tensors.items():
        if name.endswith(SUMS):
            counts = tensors[name.removesuffix(SUMS) + COUNTS].reshape(-1, 1)  # of tokens, by expert
            sums = sums.reshape(len(counts), -1)
            # an expert that no token went to has all columns alike
            found[name.removesuffix(SUMS)] = np.where(counts > 0, sums / np.maximum(counts, 1), 1).astype(np.float32)
    return found


def _from_dat(f: BinaryIO) -> Importance:
    f.seek(0)
    found = {}
    for _ in range(_int(f)):
        name = f.read(_int(f)).decode()
        calls, columns = _int(f), _int(f)
        values = np.frombuffer(f.read(4 * columns), np.float32)
        if len(values) != columns:
            raise ValueError("it ends early")
        found[name] = values.reshape(1, -1) / max(calls, 1)
    return found


def digest(importance: Importance) -> str:
    """Tell importance matrices apart.

    Args:
        importance: of all tensors.
    """
    counts = hashlib.sha256()
    for tensor, values in sorted(importance.items()):
        counts.update(tensor.encode() + values.tobytes())
    return counts.hexdigest()


def _int(f: BinaryIO) -> int:
    (n,) = struct.unpack("<i", f.read(4))
    if not 0 <= n <= LIMIT:
        raise ValueError("it doesn't begin as one does")
    return int(n)


def of_expert(importance: Importance, tensor: str, expert: int, experts: int, width: int) -> np.ndarray | None:
    """Find how much the columns of a tensor count, or of one expert's part of it: float32 [width]; None if unknown.

    Args:
        importance: of all tensors.
        tensor: llama.cpp's name of it.
        expert, experts: whose part, of how many; 0 of 1 for other tensors.
        width: how many columns it has.

    Raises:
        LazyMoEError: if it is known for another size.
    """
    if tensor not in importance:
        return None
    values = importance[tensor].reshape(-1)
    if len(values) != experts * width:
        if tensor == "token_embd.weight":
            return None
        what = f"it has {len(values)} values for {tensor}, where this mixture has {experts * width} columns"
        raise error("input.imatrix", "--imatrix", what, "Name one that was made with this mixture.")
    return np.ascontiguousarray(values[expert * width : (expert + 1) * width])
