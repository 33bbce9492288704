"""What a GGUF file says of a mixture: all that llama.cpp must know of it beside its tensors."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from lazymoe.checkpoint.source import CARD, GENERATION
from lazymoe.errors import error
from lazymoe.quantizing.description import add_description
from lazymoe.quantizing.scheme import Scheme
from lazymoe.quantizing.vocabulary import add_vocabulary

if TYPE_CHECKING:
    from gguf import GGUFWriter


def says(scheme: Scheme, folder: Path, title: str) -> GGUFWriter:
    """Work out what all files say of the mixture.

    Args:
        scheme: of the mixture.
        folder: with its config.json and tokenizer; its name is read too.
        title: what the model is called.

    Raises:
        OutputError: if llama.cpp has no such tokenizer, or a file of the mixture can't be read.
    """
    from gguf import GGUFWriter, Metadata, size_label

    told = GGUFWriter(None, scheme.architecture.name)
    routed, shared = _counted(scheme)
    try:
        metadata = Metadata.load(None, folder, title)  # of README.md and generation_config.json
    except Exception as e:  # whatever what a user put there makes the package raise
        what = f"its {CARD} or {GENERATION} can't be read ({str(e).splitlines()[0] if str(e) else type(e).__name__})"
        raise error("output.damaged", folder, what, "Mend it, or delete it.") from None
    metadata.size_label = size_label(routed + shared, shared, routed // scheme.experts, scheme.experts)  # 4x1.1B
    told.add_type("model")
    metadata.set_gguf_meta_model(told)
    add_description(told, scheme.architecture, scheme.host, scheme.config)
    add_vocabulary(told, folder, scheme.shapes["token_embd.weight"][0])
    return told


def of_shard(told: GGUFWriter, file_type: int, number: int, shards: int, tensors: int) -> GGUFWriter:
    """Make what one file says: the first of several says all, the others only which they are.

    Args:
        told: what all of them say.
        file_type: llama.cpp's number of it.
        number, shards: which of how many files it is.
        tensors: how many all of them have.
    """
    from gguf import GGML_QUANT_VERSION, GGUFWriter

    own = GGUFWriter(None, told.arch)
    if number == 0:
        own.kv_data[0] |= told.kv_data[0]
        own.add_quantization_version(GGML_QUANT_VERSION)
        own.add_file_type(file_type)
    if shards > 1:
        own.add_uint16("split.no", number)
        own.add_uint16("split.count", shards)
        own.add_int32("split.tensors.count", tensors)
    return own


def _counted(scheme: Scheme) -> tuple[int, int]:
    """Count the parameters of all experts, and those of all else."""
    sizes = {name: math.prod(shape) for name, shape in scheme.shapes.items()}
    routed = sum(size for name, size in sizes.items() if "_exps." in name)
    return routed, sum(sizes.values()) - routed
