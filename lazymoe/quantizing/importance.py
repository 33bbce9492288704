"""Importance matrices: how much each column of a weight counts, by the mean square of what it is multiplied with.

In both of llama.cpp's formats: the one of its GGUF files, and the older ``.dat``.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np

from lazymoe.checkpoint.gguf_header import inspect
from lazymoe.errors import error
from lazymoe.files import settle
from lazymoe.planning.plan import Constant, Piece, Plan
from lazymoe.quantizing.layout import lay_out

if TYPE_CHECKING:
    from lazymoe.forward.inputs import Inputs

Importance = dict[str, np.ndarray]  # by llama.cpp's name of a tensor: float32 [experts, columns], one where it has none
SUMS, COUNTS = ".in_sum2", ".counts"
LIMIT = 1 << 24  # entries, letters and columns that a file may claim


class Squares(NamedTuple):
    """What a tensor's columns are multiplied with: the sums of its squares ``[experts, columns]``, of so many tokens
    ``[experts]``; both float32."""

    sums: np.ndarray
    counts: np.ndarray

    @property
    def means(self) -> np.ndarray:
        """The mean squares, float32 ``[experts, columns]``; all columns alike for an expert that no token went to."""
        counts = self.counts[:, None]
        return np.where(counts > 0, self.sums / np.maximum(counts, 1), 1).astype(np.float32)


def gathered(plan: Plan, inputs: Inputs) -> dict[str, Squares]:
    """Say what was gathered of a mixture by llama.cpp's names of its tensors.

    Args:
        plan: what the mixture is made by.
        inputs: what its maps read, as far as it ran: tensors of layers that didn't are left out.
    """
    shapes, parts = lay_out(plan.host, plan.config, {output.name: output.shape for output in plan.outputs})
    found: dict[str, Squares] = {}
    for output in plan.outputs:
        rows_of = {part.start: part for part in parts[output.name]}  # experts may lie in one tensor, one after another
        at = 0
        for given in output.parts:
            if not isinstance(given, Constant) and at in rows_of:
                key, part = (given.source, given.tensor.name if isinstance(given, Piece) else given.name), rows_of[at]
                if key in inputs.sums:
                    experts = shapes[part.target][0] if len(shapes[part.target]) == 3 else 1
                    empty = Squares(np.zeros((experts, part.width), np.float32), np.zeros(experts, np.float32))
                    sums, counts = found.setdefault(part.target, empty)
                    expert, squares = part.expert(experts), inputs.sums[key]
                    sums[expert] = squares[list(part.columns)] if part.columns else squares
                    counts[expert] = inputs.counts[key]
            at += given.elements
    return found


def write_importance(file: Path, found: Mapping[str, Squares], dataset: str, tokens: Sequence[int]) -> None:
    """Write an importance matrix in llama.cpp's format. The file has its name when it is whole.

    Args:
        file: where it goes.
        found: what each tensor reads, by llama.cpp's name of it.
        dataset: what to call the texts that were read.
        tokens: of each of them.
    """
    from gguf import GGUFWriter

    temporary = file.with_name(f".{file.name}")
    writer = GGUFWriter(temporary, "imatrix")
    del writer.kv_data[0]["general.architecture"]
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", [dataset])
    writer.add_uint32("imatrix.chunk_count", len(tokens))
    writer.add_uint32("imatrix.chunk_size", max(tokens))
    for name, (sums, counts) in sorted(found.items()):
        writer.add_tensor(name + SUMS, sums)
        writer.add_tensor(name + COUNTS, counts[:, None])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    settle(temporary, file)


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
            counts = tensors[name.removesuffix(SUMS) + COUNTS].reshape(-1)  # of tokens, by expert
            found[name.removesuffix(SUMS)] = Squares(sums.reshape(len(counts), -1), counts).means
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
