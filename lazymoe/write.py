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
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lazymoe.errors import error
from lazymoe.header import FLOATS, Tensor, within, write_header
from lazymoe.plan import Computed, Constant, Output, Piece, Plan
from lazymoe.progress import Progress
from lazymoe.source import read_elements

BLOCK = 1 << 22  # elements that go through arithmetic at a time
SCAN = 1 << 20  # bytes looked at for NaN at a time; fits a core's cache
COPY = 1 << 24  # bytes that the kernel moves at a time, between two steps of the progress
FATAL = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG)  # copying in another way would not help

# bits of a float, and the bit pattern of its infinity, by the format's name of the dtype
INFINITY = {"F64": (64, 0x7FF << 52), "F32": (32, 0xFF << 23), "F16": (16, 0x1F << 10), "BF16": (16, 0xFF << 7)}


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
    with ThreadPoolExecutor(1) as scanner, open(path, "wb", buffering=0) as f:
        _write(f, write_header((o.name, o.dtype, o.shape) for o in outputs))
        for output in outputs:
            for number, part in enumerate(output.parts):
                if isinstance(part, Constant):
                    steps = _fill(output, part, f)
                elif isinstance(part, Computed):
                    where = within(computed[part.name], part.start, part.elements)
                    if part.scale == 1:
                        steps = _copy(path.parent / where.file, where.offset or 0, where.nbytes, f)
                    else:
                        steps = _scale(output, path.parent, where, part.scale, f)
                elif part.copied(output.dtype):
                    where, folder = within(part.tensor, part.start, part.elements), plan.sources[part.source].folder
                    checks.append(scanner.submit(_scan, folder / where.file, where))
                    steps = _copy(folder / where.file, where.offset or 0, where.nbytes, f)
                else:
                    steps = _transform(plan, output, part, generator(seed, f"{output.name}:{number}"), f)
                for n in steps:
                    moved(done := done + n)
                while checks and checks[0].done():
                    checks.pop(0).result()  # raises what the scan found, early
        for check in checks:
            check.result()


def _fill(output: Output, constant: Constant, target: BinaryIO) -> Iterator[int]:
    """Append one value many times; yields how many bytes."""
    import torch

    one = torch.tensor([constant.value], dtype=getattr(torch, FLOATS[output.dtype])).view(torch.uint8).numpy().tobytes()
    _write(target, one * constant.elements)
    yield len(one) * constant.elements


def _scale(output: Output, folder: Path, computed: Tensor, factor: float, target: BinaryIO) -> Iterator[int]:
    """Append a small tensor that was computed, multiplied; yields how many bytes."""
    array = _cast(output, read_elements(folder, computed, 0, computed.elements).float() * factor)
    _write(target, memoryview(array))
    yield array.nbytes


def _copy(source: Path, offset: int, length: int, target: BinaryIO) -> Iterator[int]:
    """Append bytes of a file to another, inside the kernel where it can; yields how many, as it goes."""
    with open(source, "rb", buffering=0) as f:
        f.seek(offset)
        in_kernel = hasattr(os, "copy_file_range")
        while length:
            n = 0
            if in_kernel:
                try:
                    n = os.copy_file_range(f.fileno(), target.fileno(), min(length, COPY))
                except OSError as e:
                    if e.errno in FATAL:
                        raise
            if not n:  # another kernel, or two file systems that it can't copy between
                in_kernel = False
                block = f.read(min(length, COPY))
                _write(target, block)
                n = len(block)
            if not n:
                raise error(source, "the file ended early; was it changed during the merge?", "Download it again.")
            length -= n
            yield n


def _write(f: BinaryIO, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[f.write(view) :]


def _scan(file: Path, tensor: Tensor) -> None:
    """Look for NaN and infinity in a tensor that the kernel copies unseen.

    In IEEE formats these are the bit patterns at and above the largest exponent, whatever the sign, so two maxima over
    integers tell: of the signed ones for the positive, of the unsigned ones for the negative numbers.
    """
    bits, infinity = INFINITY[tensor.dtype]
    signed, unsigned = np.dtype(f"i{bits // 8}"), np.dtype(f"u{bits // 8}")
    with open(file, "rb", buffering=SCAN) as f:
        f.seek(tensor.offset or 0)
        for start in range(0, tensor.nbytes, SCAN):
            block = np.frombuffer(f.read(min(SCAN, tensor.nbytes - start)), signed)
            if not block.size:
                return  # the file was cut short under our hands: the copy tells
            if block.max() >= infinity or block.view(unsigned).max() >= infinity + (1 << (bits - 1)):
                raise _not_finite(file, tensor)


def _transform(
    plan: Plan, output: Output, piece: Piece, random: np.random.Generator, target: BinaryIO
) -> Iterator[int]:
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
        array = _cast(output, block)
        _write(target, memoryview(array))
        yield array.nbytes


def _cast(output: Output, block: Any) -> Any:
    """A finite tensor's bytes in the output's dtype, where it fits."""
    import torch

    cast = block.to(getattr(torch, FLOATS[output.dtype]))
    if not torch.isfinite(cast).all():
        what = f"'{output.name}' has values that {FLOATS[output.dtype]} can't hold"
        raise error("dtype", what, "Use bfloat16 or float32.")
    return cast.view(torch.uint8).numpy()


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
