"""llama.cpp's own quantizer, out of a prebuilt libllama such as npm's @node-llama-cpp/linux-x64: what ours is held
against. A program of its own, since what is wrong there ends the process.

    python llama_quantizer.py FOLDER IN.gguf OUT.gguf NUMBER [IMPORTANCE.npz or -] [THREADS]
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import numpy as np


class Parameters(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int32) for name in ("threads", "file_type", "output_type", "embeddings_type")),
        *(
            (name, ctypes.c_bool)
            for name in ("allow_requantize", "quantize_output", "only_copy", "pure", "keep_split", "dry_run")
        ),
        *((name, ctypes.c_void_p) for name in ("importance", "overrides", "types", "pruned")),
        ("largest_buffer", ctypes.c_size_t),
    )


class Importance(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char_p), ("values", ctypes.c_void_p), ("n", ctypes.c_size_t))


def quantize(folder: str, given: Path, made: Path, number: int, importance: Path | None = None) -> None:
    """Quantize a file with what is in this folder."""
    command = [sys.executable, __file__, folder, given, made, number, importance or "-"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def main(folder: str, given: str, made: str, number: str, importance: str = "-", threads: str = "1") -> int:
    file = next(file for name in ("libllama.so", "libllama.v*.so") for file in Path(folder).glob(name))
    library = ctypes.CDLL(str(file))
    library.llama_model_quantize_default_params.restype = Parameters
    library.llama_backend_init()
    parameters = library.llama_model_quantize_default_params()
    parameters.threads, parameters.file_type = int(threads), int(number)
    if importance != "-":
        arrays = {name: np.ascontiguousarray(values, np.float32) for name, values in np.load(importance).items()}
        entries = [Importance(name.encode(), values.ctypes.data, values.size) for name, values in arrays.items()]
        listed = (Importance * (len(entries) + 1))(*entries, Importance(None, None, 0))
        parameters.importance = ctypes.cast(listed, ctypes.c_void_p)
    return int(library.llama_model_quantize(given.encode(), made.encode(), ctypes.byref(parameters)))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
