"""Parts as rows, on their way into GGUF files: gathered until there are enough of them, and as llama.cpp wants them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from lazymoe.checkpoint.tensors import BITS, Span, TensorInfo
from lazymoe.files import read_into
from lazymoe.floats import decode, finite
from lazymoe.output.parts import COPY, Slot, not_finite
from lazymoe.quantizing.layout import Part

BLOCK = 1 << 20  # weights that are in memory at a time


class RowPen:
    """Writes a part as rows: gathers its bytes until there are enough of them to quantize."""

    def __init__(
        self,
        dtype: str,
        parts: Sequence[Part],
        put: Callable[[Part, int, np.ndarray], None],
        moved: Callable[[int], None],
    ) -> None:
        """Begin.

        Args:
            dtype: of what is written, the format's name.
            parts: where its rows go, in order; nothing is put anywhere if there are none.
            put: given a part, the number of its first row, and rows of it, float32 ``[n, width]``.
            moved: told how many bytes were written, each time.
        """
        self._dtype, self._put, self._moved = dtype, put, moved
        self._held = bytearray()
        self._blocks = _blocks(parts)
        self._next = next(self._blocks, None)

    def write(
        self, data: bytes | bytearray | memoryview, tensor: TensorInfo | None = None, where: object = None
    ) -> None:
        """Write bytes; of a tensor of this model, look whether they are finite."""
        if tensor and not finite(np.frombuffer(data, np.uint8), tensor.dtype):
            raise not_finite(where, tensor)
        if self._next:
            self._held += data
        while self._next:
            part, row, rows = self._next
            size = rows * part.width * BITS[self._dtype] // 8
            if len(self._held) < size:
                break
            values = decode(self._held[:size], self._dtype).reshape(rows, part.width)
            del self._held[:size]
            self._put(part, row, values)
            self._next = next(self._blocks, None)
        self._moved(len(data))

    def copy(self, lies: Span, tensor: TensorInfo | None = None) -> None:
        """Write bytes of another file; of a tensor, look whether they are finite."""
        with open(lies.path, "rb", buffering=0) as f:
            f.seek(lies.offset)
            for start in range(0, lies.nbytes, COPY):
                block = bytearray(min(COPY, lies.nbytes - start))
                read_into(f, memoryview(block))
                self.write(block, tensor, lies.path)


def rows_of(slot: Slot, parts: Sequence[Part]) -> list[Part]:
    """List where the rows of a part of a tensor go, in order.

    Args:
        slot: the part.
        parts: where those of the whole tensor go.
    """
    begin = sum(part.elements for part in slot.output.parts[: slot.number])
    return sorted((p for p in parts if begin <= p.start < begin + slot.part.elements), key=lambda p: p.start)


def _blocks(parts: Sequence[Part]) -> Iterator[tuple[Part, int, int]]:
    """Yield parts a block at a time: each with the first of its rows, and how many. A head's rows stay together."""
    for part in parts:
        step = max(1, BLOCK // part.width)
        step = max(part.head, step - step % part.head) if part.head else step
        for row in range(0, part.rows, step):
            yield part, row, min(step, part.rows - row)


def changed(values: np.ndarray, part: Part) -> np.ndarray:
    """Do to rows what llama.cpp wants of them.

    Args:
        values: the rows, float32 ``[n, width]``; of heads whole ones.
        part: what they are of.
    """
    if part.head:
        values = _paired(values, part.head)
    if part.columns:
        values = np.ascontiguousarray(values[:, list(part.columns)])
    if part.change == "+1":
        values = values + np.float32(1)
    return -np.exp(values) if part.change == "-exp" else values


def _paired(values: np.ndarray, head: int) -> np.ndarray:
    """Put the rows of each head in pairs: the first of its first half, the first of its second half, and so on."""
    rows, width = values.shape
    halves = values.reshape(rows // head, 2, head // 2, width)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows, width))
