"""A finished mixture in memory, in its own dtype or in 4 or 8 bit; or one of the models that it is made of."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers import __version__ as transformers_version

from lazymoe.architectures.values import LEADING
from lazymoe.checkpoint.opening import open_folder
from lazymoe.checkpoint.source import GENERATION
from lazymoe.errors import error
from lazymoe.files import absolute, readable
from lazymoe.forward.device import pick_device
from lazymoe.forward.packing import load_packed
from lazymoe.forward.skeleton import Weights, settled_config
from lazymoe.output.folder import CONFIG, Finished, check_code, open_finished, trusted
from lazymoe.progress import Progress, silent


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
    check_code(done)
    with _own_files(done) as own:
        try:
            return _load(done, own, bits, place, progress)
        except torch.cuda.OutOfMemoryError:
            remedy = "Load it with bits=4." if bits != 4 else "Load it with device='cpu'."
            raise error("input.memory", "device", f"'{place}' has too little memory for it", remedy) from None
        except (ValueError, OSError, LookupError, RuntimeError) as e:
            what = f"transformers {transformers_version} can't load it ({e or type(e).__name__})"
            remedy = f"Merge again, of models that it loads; a {done.host.name} needs {done.host.since} or newer."
            raise error("output.damaged", done.folder, what, remedy) from e


def _load(done: Finished, folder: Path, bits: int | None, device: str, progress: Progress) -> tuple[Any, Any]:
    """Load as `load` does, from a folder without anything of somebody else's."""
    trust = trusted(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if bits is None:
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", trust_remote_code=trust)
        return model.to(device), tokenizer
    source, config = open_folder(folder), AutoConfig.from_pretrained(folder, trust_remote_code=trust)
    experts, within, dtype = len(done.recipe.experts), done.host.modules, _narrow(config.dtype, device)
    return load_packed(source, config, experts, within, bits, device, dtype, trust=trust, progress=progress), tokenizer


@torch.no_grad()
def load_dense(source: Weights, dtype: torch.dtype, bits: Literal[4] | None = None, device: str = "cpu") -> Any:
    """Load a model of a recipe, however its weights are stored.

    Args:
        source: the model; its weights must be on the disk.
        dtype: of the weights, or of what isn't packed.
        bits: 4 for 4 bit, as in `load`; None for dtype.
        device: where it goes, as torch names it.

    Raises:
        SourceError: if transformers can't make a model of its config, or it lacks weights.
        LazyMoEError: if bits are asked for and bitsandbytes isn't here, or is too old.
    """
    config = settled_config(source)
    if bits:
        within = frozenset({source.dense.module} if source.dense else ())
        model = load_packed(source, config, 1, within, bits, device, _narrow(dtype, device))
    else:
        kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        state = {name: source.load(name).to(dtype) for name in source.tensors}
        model, info = kind.from_pretrained(None, config=config, state_dict=state, dtype=dtype, output_loading_info=True)
        if missing := sorted(info["missing_keys"]):
            what = f"it lacks '{missing[0]}', which a model of its config.json has"
            raise error("source.incomplete", source.folder, what, "Download it again.")
        model = model.to(device)
    ends = readable(source.folder / GENERATION).get("eos_token_id")
    if isinstance(ends, int) or (isinstance(ends, list) and all(isinstance(end, int) for end in ends)):
        model.generation_config.eos_token_id = ends
    return model.eval()


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
