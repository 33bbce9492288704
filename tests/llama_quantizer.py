"""llama.cpp's own quantizer, out of a prebuilt libllama such as npm's @node-llama-cpp/linux-x64: what ours is held
against. A program of its own, since what is wrong there ends the process.

    python llama_quantizer.py FOLDER IN.gguf OUT.gguf NUMBER [IMPORTANCE.npz, IMPORTANCE.gguf or -] [THREADS]

A matrix that is a GGUF file is read by llama.cpp's own reader, in its libllama-common.
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


class Text(ctypes.Structure):
    """A std::string, as libstdc++ has it."""

    _fields_ = (("letters", ctypes.c_void_p), ("n", ctypes.c_size_t), ("short", ctypes.c_char * 16))


class Vector(ctypes.Structure):
    """A std::vector."""

    _fields_ = (("begin", ctypes.c_void_p), ("end", ctypes.c_void_p), ("room", ctypes.c_void_p))

    def read(self, dtype: type[np.generic]) -> np.ndarray:
        return np.frombuffer(ctypes.string_at(self.begin, (self.end or 0) - (self.begin or 0)), dtype)


class Node(ctypes.Structure):
    """A node of a std::map: a red-black tree."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("color", "above", "left", "right")),
        ("name", Text), ("sums", Vector), ("counts", Vector),
    )  # fmt: skip


def read_importance(folder: str, file: str) -> dict[str, np.ndarray]:
    """Read an importance matrix with llama.cpp's own reader, and take the means as llama-quantize does."""
    library = ctypes.CDLL(str(Path(folder) / "libllama-common.so"))
    load = library._Z19common_imatrix_loadRKNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEER14common_imatrix
    load.restype = ctypes.c_bool
    found = (ctypes.c_uint64 * 64)()  # a std::map first: a comparison, the root's place, the number of nodes
    root = ctypes.addressof(found) + 8
    found[3] = found[4] = root
    letters = ctypes.create_string_buffer(file.encode())
    name = Text(ctypes.addressof(letters), len(file))
    assert load(ctypes.byref(name), ctypes.byref(found))
    means: dict[str, np.ndarray] = {}

    def walk(at: int | None) -> None:
        if at:
            node = Node.from_address(at)
            sums, counts = node.sums.read(np.float32), node.counts.read(np.int64)[:, None]
            means[ctypes.string_at(node.name.letters, node.name.n).decode()] = np.where(
                counts > 0, sums.reshape(len(counts), -1) / np.maximum(counts, 1).astype(np.float32), 1
            )
            walk(node.left)
            walk(node.right)

    walk(found[2])
    assert len(means) == found[5]
    return means


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
        given_means = read_importance(folder, importance) if importance.endswith(".gguf") else np.load(importance)
        arrays = {name: np.ascontiguousarray(values, np.float32) for name, values in given_means.items()}
        entries = [Importance(name.encode(), values.ctypes.data, values.size) for name, values in arrays.items()]
        listed = (Importance * (len(entries) + 1))(*entries, Importance(None, None, 0))
        parameters.importance = ctypes.cast(listed, ctypes.c_void_p)
    return int(library.llama_model_quantize(given.encode(), made.encode(), ctypes.byref(parameters)))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
