"""GGUF files as sources: llama.cpp's format, read by transformers' table of names and the gguf package, a tensor at a
time. Config and tokenizer are written once, by transformers, into a folder of LazyMoE's cache.

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
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lazymoe.assets import cache
from lazymoe.errors import error
from lazymoe.header import FLOATS, Tensor
from lazymoe.recipe import Reference
from lazymoe.source import CARD, Source

if TYPE_CHECKING:
    import torch

SPLIT = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
PLAIN = {"F32": "F32", "F16": "F16", "BF16": "BF16"}  # its types that aren't quantised, to safetensors' names
BY_ROWS = ("token_embd.weight", "output.weight")  # as large as the vocabulary, and stored as they are


@dataclass(frozen=True)
class Gguf:
    """The tensors of a GGUF file.

    Attributes:
        dtype: what the weights are written in where a recipe doesn't say: the format's own are none of a checkpoint's.
        file: the file.
        tensors: as they read, by transformers' names; quantised ones in float32, which holds their values exactly.
        stored: transformers' names to the file's.
        unread: tensors that transformers doesn't read, by the file's names.
    """

    dtype: str
    file: Path
    tensors: dict[str, Tensor]
    stored: dict[str, str]
    unread: tuple[str, ...]

    def elements(self, folder: Path, name: str, start: int, stop: int) -> torch.Tensor:
        """Elements start to stop of one of the tensors, flat; folder is that of its config."""
        tensor, stored = self.tensors[name], self.stored[name]
        if stored not in BY_ROWS:
            return _values(self.file, folder, stored, tensor.dtype, None).reshape(-1)[start:stop]
        width = tensor.shape[1]
        first, last = start // width, -(-stop // width)
        return _values(self.file, folder, stored, tensor.dtype, (first, last)).reshape(-1)[
            start - first * width : stop - first * width
        ]


def open_gguf(reference: Reference, file: Path, revision: str | None, where: str) -> Source:
    """Open a GGUF file of a dense model.

    Args:
        reference: what the recipe calls it.
        file: where it is.
        revision: the commit, for one from the Hub.
        where: how messages name the place it was asked for.

    Raises:
        LazyMoEError: if it can't be read, or transformers doesn't know its architecture.
    """
    file = file.absolute()
    if SPLIT.search(file.name):
        raise error(where, f"'{file.name}' is one part of several", "Join them: llama-gguf-split --merge FIRST JOINED.")
    try:
        folder = _settled(file)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        packed = _packed(file, folder)
    except ImportError:
        what = "reading GGUF takes transformers 5 and the gguf package"
        raise error(where, what, "Install them: pip install -U 'transformers>=5' gguf.") from None
    except Exception as e:  # whatever a hostile or unknown file makes the two libraries raise
        why = str(e).splitlines()[0][:150] if str(e) else type(e).__name__
        what = f"'{file.name}' can't be read as a GGUF model ({why})"
        raise error(where, what, "Name the model it was made from.") from None
    return Source(
        reference, folder, revision, config, packed.tensors, {str(file): file.stat().st_size}, packed=packed
    )  # fmt: skip


def _settled(file: Path) -> Path:
    """The folder with the file's config and tokenizer as transformers reads them; made if it isn't there."""
    from transformers import AutoConfig, AutoTokenizer

    stat = file.stat()
    key = hashlib.sha256(f"{file} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:16]
    folder = cache() / f"gguf-{key}"
    if not folder.is_dir():
        temporary = folder.with_name(f"{folder.name}.{os.getpid()}")
        try:
            for kind in (AutoConfig, AutoTokenizer):
                kind.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False).save_pretrained(
                    temporary
                )
            if (file.parent / CARD).is_file():
                shutil.copy(file.parent / CARD, temporary)
            with suppress(OSError):  # another process may have been quicker
                os.replace(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _packed(file: Path, folder: Path) -> Gguf:
    """What the file holds, by transformers' names; folder is that of its config."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import get_gguf_hf_weights_map

    reader, processor = _reader(file, folder, file.stat().st_mtime_ns)
    with torch.device("meta"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    names = get_gguf_hf_weights_map(model, processor)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    tensors, stored = {}, {}
    for tensor in reader.tensors:
        if name := names.get(tensor.name):
            dtype = PLAIN.get(tensor.tensor_type.name, "F32")
            tensors[name], stored[name] = Tensor(name, dtype, shapes[name], str(file), None), tensor.name
    unread = tuple(tensor.name for tensor in reader.tensors if tensor.name not in names)
    return Gguf("BF16", file, tensors, stored, unread)


@functools.lru_cache(maxsize=16)
def _reader(file: Path, folder: Path, stamp: int) -> tuple[Any, Any]:
    """The file, mapped, and what transformers does to its tensors; its time of change tells a new file from an old."""
    from gguf import GGUFReader
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor

    reader = GGUFReader(file)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    architecture = reader.fields["general.architecture"].contents()
    return reader, TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=config)


@functools.lru_cache(maxsize=1)
def _values(file: Path, folder: Path, name: str, dtype: str, rows: tuple[int, int] | None) -> torch.Tensor:
    """A tensor, or some rows of it, as the file's model has it, in dtype."""
    import torch
    from gguf import dequantize

    reader, processor = _reader(file, folder, file.stat().st_mtime_ns)
    tensor = next(t for t in reader.tensors if t.name == name)
    data = tensor.data if rows is None else tensor.data[rows[0] : rows[1]]
    values = dequantize(data, tensor.tensor_type)
    if rows is None:
        values = processor.process(weights=values, name=name, tensor_key_mapping={}, parsed_parameters={}).weights
    return torch.from_numpy(values.copy()).to(getattr(torch, FLOATS[dtype]))
