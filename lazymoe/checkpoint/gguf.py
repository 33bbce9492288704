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
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lazymoe.checkpoint.gguf_header import CutError, inspect
from lazymoe.checkpoint.lfs import refuse_pointer
from lazymoe.checkpoint.source import CARD
from lazymoe.checkpoint.tensors import FLOATS, Span, TensorInfo
from lazymoe.errors import error
from lazymoe.files import cache, is_sealed, readable, seal_of, settle, stamp, write_whole

if TYPE_CHECKING:
    import torch

SEALS = "seals.json"  # in the folder of config and tokenizer: what its other files are known by
HEAD = 1 << 23  # bytes of a file to begin with: names and merges of 128 thousand tokens take nearly as many
SPLIT = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
PLAIN = {"F32": "F32", "F16": "F16", "BF16": "BF16"}  # its types that aren't quantized, to safetensors' names
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
    mapped, _ = _reader(known, reader.folder, stamp(known))
    stored = next(t for t in mapped.tensors if t.name == reader.name)
    nbytes = stored.data.nbytes // len(stored.data)  # of a row
    lies = Span(reader.file, int(stored.data_offset) + first * nbytes, rows * nbytes)
    return Rows(stored.tensor_type.name, lies, rows)


class Opened(NamedTuple):
    """What a GGUF file holds: the folder of its config and tokenizer, the config, its tensors by transformers' names,
    and the file's names of those that transformers doesn't read."""

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, TensorInfo]
    unread: tuple[str, ...]


def bring_head(name: str, size: int, read: Callable[[int, int], bytes | bytearray]) -> Path:
    """Bring as much of a GGUF file as it says of itself.

    Args:
        name: what tells it from all others.
        size: of the file, in bytes.
        read: gives bytes of it, by the first one's offset and how many they are.

    Returns:
        A file as long as that one, a hole where its weights are.
    """
    head = cache() / f"gguf-{hashlib.sha256(name.encode()).hexdigest()[:16]}.head"
    if not head.exists():
        head.parent.mkdir(parents=True, exist_ok=True)
        temporary = head.with_name(f"{head.name}.{os.getpid()}")
        try:
            with open(temporary, "wb") as f:
                length = 0
                while length < size and not (length and _has_all(temporary)):
                    more = min(size, max(HEAD, 2 * length)) - length
                    f.write(read(length, more))
                    f.flush()
                    length += more
                f.truncate(size)
            settle(temporary, head)
        finally:
            temporary.unlink(missing_ok=True)
    return head


def _has_all(beginning: Path) -> bool:
    """Tell whether there is no need to read on: the beginning of a file has its metadata, or can't be one's."""
    try:
        inspect(beginning)
    except CutError:
        return False
    except ValueError:
        pass  # said when it is opened
    return True


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
        inspect(known)
        folder = _settled(known, file.parent / CARD)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return Opened(folder, config, *_tensors(file, folder, known))
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


def _tensors(file: Path, folder: Path, head: Path) -> tuple[dict[str, TensorInfo], tuple[str, ...]]:
    """List what a file holds as its head says, by transformers' names, and the names of what transformers doesn't
    read."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import get_gguf_hf_weights_map

    reader, processor = _reader(head, folder, stamp(head))
    with torch.device("meta"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    names = get_gguf_hf_weights_map(model, processor)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    tensors = {}
    for tensor in reader.tensors:
        if name := names.get(tensor.name):
            dtype, shape = PLAIN.get(tensor.tensor_type.name, "F32"), shapes[name]
            width = shape[1] if _is_by_rows(tensor.name, reader) else None
            tensors[name] = TensorInfo(name, dtype, shape, Dequantized(file, folder, tensor.name, dtype, width, head))
    return tensors, tuple(tensor.name for tensor in reader.tensors if tensor.name not in names)


def _is_by_rows(name: str, reader: Any) -> bool:
    """Tell whether a tensor of a file is a matrix whose rows are those of the model."""
    stem, _, kind = name.rpartition(".")
    architecture = reader.fields["general.architecture"].contents()
    return kind == "weight" and stem.rpartition(".")[2] in BY_ROWS and architecture not in TRANSPOSED


@functools.lru_cache(maxsize=16)
def _reader(file: Path, folder: Path, stamped: tuple[object, ...]) -> tuple[Any, Any]:
    """Map the file, and find what transformers does to its tensors; its time of change tells a new file from an old."""
    from gguf import GGUFReader
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor

    reader = GGUFReader(file)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    architecture = reader.fields["general.architecture"].contents()
    kind: Any = TENSOR_PROCESSORS.get(architecture, TensorProcessor)
    return reader, kind(config=config)


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

    reader, processor = _reader(tensor.file, tensor.folder, stamped)
    stored = next(t for t in reader.tensors if t.name == tensor.name)
    data = stored.data if rows is None else stored.data[rows[0] : rows[1]]
    values = dequantize(data, stored.tensor_type)
    if rows is None:
        processed = processor.process(weights=values, name=tensor.name, tensor_key_mapping={}, parsed_parameters={})
        values = processed.weights
    return torch.from_numpy(values.copy()).to(getattr(torch, FLOATS[tensor.dtype]))
