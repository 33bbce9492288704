"""llama.cpp's own quantizer, out of a wheel: ggml in xllamacpp's library, or libgguf, which gives the same bytes."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from lazymoe.errors import error
from lazymoe.quantizing.gguf_file import row_bytes

# quantizes rows: type, float32 values [rows, width], bytes to fill [rows, bytes of a row], importance [width] or None
Quantize = Callable[[int, np.ndarray, np.ndarray, "np.ndarray | None"], None]


@functools.cache
def quantizer() -> Quantize:
    """Find what quantizes here. It lets other threads run meanwhile.

    Raises:
        LazyMoEError: if neither library is installed, or both without what is needed of them.
    """
    found = _from_xllamacpp() or _from_libgguf()
    if found is None:
        what = "quantizing takes llama.cpp's quantizer"
        remedy = "Install it: pip install xllamacpp, or on Windows pip install libgguf. F32, F16 and BF16 go without."
        raise error("input.quantizer", "TYPE", what, remedy)
    return found


def library(name: str) -> Any:
    """Find xllamacpp's library, which is llama.cpp; None if it isn't here. It is not imported: that would start it.

    Args:
        name: of a function that it must have.
    """
    spec = importlib.util.find_spec("xllamacpp")
    folders = spec.submodule_search_locations if spec else None
    for file in (file for folder in folders or () for file in Path(folder).glob("xllamacpp*.so")):
        with suppress(OSError, AttributeError):  # of another machine, or it doesn't show it
            found = ctypes.CDLL(str(file))
            getattr(found, name)
            return found
    return None


def _from_xllamacpp() -> Quantize | None:
    found = library("ggml_quantize_chunk")
    return found and _calling(found.ggml_quantize_chunk)


def _calling(chunk: Any) -> Quantize:
    """Call ggml's function with arrays."""
    pointer, long = ctypes.c_void_p, ctypes.c_int64
    chunk.argtypes, chunk.restype = [ctypes.c_int, pointer, pointer, long, long, long, pointer], ctypes.c_size_t

    def quantize(kind: int, values: np.ndarray, out: np.ndarray, importance: np.ndarray | None) -> None:
        weights = None if importance is None else importance.ctypes.data
        written = chunk(kind, values.ctypes.data, out.ctypes.data, 0, *values.shape, weights)
        assert written == out.nbytes

    return quantize


def _from_libgguf() -> Quantize | None:
    try:
        from libgguf import quantize_rows_into_raw
    except ImportError:
        return None
    ready: set[int] = set()
    lock = Lock()

    def quantize(kind: int, values: np.ndarray, out: np.ndarray, importance: np.ndarray | None) -> None:
        rows, width = values.shape
        if kind not in ready:
            with lock:  # it makes a type's tables when it first needs them, and two threads must not at once
                quantize_rows_into_raw(kind, values[:1], out[:1], 1, width, importance)
                ready.add(kind)
        written = quantize_rows_into_raw(kind, values, out, rows, width, importance)
        assert written == out.nbytes

    return quantize


def rate(kind: str) -> float:
    """Measure how many weights a thread quantizes in a second.

    Args:
        kind: the type that they get, none of `PLAIN`.

    Raises:
        LazyMoEError: as `quantizer`.
    """
    from gguf import GGMLQuantizationType

    values = np.random.default_rng(0).standard_normal((64, 1024), np.float32)
    out = np.empty((len(values), row_bytes(kind, values.shape[1])), np.uint8)
    begin = time.perf_counter()
    quantizer()(int(GGMLQuantizationType[kind]), values, out, np.ones(values.shape[1], np.float32))
    return values.size / (time.perf_counter() - begin)
