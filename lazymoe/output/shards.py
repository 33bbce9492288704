"""Writing the plan's shards. Knows safetensors and nothing else: not what an expert is, nor how a router is made.

Bytes that don't change move inside the kernel. Memory stays the same for models of any size: what needs arithmetic
goes through in blocks. A shard gets its final name only when it is complete, so that a rerun can go on from there.
"""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lazymoe.checkpoint.safetensors import write_header
from lazymoe.checkpoint.tensors import FLOATS, Span, TensorInfo
from lazymoe.errors import LazyMoEError, error
from lazymoe.files import read_into
from lazymoe.floats import encode, finite
from lazymoe.planning.plan import Computed, Constant, Output, Piece, Plan
from lazymoe.progress import Progress
from lazymoe.seeding import generator

if TYPE_CHECKING:
    import torch

BLOCK = 1 << 20  # elements that go through arithmetic at a time
BUFFER = 1 << 18  # bytes looked at for NaN at a time; they fit a core's cache
COPY = 1 << 24  # bytes that the kernel moves at a time, between two steps of the progress
FATAL = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG)  # copying in another way would not help


def write_shards(
    plan: Plan, computed: Mapping[str, TensorInfo], out: Path, partial: Path, seed: int, progress: Progress
) -> None:
    """Write all shards that aren't there yet.

    Args:
        plan: what to write; its sources must be on the disk.
        computed: the tensors that the plan calls computed, by name.
        out: where complete shards go.
        partial: a folder on the same disk for what is half-made.
        seed: of the experts' noise.
        progress: told of the bytes done, stage ``write``.

    Raises:
        SourceError: at the first weight that is NaN or infinite, or where a file ends early.
        RecipeError: at the first weight that the output's dtype can't hold.
        OSError: when a file can't be read or written, as when the disk is full.
    """
    done = 0
    for name, outputs in plan.shards:
        if not (out / name).exists():
            moved = functools.partial(_moved, progress, done, plan.nbytes)
            _write_shard(plan, computed, outputs, partial / name, seed, moved)
            os.replace(partial / name, out / name)
        done += sum(o.nbytes for o in outputs)
        progress("write", done, plan.nbytes)


def _moved(progress: Progress, before: int, total: int, n: int) -> None:
    progress("write", before + n, total)


def _write_shard(
    plan: Plan,
    computed: Mapping[str, TensorInfo],
    outputs: Sequence[Output],
    path: Path,
    seed: int,
    moved: Callable[[int], None],
) -> None:
    done = 0
    checks: list[Future[None]] = []
    with ThreadPoolExecutor(1) as checker, open(path, "wb", buffering=0) as f:
        _write(f, write_header((o.name, o.dtype, o.shape) for o in outputs))
        for output in outputs:
            for number, part in enumerate(output.parts):
                if isinstance(part, Constant):
                    steps = _fill(output, part, f)
                elif isinstance(part, Computed):
                    tensor = computed[part.name].part(part.start, part.elements)
                    lies = tensor.span()
                    steps = _copy(lies, f) if lies and part.scale == 1 else _scale(output, tensor, part.scale, f)
                else:
                    tensor = part.tensor.part(part.start, part.elements)
                    lies = tensor.span()
                    where = lies.path if lies else plan.sources[part.source].reference
                    if lies and part.copied(output.dtype):
                        checks.append(checker.submit(_check_finite, lies, tensor))
                        steps = _copy(lies, f)
                    else:
                        random = generator(seed, f"{output.name}:{number}")
                        steps = _transform(output, part, tensor, where, random, f)
                for n in steps:
                    moved(done := done + n)
                while checks and checks[0].done():
                    checks.pop(0).result()  # raises what it found, early
        for check in checks:
            check.result()


def _fill(output: Output, constant: Constant, target: FileIO) -> Iterator[int]:
    """Append one value many times; yield how many bytes."""
    values = encode(np.full(constant.elements, constant.value), output.dtype)
    _write(target, values.data)
    yield values.nbytes


def _scale(output: Output, computed: TensorInfo, factor: float, target: FileIO) -> Iterator[int]:
    """Append a small tensor that was computed, multiplied; yield how many bytes."""
    values = _cast(output, computed.read().float() * factor)
    _write(target, values.data)
    yield values.nbytes


def _copy(lies: Span, target: FileIO) -> Iterator[int]:
    """Append bytes of another file, inside the kernel where it can; yield how many, as it goes."""
    at, left = target.tell(), lies.nbytes
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


def _write(f: FileIO, data: bytes | bytearray | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[f.write(view) :]


def _check_finite(lies: Span, tensor: TensorInfo) -> None:
    """Look for NaN and infinity in a tensor that the kernel copies unseen.

    Raises:
        SourceError: if there is any.
    """
    buffer = np.empty(BUFFER, np.uint8)
    with open(lies.path, "rb", buffering=0) as f:
        f.seek(lies.offset)
        for start in range(0, lies.nbytes, BUFFER):
            block = buffer[: lies.nbytes - start]
            read_into(f, block.data)
            if not finite(block, tensor.dtype):
                raise _not_finite(lies.path, tensor)


def _transform(
    output: Output, piece: Piece, tensor: TensorInfo, where: object, random: np.random.Generator, target: FileIO
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
        _write(target, values.data)
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
