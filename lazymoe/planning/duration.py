"""About how long each way takes here: what it moves and computes, by rates that are measured for a moment."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import cached_property, partial
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

from lazymoe.checkpoint.source import Source
from lazymoe.files import existing
from lazymoe.planning.memory import ENOUGH, LIMIT, PASSES, reads_prompts
from lazymoe.planning.plan import Plan
from lazymoe.planning.prepared import Prepared
from lazymoe.planning.ways import Gguf, Way
from lazymoe.recipe.schema import STREAMED, Recipe

BEGIN = 5.0  # seconds: Python, torch, a tokenizer
LETTERS = 4  # bytes of text for a token, about
STEPS = 30  # of fitting a router in a layer, about
EFFICIENCY = 0.4  # of the processor's rate in one large product, what all of computing reaches
SAMPLE = 1 << 26  # bytes written to measure a disk
PARTS = 1 << 18, 1 << 21  # bytes of a request
SLOW = 1.0  # seconds that the first requests take over a network that needs no second look
LITTLE = 200_000_000  # bytes that are neither measured nor counted: they take seconds
QUICK = 1e12  # floating-point operations; as LITTLE


class Rates(NamedTuple):
    """How fast a machine is, a second.

    Attributes:
        network: bytes that arrive.
        disk: bytes that are written.
        processor: floating-point operations, of what is computed.
    """

    network: float | None
    disk: float | None
    processor: float | None


class Measured:
    """The rates of this machine: each measured when it is first asked for, and once; None if it doesn't answer."""

    def __init__(self, sources: Sequence[Source], folder: Path) -> None:
        self._sources, self._folder = sources, folder

    @cached_property
    def network(self) -> float | None:
        """Bytes that arrive."""
        with suppress(Exception):  # the merge will say what is wrong
            return _network(self._sources)
        return None

    @cached_property
    def disk(self) -> float | None:
        """Bytes that are written."""
        with suppress(Exception):
            return _disk(self._folder)
        return None

    @cached_property
    def processor(self) -> float | None:
        """Floating-point operations, of what is computed."""
        return EFFICIENCY * _processor()


def with_times(
    ways: Sequence[Way], prepared: Prepared, plan: Plan, rates: Rates | Measured, gguf: Gguf | None = None
) -> tuple[Way, ...]:
    """Estimate how long each way takes.

    Args:
        ways: to merge, all of them.
        prepared, plan: what is wanted.
        rates: how fast it is done.
        gguf: what is made, if not a checkpoint.
    """
    operations = _operations(prepared.prompts, plan)
    weights = sum({s.folder: sum(s.weights.values()) for s in plan.sources}.values())
    missing = max(way.download for way in ways)

    def taking(amount: float, little: float, rate: Callable[[], float | None]) -> float | None:
        if amount <= little:
            return 0.0
        measured = rate()
        return amount / measured if measured else None

    def timed(way: Way) -> Way:
        moved = (gguf.nbytes if gguf else plan.nbytes) + weights - (missing - way.download)
        parts = [
            taking(way.brought, LITTLE, lambda: rates.network),
            taking(moved if plan.nbytes > LITTLE else 0, LITTLE, lambda: rates.disk),
            taking(operations, QUICK, lambda: rates.processor),
            gguf.seconds if gguf else 0.0,
        ]
        known = [part for part in parts if part is not None]
        seconds = BEGIN + sum(known) if len(known) == len(parts) else None
        return replace(way, seconds=seconds, upload_seconds=taking(way.upload, LITTLE, lambda: rates.network))

    return tuple(timed(way) for way in ways)


def _operations(recipe: Recipe, plan: Plan) -> float:
    """Count the floating-point operations of shared weights and routers, about."""
    base, width = plan.sources[0].config, plan.hidden_size
    shapes = plan.dense.layer_shapes(0, base).values()
    attention = sum(math.prod(shape) for shape in shapes)
    ffn = sum(math.prod(shape) for shape in plan.dense.ffn_shapes(base).values())
    groups = [side for e in recipe.every_expert[: plan.gates] for side in (e.positive, e.negative) if side]
    read = [_tokens(side) for side in groups]
    packed = sum(map(_packed, read))

    for_layer = 0.0
    if plan.shared == "regmean" or reads_prompts(recipe, plan):
        for_layer += packed * 2 * (attention + plan.top_k * ffn)
    for expert in plan.corrected:  # its own model, what its network reads and gives in the mixture, and the closed form
        own, inner = _packed(_tokens(recipe.experts[expert].positive)), ffn / (3 * width)
        small = min(own, inner)
        for_layer += own * 2 * (attention + 2 * ffn) + 2 * own * inner * small + small**3 + 4 * width * inner * small
    if plan.shared == "regmean":
        squares = sum(shape[0] * shape[1] ** 2 for shape in shapes if len(shape) == 2)
        for_layer += plan.experts * 4 * squares + packed * 4 * width**2
    if recipe.gate_mode == "fit":
        for_layer += packed * STEPS * 4 * width * plan.experts
    elif recipe.gate_mode in STREAMED:
        for_layer += sum(read) * 2 * (attention + ffn)
    head = 4 * plan.experts * int(base["vocab_size"]) * width**2 if plan.shared == "regmean" else 0
    return plan.layers * for_layer + head


def _tokens(texts: Sequence[str]) -> float:
    """Count the tokens of texts, about."""
    return sum(len(text.encode(errors="replace")) for text in texts) / LETTERS


def _packed(tokens: float) -> float:
    """Count the tokens of the sequences that so many are joined into, about."""
    return min(LIMIT, max(tokens, min(PASSES * tokens, ENOUGH)))


def _network(sources: Sequence[Source]) -> float | None:
    """Measure how fast a large file that is missing here arrives, in parts of it, in bytes per second; None if none is
    missing."""
    from lazymoe.hub.downloading import AT_ONCE

    missing = [(s.missing[file], file, s.origin.ranges) for s in sources if s.origin for file in s.missing]
    size, file, ranges = max(missing, key=lambda m: m[0], default=(0, "", None))
    if ranges is None:
        return None
    took = []
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for part in PARTS:  # two sizes, so that what each request takes beside its bytes falls out
            places = range(0, max(size - part, 1), max((size - part) // AT_ONCE, 1))[:AT_ONCE]
            begin = time.perf_counter()
            list(pool.map(partial(ranges.read, file), places, repeat(part)))
            took.append(time.perf_counter() - begin)
            if took[0] > SLOW:
                return AT_ONCE * part / took[0]
    return AT_ONCE * max(PARTS[1] / took[1], (PARTS[1] - PARTS[0]) / max(took[1] - took[0], 1e-3))


def _disk(folder: Path) -> float:
    """Measure how fast a disk is written, in bytes per second."""
    block = os.urandom(SAMPLE // 16)
    with tempfile.TemporaryFile(dir=existing(folder)) as f:
        begin = time.perf_counter()
        for _ in range(16):
            f.write(block)
        f.flush()
        os.fsync(f.fileno())
        return SAMPLE / (time.perf_counter() - begin)


def _processor() -> float:
    """Measure how fast matrices are multiplied where computing is done, in floating-point operations per second."""
    if shutil.which("nvidia-smi"):
        with suppress(RuntimeError):
            import torch

            if torch.cuda.is_available():
                return _timed(torch.ones(4096, 4096, device="cuda"), torch.cuda.synchronize)
    import numpy as np

    return _timed(np.ones((1024, 1024), np.float32), lambda: None)


def _timed(matrix: Any, wait: Callable[[], None]) -> float:
    """Measure how fast a square matrix is multiplied with itself; ``wait`` returns when all products are there."""
    matrix @ matrix  # the first one takes longer
    wait()
    begin = time.perf_counter()
    for _ in range(4):
        matrix @ matrix
    wait()
    return float(4 * 2 * matrix.shape[0] ** 3 / (time.perf_counter() - begin))
