"""Writing the plan's shards. Knows safetensors and nothing else: not what an expert is, nor how a router is made.

Bytes that don't change move inside the kernel. Memory stays the same for models of any size: what needs arithmetic
goes through in blocks. A shard gets its final name only when it is complete and on the disk, and its seal is kept among
what is half-made: a rerun goes on from there.
"""

from __future__ import annotations

import errno
import functools
import os
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from lazymoe.checkpoint.safetensors import Stored, write_header
from lazymoe.checkpoint.tensors import FLOATS, Span, TensorInfo
from lazymoe.errors import LazyMoEError, error
from lazymoe.files import SEAL, is_sealed, read_into, read_seal, seal, settle, write_whole
from lazymoe.floats import encode, finite
from lazymoe.planning.plan import Computed, Constant, Output, Part, Piece, Plan
from lazymoe.progress import Progress
from lazymoe.seeding import generator

if TYPE_CHECKING:
    import torch

BLOCK = 1 << 20  # elements that go through arithmetic at a time
BUFFER = 1 << 18  # bytes looked at for NaN at a time; they fit a core's cache
COPY = 1 << 24  # bytes that the kernel moves at a time, between two steps of the progress
FLUSH = 1 << 26  # bytes that the disk gets at a time: what waits for the end waits for all of them
AHEAD = 64  # appended pieces that are still to be looked at, at most: blocks stay in memory until then
FATAL = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG)  # copying in another way would not help


class Taker(Protocol):
    """Takes shards away as they are finished, such as to the Hub."""

    def has(self, name: str) -> bool:
        """Tell whether it took this one before."""

    def take(self, path: Path, outputs: Sequence[Output]) -> None:
        """Take a finished one, which holds these tensors."""

    def finish(self, folder: Path) -> None:
        """Take the other files, which are in this folder, when all weights were taken."""


def write_shards(
    plan: Plan,
    computed: Mapping[tuple[int, str], TensorInfo],
    out: Path,
    partial: Path,
    seed: int,
    progress: Progress,
    taker: Taker | None = None,
) -> None:
    """Write all shards that aren't there yet.

    Args:
        plan: what to write; its sources must be on the disk.
        computed: the tensors that the plan calls computed, by the number of their source and their name.
        out: where complete shards go.
        partial: a folder on the same disk for what is half-made.
        seed: of the experts' noise.
        progress: told of the bytes done, stage ``write``.
        taker: is given each shard when it is finished, if anybody is.

    Raises:
        SourceError: at the first weight that is NaN or infinite, or where a file ends early.
        RecipeError: at the first weight that the output's dtype can't hold.
        OSError: when a file can't be read or written, as when the disk is full.
    """
    done = 0
    for name, outputs in plan.shards:
        kept, taken = partial / f"{name}{SEAL}", taker and taker.has(name)
        if not taken and not is_sealed(out / name, read_seal(kept)):
            moved = functools.partial(_moved, progress, done, plan.nbytes)
            write_whole(kept, _write_shard(plan, computed, outputs, partial / name, seed, moved))
            settle(partial / name, out / name)
        if taker and not taken:
            taker.take(out / name, outputs)
        done += sum(o.nbytes for o in outputs)
        progress("write", done, plan.nbytes)


def _moved(progress: Progress, before: int, total: int, n: int) -> None:
    progress("write", before + n, total)


class _Shard:
    """A file that is being written, and a thread that looks at the same bytes in the same order: its seal, NaN."""

    def __init__(self, f: FileIO) -> None:
        self.file, self._checksum = f, 0
        self._thread = ThreadPoolExecutor(1)
        self._looking: deque[Future[None]] = deque()

    def write(
        self, data: bytes | bytearray | memoryview, tensor: TensorInfo | None = None, where: object = None
    ) -> None:
        """Append bytes; of a tensor of this model, look whether they are finite."""
        self._look(self._check, memoryview(data), tensor, where)
        _write(self.file, data)

    def look(self, lies: Span, tensor: TensorInfo | None) -> None:
        """Look at bytes of another file that are appended in another way; of a tensor, whether they are finite."""
        self._look(self._read, lies, tensor)

    def seal(self) -> str:
        """Give the seal of all that was appended.

        Raises:
            SourceError: if a weight is NaN or infinite.
        """
        while self._looking:
            self._looking.popleft().result()
        return seal(self.file.tell(), self._checksum)

    def close(self) -> None:
        """Let the thread go."""
        self._thread.shutdown(cancel_futures=True)

    def _look(self, function: Callable[..., None], *args: object) -> None:
        while self._looking and (self._looking[0].done() or len(self._looking) > AHEAD):
            self._looking.popleft().result()  # raises what it found, early
        self._looking.append(self._thread.submit(function, *args))

    def _check(self, data: memoryview, tensor: TensorInfo | None, where: object) -> None:
        for start in range(0, len(data), BUFFER):
            block = data[start : start + BUFFER]
            if tensor and not finite(np.frombuffer(block, np.uint8), tensor.dtype):
                raise _not_finite(where, tensor)
            self._checksum = zlib.crc32(block, self._checksum)

    def _read(self, lies: Span, tensor: TensorInfo | None) -> None:
        buffer = np.empty(BUFFER, np.uint8)
        with open(lies.path, "rb", buffering=0) as f:
            f.seek(lies.offset)
            for start in range(0, lies.nbytes, BUFFER):
                block = buffer[: lies.nbytes - start]
                read_into(f, block.data)
                self._check(block.data, tensor, lies.path)


def _write_shard(
    plan: Plan,
    computed: Mapping[tuple[int, str], TensorInfo],
    outputs: Sequence[Output],
    path: Path,
    seed: int,
    moved: Callable[[int], None],
) -> str:
    """Write one file; give its seal."""
    done = begun = 0
    with open(path, "wb", buffering=0) as f, closing(_Shard(f)) as shard:
        shard.write(write_header((o.name, o.dtype, o.shape) for o in outputs))
        for output in outputs:
            for number, part in enumerate(output.parts):
                for n in _append(plan, computed, output, part, number, seed, shard):
                    moved(done := done + n)
                    begun = _begin_flush(f, begun)
        return shard.seal()


def _append(
    plan: Plan,
    computed: Mapping[tuple[int, str], TensorInfo],
    output: Output,
    part: Part,
    number: int,
    seed: int,
    shard: _Shard,
) -> Iterator[int]:
    """Append one part of an output tensor; yield how many bytes, as it goes."""
    if isinstance(part, Constant):
        return _fill(output, part, shard)
    if isinstance(part, Computed):
        tensor = computed[part.source, part.name].part(part.start, part.elements)
        lies = tensor.span()
        return _copy(lies, None, shard) if lies and part.scale == 1 else _scale(output, tensor, part.scale, shard)
    tensor = part.tensor.part(part.start, part.elements)
    lies = tensor.span()
    here = lies if lies and lies.path.exists() else None  # else it is worked out, or on the Hub
    where = here.path if here else plan.sources[part.source].reference
    if part.copied(output.dtype):
        return _copy(here, tensor, shard) if here else _pass_on(tensor, where, shard)
    return _transform(output, part, tensor, where, generator(seed, f"{output.name}:{number}"), shard)


def _begin_flush(f: FileIO, begun: int) -> int:
    """Let the disk begin with what was written since, where the system can be told; give how far that is."""
    at = f.tell()
    if at - begun < FLUSH or not hasattr(os, "posix_fadvise"):
        return begun
    os.posix_fadvise(f.fileno(), begun, at - begun, os.POSIX_FADV_DONTNEED)
    return at


def _fill(output: Output, constant: Constant, shard: _Shard) -> Iterator[int]:
    """Append one value many times; yield how many bytes."""
    values = encode(np.full(constant.elements, constant.value), output.dtype)
    shard.write(values.data)
    yield values.nbytes


def _scale(output: Output, computed: TensorInfo, factor: float, shard: _Shard) -> Iterator[int]:
    """Append a small tensor that was computed, multiplied; yield how many bytes."""
    values = _cast(output, computed.read().float() * factor)
    shard.write(values.data)
    yield values.nbytes


def _copy(lies: Span, tensor: TensorInfo | None, shard: _Shard) -> Iterator[int]:
    """Append bytes of another file, inside the kernel where it can; yield how many, as it goes.

    Those of a source's tensor are looked at for NaN and infinity.
    """
    shard.look(lies, tensor)
    target, left = shard.file, lies.nbytes
    at = target.tell()
    with open(lies.path, "rb", buffering=0) as f:
        f.seek(lies.offset)
        in_kernel = hasattr(os, "copy_file_range")
        while left:
            wanted, n = min(COPY - at % COPY, left), 0  # whole pages of the output are written faster
            if in_kernel:
                try:
                    n = os.copy_file_range(f.fileno(), target.fileno(), wanted)
                except OSError as e:
                    if e.errno in FATAL:
                        raise
            if not n:  # another kernel, or two file systems that it can't copy between
                in_kernel = False
                block = bytearray(wanted)
                read_into(f, memoryview(block))
                _write(target, block)
                n = wanted
            at, left = at + n, left - n
            yield n


def _pass_on(tensor: TensorInfo, where: object, shard: _Shard) -> Iterator[int]:
    """Append a source's tensor that is in no file here, as it arrives; yield how many bytes, as it goes."""
    assert isinstance(tensor.reader, Stored), "no other's bytes lie anywhere as they are"
    end = tensor.start + tensor.elements
    for start in range(tensor.start, end, BLOCK):
        block = tensor.reader.raw(start, min(start + BLOCK, end))
        shard.write(block, tensor, where)
        yield len(block)


def _write(f: FileIO, data: bytes | bytearray | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[f.write(view) :]


def _transform(
    output: Output, piece: Piece, tensor: TensorInfo, where: object, random: np.random.Generator, shard: _Shard
) -> Iterator[int]:
    """Append elements that are cast, scaled or noised, a block at a time; yield how many bytes, as it goes."""
    import torch

    for start in range(0, tensor.elements, BLOCK):
        stop = min(start + BLOCK, tensor.elements)
        block = tensor.read(start, stop)
        if not torch.isfinite(block).all():
            raise _not_finite(where, tensor)
        if piece.noise or piece.scale != 1:
            block = block.float()
        if piece.noise:
            block += piece.noise * torch.from_numpy(random.standard_normal(stop - start, np.float32))
        if piece.scale != 1:
            block *= piece.scale
        values = _cast(output, block)
        shard.write(values.data)
        yield values.nbytes


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


def _not_finite(where: object, tensor: TensorInfo) -> LazyMoEError:
    what = f"'{tensor.name}' has weights that are NaN or infinite"
    remedy = "This model is broken: use another one, or download it again."
    return error("source.broken", where, what, remedy)
