"""What llama.cpp makes of texts: the log-probabilities of their tokens by a GGUF file, out of xllamacpp's library.

It runs as a program of its own, since what is wrong there ends the process:

    python -m lazymoe.forward.llama FILE GIVEN.npz MADE.npz
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lazymoe.errors import error
from lazymoe.quantizing.native import library

STRUCTURE = 1024  # bytes, more than any of llama.cpp's structures of settings has: they are passed on as they come


class Told(NamedTuple):
    """What a model says of the tokens of texts, but for the first one of each: the log-probability of each, nats,
    float32 ``[n]``, and which token it would have chosen, int64 ``[n]``."""

    known: np.ndarray
    best: np.ndarray


def tell(file: Path, texts: Sequence[np.ndarray], progress: Callable[[int], None] = lambda _: None) -> Told:
    """Ask llama.cpp what it says of the tokens of texts.

    Args:
        file: the GGUF file; of several, the first.
        texts: the token ids of each ``[T]``, up to 512.
        progress: told of how many texts are done.

    Raises:
        LazyMoEError: if llama.cpp isn't installed, or can't run the file.
    """
    if library("llama_decode") is None:
        what = "running a GGUF file takes llama.cpp"
        raise error("input.runtime", file, what, "Install it: pip install xllamacpp (not on Windows).")
    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder) / "given.npz", Path(folder) / "made.npz"
        np.savez(given, ids=np.concatenate(texts).astype(np.int32), lengths=[len(text) for text in texts])
        command = [sys.executable, "-m", __name__, str(file), str(given), str(made)]
        paths = os.pathsep.join(path for path in sys.path if path)
        with open(Path(folder) / "errors", "w+b") as errors:
            surroundings = {**os.environ, "PYTHONPATH": paths}
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=surroundings) as process:
                try:
                    for done, _ in enumerate(process.stdout or (), 1):
                        progress(done)
                    failed = process.wait()
                except BaseException:
                    process.kill()
                    raise
            if failed:
                errors.seek(0)
                lines = errors.read().decode(errors="replace").strip().splitlines()
                what = f"llama.cpp can't run it ({lines[-1][:150] if lines else f'it ended with {failed}'})"
                raise error("input.runtime", file, what, "Make the file again, or update xllamacpp.")
        found = np.load(made)
        return Told(found["known"], found["best"])


class _Settings(ctypes.Structure):
    """One of llama.cpp's structures of settings, whatever is in it."""

    _fields_ = (("bytes", ctypes.c_byte * STRUCTURE),)


class _Batch(ctypes.Structure):
    _fields_ = (
        ("n", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


def _declared(llama: Any) -> Any:
    """Say what the functions take and give."""
    pointer, number = ctypes.c_void_p, ctypes.c_int32
    for name, gives, takes in (
        ("llama_model_default_params", _Settings, ()),
        ("llama_context_default_params", _Settings, ()),
        ("llama_model_load_from_file", pointer, (ctypes.c_char_p, _Settings)),
        ("llama_init_from_model", pointer, (pointer, _Settings)),
        ("llama_model_get_vocab", pointer, (pointer,)),
        ("llama_vocab_n_tokens", number, (pointer,)),
        ("llama_batch_init", _Batch, (number, number, number)),
        ("llama_set_n_threads", None, (pointer, number, number)),
        ("llama_decode", number, (pointer, _Batch)),
        ("llama_get_logits", ctypes.POINTER(ctypes.c_float), (pointer,)),
        ("llama_get_memory", pointer, (pointer,)),
        ("llama_memory_clear", None, (pointer, ctypes.c_bool)),
    ):
        function = getattr(llama, name)
        function.restype, function.argtypes = gives, takes
    return llama


def _run(file: str, given: str, made: str) -> None:
    """Be that program.

    Raises:
        SystemExit: with what went wrong.
    """
    llama = _declared(library("llama_decode"))
    quiet = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
    llama.llama_log_set(quiet, None)
    llama.llama_backend_init()
    model = llama.llama_model_load_from_file(file.encode(), llama.llama_model_default_params())
    if not model:
        sys.exit("it can't be loaded")
    context = llama.llama_init_from_model(model, llama.llama_context_default_params())
    if not context:
        sys.exit("there isn't enough memory")
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    llama.llama_set_n_threads(context, processors, processors)
    vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    asked = np.load(given)
    texts = np.split(asked["ids"], np.cumsum(asked["lengths"])[:-1])
    batch = llama.llama_batch_init(max(map(len, texts)), 0, 1)
    known, best = [], []
    for text in texts:
        batch.n = len(text)
        for i, token in enumerate(text.tolist()):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, 1
            batch.seq_id[i][0] = 0
        llama.llama_memory_clear(llama.llama_get_memory(context), True)
        if failed := llama.llama_decode(context, batch):
            sys.exit(f"it gave up with {failed}")
        logits = np.ctypeslib.as_array(llama.llama_get_logits(context), (len(text), vocabulary))[:-1]  # [T - 1, V]
        most = logits.max(-1, keepdims=True)
        total = most[:, 0] + np.log(np.exp(logits - most).sum(-1, dtype=np.float64))
        known.append(logits[np.arange(len(text) - 1), text[1:]] - total)
        best.append(logits.argmax(-1))
        print(len(text), flush=True)
    np.savez(made, known=np.concatenate(known).astype(np.float32), best=np.concatenate(best))


if __name__ == "__main__":
    _run(*sys.argv[1:])
