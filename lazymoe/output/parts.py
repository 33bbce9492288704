"""One part of an output's tensor, written at its place in a file: copied, cast, scaled, noised, or of one value.

Bytes that don't change move inside the kernel. Memory stays the same for models of any size: what needs arithmetic
goes through in blocks. While bytes are written, a thread looks at them: for NaN, and for their checksum.
"""

from __future__ import annotations

import errno
import os
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from io import FileIO
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from lazymoe.checkpoint.safetensors import Stored
from lazymoe.checkpoint.tensors import BITS, FLOATS, Span, TensorInfo
from lazymoe.errors import LazyMoEError, error
from lazymoe.files import read_into
from lazymoe.floats import encode, finite
from lazymoe.planning.plan import Computed, Constant, Output, Part, Piece
from lazymoe.recipe.reference import Reference
from lazymoe.seeding import generator

if TYPE_CHECKING:
    import torch

BLOCK = 1 << 20  # elements that go through arithmetic at a time
BUFFER = 1 << 18  # bytes looked at for NaN at a time; they fit a core's cache
COPY = 1 << 24  # bytes that the kernel moves at a time, between two steps of the progress
AHEAD = 64  # written pieces that are still to be looked at, at most: blocks stay in memory until then
FATAL = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG)  # copying in another way would not help


class Looker:
    """A thread that looks at bytes in the order in which they are written."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._looking: deque[Future[None]] = deque()

    def look(self, function: Callable[..., None], *args: object) -> None:
        """Have a function called; what an earlier one found is raised, early."""
        while self._looking and (self._looking[0].done() or len(self._looking) > AHEAD):
            self._looking.popleft().result()
        self._looking.append(self._thread.submit(function, *args))

    def wait(self) -> None:
        """Wait until all was looked at, and raise what was found."""
        while self._looking:
            self._looking.popleft().result()

    def close(self) -> None:
        """Let the thread go."""
        self._thread.shutdown(cancel_futures=True)


class Pen(Protocol):
    """Writes the bytes of one part, one after the other."""

    def write(
        self, data: bytes | bytearray | memoryview, tensor: TensorInfo | None = None, where: object = None
    ) -> None:
        """Write bytes; of a tensor of this model, look whether they are finite."""

    def copy(self, lies: Span, tensor: TensorInfo | None = None) -> None:
        """Write bytes of another file; of a tensor, look whether they are finite."""


class PlainPen:
    """Writes bytes as they are, at a place in a file.

    Attributes:
        checksum: CRC-32 of what was written, when all of it was looked at.
    """

    def __init__(self, file: FileIO, at: int, looker: Looker, moved: Callable[[int], None]) -> None:
        """Set it down.

        Args:
            file: the file, unbuffered.
            at: the first byte.
            looker: what looks at the bytes.
            moved: told how many bytes were written, each time.
        """
        self._file, self._at, self._looker, self._moved = file, at, looker, moved
        self.checksum = 0

    def write(
        self, data: bytes | bytearray | memoryview, tensor: TensorInfo | None = None, where: object = None
    ) -> None:
        """Write bytes; of a tensor of this model, look whether they are finite."""
        view = memoryview(data)
        self._looker.look(self._check, view, tensor, where)
        self._put(view)
        self._moved(len(view))

    def copy(self, lies: Span, tensor: TensorInfo | None = None) -> None:
        """Write bytes of another file, inside the kernel where it can; of a tensor, look whether they are finite."""
        self._looker.look(self._read, lies, tensor)
        left = lies.nbytes
        with open(lies.path, "rb", buffering=0) as f:
            f.seek(lies.offset)
            in_kernel = hasattr(os, "copy_file_range")
            while left:
                wanted, n = min(COPY - self._at % COPY, left), 0  # whole pages of the output are written faster
                if in_kernel:
                    self._file.seek(self._at)
                    try:
                        n = os.copy_file_range(f.fileno(), self._file.fileno(), wanted)
                    except OSError as e:
                        if e.errno in FATAL:
                            raise
                    self._at += n
                if not n:  # another kernel, or two file systems that it can't copy between
                    in_kernel = False
                    block = bytearray(n := wanted)
                    read_into(f, memoryview(block))
                    self._put(memoryview(block))
                left -= n
                self._moved(n)

    def _put(self, view: memoryview) -> None:
        self._file.seek(self._at)
        while view:
            n = self._file.write(view)
            view, self._at = view[n:], self._at + n

    def _check(self, data: memoryview, tensor: TensorInfo | None, where: object) -> None:
        for start in range(0, len(data), BUFFER):
            block = data[start : start + BUFFER]
            if tensor and not finite(np.frombuffer(block, np.uint8), tensor.dtype):
                raise not_finite(where, tensor)
            self.checksum = zlib.crc32(block, self.checksum)

    def _read(self, lies: Span, tensor: TensorInfo | None) -> None:
        buffer = np.empty(BUFFER, np.uint8)
        with open(lies.path, "rb", buffering=0) as f:
            f.seek(lies.offset)
            for start in range(0, lies.nbytes, BUFFER):
                block = buffer[: lies.nbytes - start]
                read_into(f, block.data)
                self._check(block.data, tensor, lies.path)


class Taken(NamedTuple):
    """The tensor that a part is taken from: a source's own, or one that is computed and stands for that."""

    kind: type[Piece] | type[Computed]
    source: int
    name: str


class Slot(NamedTuple):
    """A part, and what its values depend on.

    Attributes:
        output: the tensor that it lies in.
        number: of the part in that.
        seed: of its noise, if it has any.
        where: what it is taken from, for messages.
    """

    output: Output
    number: int
    seed: int
    where: object

    @property
    def part(self) -> Part:
        return self.output.parts[self.number]

    @property
    def nbytes(self) -> int:
        """Bytes of the part in the plan's dtype."""
        return self.part.elements * BITS[self.output.dtype] // 8

    @property
    def taken(self) -> Taken | None:
        """The tensor that it is taken from; of a constant, None."""
        part = self.part
        if isinstance(part, Constant):
            return None
        return Taken(type(part), part.source, part.tensor.name if isinstance(part, Piece) else part.name)

    @property
    def elements(self) -> slice:
        """Which elements of that tensor."""
        part = self.part
        start = 0 if isinstance(part, Constant) else part.start
        return slice(start, start + part.elements)

    def write(self, pen: Pen, computed: TensorInfo | None) -> None:
        """Write it from where it lies.

        Args:
            pen: that writes it.
            computed: the tensor that it is a part of, if that was worked out.

        Raises:
            SourceError: if a weight is NaN or infinite, or its file ends early.
            RecipeError: if a weight doesn't fit the output's dtype.
            OSError: if something can't be read or written.
        """
        part = self.part
        if isinstance(part, Constant):
            pen.write(encode(np.full(part.elements, part.value), self.output.dtype).data)
            return
        whole = part.tensor if isinstance(part, Piece) else computed
        assert whole, "what is computed was worked out, or given"
        tensor = whole.part(part.start, part.elements)
        lies = tensor.span()
        here = lies if lies and lies.path.exists() else None  # else it is worked out, or on the Hub
        if here and isinstance(part, Computed) and part.scale == 1:
            pen.copy(here)
        elif here and isinstance(part, Piece) and part.copied(self.output.dtype):
            pen.copy(here, tensor)
        else:
            self._write_blocks(pen, tensor, here.path if here else self.where)

    def _write_blocks(self, pen: Pen, tensor: TensorInfo, where: object) -> None:
        """Write a flat tensor that passes through memory."""
        blocks = ((start, min(start + BLOCK, tensor.elements)) for start in range(0, tensor.elements, BLOCK))
        if self._as_it_lies:
            assert isinstance(tensor.reader, Stored), "no other's bytes lie anywhere as they are"
            for start, stop in blocks:
                pen.write(tensor.reader.raw(tensor.start + start, tensor.start + stop), tensor, where)
        else:
            put = self.receiver(pen, where)
            for start, stop in blocks:
                put(tensor.read(start, stop))

    @property
    def _as_it_lies(self) -> bool:
        return isinstance(self.part, Piece) and self.part.copied(self.output.dtype)

    def receiver(self, pen: Pen, where: object = None) -> Callable[[torch.Tensor], None]:
        """Make what writes its elements, which are given in their order, flat.

        Args:
            pen: that writes them.
            where: they are from, for messages, if that can be told better than for the slot.
        """
        import torch

        where = where or self.where
        part, output, raw = self.part, self.output, self._as_it_lies
        assert not isinstance(part, Constant)
        noise = part.noise if isinstance(part, Piece) else 0.0
        random = generator(self.seed, f"{output.name}:{self.number}") if noise else None

        def put(given: torch.Tensor) -> None:
            for block in given.split(BLOCK):
                if isinstance(part, Piece):
                    if raw:
                        pen.write(block.view(torch.uint8).numpy().data, part.tensor, where)
                        continue
                    if not torch.isfinite(block).all():
                        raise not_finite(where, part.tensor)
                if noise or part.scale != 1:
                    block = block.float()
                if random:
                    block = block + noise * torch.from_numpy(random.standard_normal(len(block), np.float32))
                if part.scale != 1:
                    block = block * part.scale
                pen.write(_cast(output, block).data)

        return put


def slots_of(outputs: Iterable[Output], references: Sequence[Reference], seed: int) -> list[Slot]:
    """List the parts of tensors, one after the other.

    Args:
        outputs: the tensors.
        references: what names the models that they are made of, by number.
        seed: of noise.
    """
    return [
        Slot(output, number, seed, None if isinstance(part, Constant) else references[part.source])
        for output in outputs
        for number, part in enumerate(output.parts)
    ]


def _cast(output: Output, block: torch.Tensor) -> np.ndarray:
    """Give a finite tensor's bytes in the output's dtype.

    Raises:
        RecipeError: if it doesn't fit.
    """
    import torch

    cast = block.to(getattr(torch, FLOATS[output.dtype])).view(torch.uint8).numpy()
    if not finite(cast, output.dtype):
        what = f"'{output.name}' has values that {FLOATS[output.dtype]} can't hold"
        raise error("recipe.dtype", "dtype", what, "Use bfloat16 or float32.")
    return cast


def not_finite(where: object, tensor: TensorInfo) -> LazyMoEError:
    """Say that a tensor of a model has weights that are no numbers.

    Args:
        where: it lies.
        tensor: the tensor.
    """
    what = f"'{tensor.name}' has weights that are NaN or infinite"
    remedy = "This model is broken: use another one, or download it again."
    return error("source.broken", where, what, remedy)
