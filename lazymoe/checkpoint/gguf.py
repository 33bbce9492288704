"""GGUF files as sources: llama.cpp's format, read by transformers' table of names and the gguf package, a tensor at a
time. Config and tokenizer are written once, by transformers, into a folder of LazyMoE's cache. A file on the Hub is
opened by its head: what it says of itself before the weights begin.

Needs transformers 5 and the gguf package (the extra ``lazymoe[gguf]``). Format:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lazymoe.checkpoint.gguf_header import inspect
from lazymoe.checkpoint.lfs import refuse_pointer
from lazymoe.checkpoint.source import CARD
from lazymoe.checkpoint.tensors import FLOATS, Span, TensorInfo
from lazymoe.errors import error
from lazymoe.files import cache, is_sealed, readable, seal_of, settle, stamp, write_whole

if TYPE_CHECKING:
    import torch

SEALS = "seals.json"  # in the folder of config and tokenizer: what its other files are known by
SPLIT = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
PLAIN = {"F32": "F32", "F16": "F16", "BF16": "BF16"}  # its types that aren't quantized, to safetensors' names
WHOLE = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "I8": np.int8, "I16": np.int16, "I32": np.int32,
         "I64": np.int64}  # types that numpy has, of the gguf package's names  # fmt: skip
# ends of the names of tensors that transformers takes row for row, but for architectures of which it transposes some
BY_ROWS = ("token_embd", "output", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
TRANSPOSED = ("gpt2", "bloom", "t5", "t5encoder")
DTYPE = (
    "BF16"  # what the weights are written in where a recipe doesn't say: the format's own are none of a checkpoint's
)


@dataclass(frozen=True)
class Dequantized:
    """Reads a tensor of a GGUF file; quantized ones in float32, which holds their values exactly.

    Attributes:
        file: the file.
        folder: of its config as transformers reads it.
        name: of the tensor in the file.
        dtype: the format's name of the dtype that it reads as.
        width: of its rows, where they are the model's own.
        head: what stands for the file while it isn't here, see `bring_head`.
    """

    file: Path = field(repr=False)  # a checkpoint is the same wherever it lies
    folder: Path = field(repr=False)
    name: str
    dtype: str
    width: int | None
    head: Path = field(repr=False)

    def span(self, start: int, stop: int) -> None:
        """Give nothing: its bytes mean something else."""

    def stamp(self) -> tuple[object, ...]:
        """Give what changes when the file does."""
        return stamp(self.file)

    def read(self, start: int, stop: int) -> torch.Tensor:
        """Read elements start to stop, flat: ``[stop - start]``."""
        if self.width is None:
            return _values(self, None).reshape(-1)[start:stop]
        first, last = start // self.width, -(-stop // self.width)
        return _values(self, (first, last)).reshape(-1)[start - first * self.width : stop - first * self.width]


class Rows(NamedTuple):
    """Rows as a GGUF file holds them: the type of their weights, where they lie, and how many there are."""

    kind: str
    lies: Span
    rows: int


def stored_rows(tensor: TensorInfo) -> Rows | None:
    """Find the bytes that some rows of a tensor have in a GGUF file; None if none holds them as rows of the model.

    Args:
        tensor: the tensor, or whole rows of it, flat.
    """
    reader = tensor.reader
    if not isinstance(reader, Dequantized) or reader.width is None:
        return None
    first, inside = divmod(tensor.start, reader.width)
    rows, left = divmod(tensor.elements, reader.width)
    if inside or left:
        return None
    known = reader.file if reader.file.exists() else reader.head
    stored = _mapped(known, stamp(known)).tensors[reader.name]
    nbytes = stored.data.nbytes // len(stored.data)  # of a row
    lies = Span(reader.file, stored.offset + first * nbytes, rows * nbytes)
    return Rows(stored.kind.name, lies, rows)


class Opened(NamedTuple):
    """What a GGUF file holds: the folder of its config and tokenizer, the config, its tensors by transformers' names,
    and the file's names of those that transformers doesn't read."""

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, TensorInfo]
    unread: tuple[str, ...]


def open_gguf(file: Path, where: str, head: Path | None = None) -> Opened:
    """Open a GGUF file of a dense model.

    Args:
        file: where it is, or will be.
        where: how messages name the place it was asked for.
        head: what stands for it while it isn't here.

    Raises:
        SourceError: if it can't be read, or transformers doesn't know its architecture.
    """
    known = head or file
    refuse_pointer(known, where)
    if SPLIT.search(file.name):
        what = f"'{file.name}' is one part of several"
        raise error("source.gguf", where, what, "Join them: llama-gguf-split --merge FIRST JOINED.")
    try:
        mapped = _mapped(known, stamp(known))
        folder = _settled(known, file.parent / CARD)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return Opened(folder, config, *_tensors(file, folder, mapped, known))
    except ImportError:
        what = "reading GGUF takes transformers 5 and the gguf package"
        raise error("source.gguf", where, what, "Install them: pip install -U 'transformers>=5' gguf.") from None
    except Exception as e:  # whatever a hostile or unknown file makes the two libraries raise
        why = str(e).splitlines()[0][:150] if str(e) else type(e).__name__
        what = f"'{file.name}' can't be read as a GGUF model ({why})"
        raise error("source.gguf", where, what, "Name the model it was made from.") from None


def _settled(file: Path, card: Path) -> Path:
    """Find the folder with a file's config and tokenizer as transformers reads them, and its card; make it if it isn't
    there."""
    from transformers import AutoConfig, AutoTokenizer

    stat = file.stat()
    key = hashlib.sha256(f"{file} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:16]
    folder = cache() / f"gguf-{key}"
    if not _is_sound(folder):
        shutil.rmtree(folder, ignore_errors=True)
        temporary = folder.with_name(f"{folder.name}.{os.getpid()}")
        try:
            for kind in (AutoConfig, AutoTokenizer):
                kind.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False).save_pretrained(
                    temporary
                )
            if card.is_file():
                shutil.copy(card, temporary)
            seals = {path.name: seal_of(path) for path in temporary.iterdir()}
            write_whole(temporary / SEALS, json.dumps(seals))
            with suppress(OSError):  # another process may have been quicker
                settle(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _is_sound(folder: Path) -> bool:
    """Tell whether a folder that was made before is as it was made."""
    seals = readable(folder / SEALS)
    return bool(seals) and all(is_sealed(folder / name, str(kept)) for name, kept in seals.items())


def _tensors(file: Path, folder: Path, mapped: Mapped, head: Path) -> tuple[dict[str, TensorInfo], tuple[str, ...]]:
    """List what a file holds, by transformers' names, and the names of what transformers doesn't read."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import get_gguf_hf_weights_map

    processor = _processor(mapped.architecture, folder)
    with torch.device("meta"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    names = get_gguf_hf_weights_map(_Whole(model), processor)
    if not mapped.tensors.keys() <= names.keys():
        names = get_gguf_hf_weights_map(model, processor)
    tensors = {}
    for stored_name, stored in mapped.tensors.items():
        if name := names.get(stored_name):
            dtype, shape = PLAIN.get(stored.kind.name, "F32"), shapes[name]
            width = shape[1] if _is_by_rows(stored_name, mapped.architecture) else None
            tensors[name] = TensorInfo(name, dtype, shape, Dequantized(file, folder, stored_name, dtype, width, head))
    return tensors, tuple(name for name in mapped.tensors if name not in names)


class _Whole:
    """A model without its modules: transformers goes through the names of each of these, and makes its table of names
    anew for it, where those of the whole nearly always are enough."""

    def __init__(self, model: Any) -> None:
        self.config, self.state_dict = model.config, model.state_dict

    def named_children(self) -> list[Any]:
        return []


def _is_by_rows(name: str, architecture: str) -> bool:
    """Tell whether a tensor of a file is a matrix whose rows are those of the model."""
    stem, _, kind = name.rpartition(".")
    return kind == "weight" and stem.rpartition(".")[2] in BY_ROWS and architecture not in TRANSPOSED


class Stored(NamedTuple):
    """A tensor in a file: the type of its weights, the gguf package's, its first byte, and its bytes, mapped: of
    quantized rows uint8 ``[..., bytes of a row]``."""

    kind: Any
    offset: int
    data: np.ndarray


class Mapped(NamedTuple):
    """A file: its architecture, and its tensors by name."""

    architecture: str
    tensors: dict[str, Stored]


@functools.lru_cache(maxsize=16)
def _mapped(file: Path, stamped: tuple[object, ...]) -> Mapped:
    """Map a file; its time of change tells a new one from an old.

    The gguf package's reader makes objects of each word of the vocabulary, which takes it seconds.
    """
    from gguf import GGMLQuantizationType
    from gguf.quants import quant_shape_to_byte_shape

    head, mapped, tensors = inspect(file), np.memmap(file, mode="r"), {}
    for name, shape, number, offset in head.tensors:
        kind = GGMLQuantizationType(number)
        dtype = WHOLE.get(kind.name)
        held = shape if dtype else quant_shape_to_byte_shape(shape, kind)
        nbytes = math.prod(held) * np.dtype(dtype or np.uint8).itemsize
        data = mapped[offset : offset + nbytes]
        if len(data) < nbytes:
            raise ValueError("it ends within its tensors")
        tensors[name] = Stored(kind, offset, data.view(dtype or np.uint8).reshape(held))
    return Mapped(head.architecture, tensors)


@functools.lru_cache(maxsize=16)
def _processor(architecture: str, folder: Path) -> Any:
    """Give what transformers does to tensors of files of an architecture, by the config in a folder."""
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor

    kind: Any = TENSOR_PROCESSORS.get(architecture, TensorProcessor)
    return kind(config=json.loads((folder / "config.json").read_text(encoding="utf-8")))


def _values(tensor: Dequantized, rows: tuple[int, int] | None) -> torch.Tensor:
    """Read a tensor, or some rows of it, as the file's model has it."""
    return _kept(tensor, rows, stamp(tensor.file))


@functools.lru_cache(maxsize=1)
def _kept(tensor: Dequantized, rows: tuple[int, int] | None, stamped: tuple[object, ...]) -> torch.Tensor:
    """Dequantize a tensor, or some rows of it, and keep the last one.

    The file's time of change keeps a tensor that was written anew from being taken for the old.
    """
    import torch
    from gguf import dequantize

    mapped = _mapped(tensor.file, stamped)
    stored = mapped.tensors[tensor.name]
    values = dequantize(stored.data if rows is None else stored.data[rows[0] : rows[1]], stored.kind)
    if rows is None:
        processed = _processor(mapped.architecture, tensor.folder).process(
            weights=values, name=tensor.name, tensor_key_mapping={}, parsed_parameters={}
        )
        values = processed.weights
    return torch.from_numpy(values.copy()).to(getattr(torch, FLOATS[tensor.dtype]))
