"""Writing the plan's shards. Knows safetensors and nothing else: not what an expert is, nor how a router is made.

Bytes that don't change move inside the kernel. Memory stays the same for models of any size: what needs arithmetic
goes through in blocks. A shard gets its final name only when it is complete, so that a rerun can go on from there.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lazymoe.errors import error
from lazymoe.floats import encode, finite
from lazymoe.header import FLOATS, Tensor, within, write_header
from lazymoe.plan import Computed, Constant, Output, Piece, Plan
from lazymoe.progress import Progress
from lazymoe.read import read_elements, read_into

if TYPE_CHECKING:
    import torch

BLOCK = 1 << 20  # elements that go through arithmetic at a time
BUFFER = 1 << 18  # bytes looked at for NaN at a time; they fit a core's cache
COPY = 1 << 24  # bytes that the kernel moves at a time, between two steps of the progress
FATAL = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG)  # copying in another way would not help


def write_shards(
    plan: Plan, computed: Mapping[str, Tensor], out: Path, partial: Path, seed: int, progress: Progress
) -> None:
    """Write all shards that aren't there yet.

    Args:
        plan: what to write; its sources must be on the disk.
        computed: where the tensors are that the plan calls computed, in files of ``partial``.
        out: where complete shards go.
        partial: a folder on the same disk for what is half-made.
        seed: of the experts' noise.
        progress: told of the bytes done.

    Raises:
        LazyMoEError: at the first weight that is NaN or infinite, or becomes so in the output's dtype.
        OSError: when the disk is full.
    """
    done = 0
    for name, outputs in plan.shards:
        if not (out / name).exists():
            moved = functools.partial(_moved, progress, done, plan.nbytes)
            _write_shard(plan, computed, outputs, partial / name, seed, moved)
            os.replace(partial / name, out / name)
        done += sum(o.nbytes for o in outputs)
        progress("write", done, plan.nbytes)


def write_whole(path: Path, data: str | bytes) -> None:
    """Write a small file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(data.encode() if isinstance(data, str) else data)
    os.replace(temporary, path)


def _moved(progress: Progress, before: int, total: int, n: int) -> None:
    progress("write", before + n, total)


def _write_shard(
    plan: Plan,
    computed: Mapping[str, Tensor],
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
                    where = within(computed[part.name], part.start, part.elements)
                    if part.scale == 1:
                        steps = _copy(path.parent / where.file, where, f)
                    else:
                        steps = _scale(output, path.parent, where, part.scale, f)
                elif part.copied(output.dtype):
                    where = within(part.tensor, part.start, part.elements)
                    file = plan.sources[part.source].folder / where.file
                    checks.append(checker.submit(_check_finite, file, where))
                    steps = _copy(file, where, f)
                else:
                    steps = _transform(plan, output, part, generator(seed, f"{output.name}:{number}"), f)
                for n in steps:
                    moved(done := done + n)
                while checks and checks[0].done():
                    checks.pop(0).result()  # raises what it found, early
        for check in checks:
            check.result()


def _fill(output: Output, constant: Constant, target: FileIO) -> Iterator[int]:
    """Append one value many times; yields how many bytes."""
    values = encode(np.full(constant.elements, constant.value), output.dtype)
    _write(target, values)
    yield values.nbytes


def _scale(output: Output, folder: Path, computed: Tensor, factor: float, target: FileIO) -> Iterator[int]:
    """Append a small tensor that was computed, multiplied; yields how many bytes."""
    values = _cast(output, read_elements(folder, computed, 0, computed.elements).float() * factor)
    _write(target, values)
    yield values.nbytes


def _copy(file: Path, tensor: Tensor, target: FileIO) -> Iterator[int]:
    """Append a tensor's bytes to a file, inside the kernel where it can; yields how many, as it goes."""
    at, left = target.tell(), tensor.nbytes
    with open(file, "rb", buffering=0) as f:
        f.seek(tensor.offset or 0)
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


def _write(f: FileIO, data: bytes | bytearray | np.ndarray) -> None:
    view = memoryview(data)
    while view:
        view = view[f.write(view) :]


def _check_finite(file: Path, tensor: Tensor) -> None:
    """Look for NaN and infinity in a tensor that the kernel copies unseen."""
    buffer = np.empty(BUFFER, np.uint8)
    with open(file, "rb", buffering=0) as f:
        f.seek(tensor.offset or 0)
        for start in range(0, tensor.nbytes, BUFFER):
            block = buffer[: tensor.nbytes - start]
            read_into(f, memoryview(block))
            if not finite(block, tensor.dtype):
                raise _not_finite(file, tensor)


def _transform(plan: Plan, output: Output, piece: Piece, random: np.random.Generator, target: FileIO) -> Iterator[int]:
    """Append elements that are cast, scaled or noised, a block at a time; yields how many bytes, as it goes."""
    import torch

    source = plan.sources[piece.source]
    end = piece.start + piece.elements
    for start in range(piece.start, end, BLOCK):
        stop = min(start + BLOCK, end)
        block = source.elements(piece.tensor, start, stop)
        if not torch.isfinite(block).all():
            raise _not_finite(source.folder / piece.tensor.file, piece.tensor)
        if piece.noise or piece.scale != 1:
            block = block.float()
        if piece.noise:
            block += piece.noise * torch.from_numpy(random.standard_normal(stop - start, np.float32))
        if piece.scale != 1:
            block *= piece.scale
        values = _cast(output, block)
        _write(target, values)
        yield values.nbytes


def _cast(output: Output, block: torch.Tensor) -> np.ndarray:
    """A finite tensor's bytes in the output's dtype, where it fits."""
    import torch

    cast = block.to(getattr(torch, FLOATS[output.dtype])).view(torch.uint8).numpy()
    if not finite(cast, output.dtype):
        what = f"'{output.name}' has values that {FLOATS[output.dtype]} can't hold"
        raise error("dtype", what, "Use bfloat16 or float32.")
    return cast


def generator(seed: int, name: str) -> np.random.Generator:
    """Random numbers that depend on a seed and a name only: not on the order of calls, the machine, or torch."""
    key = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key[:16], "little")))


def _not_finite(file: Path, tensor: Tensor) -> Exception:
    return error(
        file,
        f"'{tensor.name}' has weights that are NaN or infinite",
        "This model is broken: use another one, or download it again.",
    )
