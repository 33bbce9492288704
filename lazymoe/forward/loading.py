"""A finished mixture in memory: in its own dtype, or in 4 or 8 bit."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers import __version__ as transformers_version

from lazymoe.errors import error
from lazymoe.files import absolute
from lazymoe.forward.device import pick_device
from lazymoe.forward.packing import load_packed
from lazymoe.output.folder import AGAIN, CONFIG, Finished, open_finished, trusted
from lazymoe.progress import Progress, silent

LEADING = (  # keys of a config.json that no mixture has, and that lead transformers to kernels, packages or other files
    "attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation",
    "quantization_config", "transformers_weights",
)  # fmt: skip


def load(
    folder: str | os.PathLike[str],
    bits: Literal[4, 8] | None = None,
    *,
    device: str | None = None,
    progress: Progress = silent,
) -> tuple[Any, Any]:
    """Load a finished mixture and its tokenizer.

    No code runs but LazyMoE's own modelling file, and that never for a tokenizer. Whatever else lies in the folder (an
    adapter, custom_generate/generate.py), transformers doesn't see.

    Args:
        folder: the mixture's.
        bits: 4 for the experts in 4 bit and attention in 8, packed layer by layer as it is read, so that there is never
            much more in memory than what stays; 8 for both in 8 bit; None for the mixture's own dtype.
        device: as torch names it; by default a CUDA device if there is one.
        progress: told of the layers that are packed, stage ``load``.

    Returns:
        The model and the tokenizer, those of transformers.

    Raises:
        OutputError: if the folder isn't a finished mixture, or transformers can't load it.
        RecipeError: if the recipe in it can't be read.
        LazyMoEError: if there is no such device, bits is none of these, or they are asked for and bitsandbytes isn't
            here or is too old, or the device has too little memory.
    """
    if bits not in (None, 4, 8):
        raise error("input.bits", "bits", f"there is no {bits} bit", "Say 4 or 8, or leave it out.")
    place, done = pick_device(device), open_finished(absolute(folder))
    if done.host.code and not trusted(done.folder):
        what = f"{done.host.code} is missing or isn't LazyMoE's own, or {CONFIG} names other code"
        raise error("output.damaged", done.folder, what, AGAIN)
    with _own_files(done) as own:
        try:
            return _load(own, bits, place, progress)
        except torch.cuda.OutOfMemoryError:
            remedy = "Load it with bits=4." if bits != 4 else "Load it with device='cpu'."
            raise error("input.memory", "device", f"'{place}' has too little memory for it", remedy) from None
        except (ValueError, OSError, LookupError, RuntimeError) as e:
            what = f"transformers {transformers_version} can't load it ({e or type(e).__name__})"
            remedy = f"Merge again, of models that it loads; a {done.host.name} needs {done.host.since} or newer."
            raise error("output.damaged", done.folder, what, remedy) from e


def _load(folder: Path, bits: int | None, device: str, progress: Progress) -> tuple[Any, Any]:
    """Load as `load` does, from a folder without anything of somebody else's."""
    trust = trusted(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if bits is None:
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", trust_remote_code=trust)
        return model.to(device), tokenizer
    dtype = _narrow(AutoConfig.from_pretrained(folder, trust_remote_code=trust).dtype, device)
    return load_packed(folder, bits, device, dtype, trust=trust, progress=progress), tokenizer


def _narrow(dtype: torch.dtype | None, device: str) -> torch.dtype:
    """Choose a dtype of 16 bit: the model's own, or bfloat16; float16 where the GPU hasn't got that."""
    if dtype == torch.float16 or (device.startswith("cuda") and torch.cuda.get_device_capability(device) < (8, 0)):
        return torch.float16
    return torch.bfloat16


@contextmanager
def _own_files(done: Finished) -> Iterator[Path]:
    """Give a folder of the same name with links to the mixture's own files alone."""
    folder = done.folder
    with tempfile.TemporaryDirectory() as above:
        own = Path(above) / folder.name
        for path in (*done.weights, *done.small):
            link = own / path.relative_to(folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            try:
                link.symlink_to(path.absolute())
            except OSError:  # Windows allows them to few
                link.hardlink_to(path)
        (own / CONFIG).unlink()
        (own / CONFIG).write_text(json.dumps({key: value for key, value in done.config.items() if key not in LEADING}))
        yield own
