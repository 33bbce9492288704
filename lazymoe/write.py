"""Writing the plan's shards. Knows safetensors and nothing else: not what an expert is, nor how a router is made.

Everything goes through in blocks, read once, looked at for NaN and written, so that memory stays the same for models of
any size. A shard gets its final name only when it is complete, so that a rerun can go on from there.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lazymoe.errors import error
from lazymoe.floats import encode, finite
from lazymoe.header import BITS, FLOATS, Tensor, within, write_header
from lazymoe.plan import Computed, Constant, Output, Piece, Plan
from lazymoe.progress import Progress
from lazymoe.source import read_elements, read_into

if TYPE_CHECKING:
    import torch

THREADS = 2  # one reads and looks for NaN while the other writes
BLOCK = 1 << 20  # elements that go through arithmetic at a time
COPY = 1 << 18  # bytes copied at a time; they stay in a core's cache from the reading to the writing


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
    header = write_header((o.name, o.dtype, o.shape) for o in outputs)
    path.write_bytes(header)
    at, done = len(header), 0
    with ThreadPoolExecutor(THREADS) as pool:
        jobs = []
        for output in outputs:
            for number, part in enumerate(output.parts):
                if isinstance(part, Constant):
                    blocks = _constant(output, part)
                elif isinstance(part, Computed):
                    where = within(computed[part.name], part.start, part.elements)
                    if part.scale == 1:
                        blocks = _copied(path.parent, where, at)
                    else:
                        blocks = _scaled(output, path.parent, where, part.scale)
                elif part.copied(output.dtype):
                    where = within(part.tensor, part.start, part.elements)
                    blocks = _copied(plan.sources[part.source].folder, where, at)
                else:
                    blocks = _transformed(plan, output, part, generator(seed, f"{output.name}:{number}"))
                jobs.append(pool.submit(_write_blocks, path, at, blocks))
                at += part.elements * BITS[output.dtype] // 8
        try:
            for job in jobs:
                moved(done := done + job.result())
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _write_blocks(path: Path, at: int, blocks: Iterable[np.ndarray]) -> int:
    """Write blocks of bytes one after the other from a place in a file on; how many bytes these were."""
    with open(path, "r+b", buffering=0) as f:
        f.seek(at)
        for block in blocks:
            view = memoryview(block)
            while view:
                view = view[f.write(view) :]
        return f.tell() - at


def _constant(output: Output, part: Constant) -> Iterator[np.ndarray]:
    """One value, many times."""
    yield encode(np.full(part.elements, part.value), output.dtype)


def _scaled(output: Output, folder: Path, computed: Tensor, factor: float) -> Iterator[np.ndarray]:
    """A small tensor that was computed, multiplied."""
    yield _cast(output, read_elements(folder, computed, 0, computed.elements).float() * factor)


def _copied(folder: Path, tensor: Tensor, at: int) -> Iterator[np.ndarray]:
    """A tensor's bytes as they lie, to be written from ``at`` on: every block but the first at a multiple of its size,
    since pages that a write fills whole cost less. Each is overwritten by the next.

    Raises:
        LazyMoEError: at the first weight that is NaN or infinite.
    """
    file, left = folder / tensor.file, tensor.nbytes
    buffer = np.empty(COPY, np.uint8)
    with open(file, "rb", buffering=0) as f:
        f.seek(tensor.offset or 0)
        while left:
            block = buffer[: min(COPY - at % COPY, left)]
            read_into(f, memoryview(block))
            if not finite(block, tensor.dtype):
                raise _not_finite(file, tensor)
            yield block
            at, left = at + len(block), left - len(block)


def _transformed(plan: Plan, output: Output, piece: Piece, random: np.random.Generator) -> Iterator[np.ndarray]:
    """Elements that are cast, scaled or noised, a block at a time.

    Raises:
        LazyMoEError: at the first weight that is NaN or infinite.
    """
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
        yield _cast(output, block)


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
