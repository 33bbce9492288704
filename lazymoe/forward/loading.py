"""The mixture in memory, to chat with, or one of its models: in 4 bit where there is a CUDA GPU, as it is otherwise.

transformers 5 keeps the experts of a layer in one tensor and quantizes only what is `nn.Linear`: with its own
``load_in_4bit`` the experts, nearly all of the weights, would stay in 16 bit, and a 2x7B wouldn't fit a T4. So here
each layer is read, and quantized at once, before the next one is.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers import __version__ as transformers_version

from lazymoe.architectures.records import LAYER
from lazymoe.checkpoint.opening import open_folder
from lazymoe.checkpoint.source import GENERATION, Source
from lazymoe.errors import error
from lazymoe.forward.stream import own_buffers, settled_config
from lazymoe.output.folder import CONFIG, open_finished, readable, trusted

EXPERTS = ("gate_up_proj", "down_proj")  # parameters that hold a matrix for each expert
LEADING = (  # keys of a config.json that no model here needs, that lead transformers to kernels, packages, other files
    "attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation",
    "quantization_config", "transformers_weights",
)  # fmt: skip


def load(folder: Path) -> tuple[Any, Any]:
    """Load a finished mixture and its tokenizer: in 4 bit where there is a CUDA GPU, in its own dtype otherwise.

    No code runs but LazyMoE's own modelling file, and that never for a tokenizer. Whatever else lies in the folder (an
    adapter, custom_generate/generate.py), transformers doesn't see.

    Args:
        folder: the mixture's.

    Returns:
        The model, and the tokenizer.

    Raises:
        OutputError: if the folder isn't a finished mixture.
        ValueError, OSError: if transformers can't load it.
    """
    with _own_files(folder) as own:
        return _load(own)


@contextmanager
def _own_files(folder: Path) -> Iterator[Path]:
    """Give a folder of the same name with links to the mixture's own files alone."""
    done = open_finished(folder)
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


def _load(folder: Path) -> tuple[Any, Any]:
    """Load as `load` does, from a folder without anything of somebody else's."""
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    trust = trusted(folder)
    if not torch.cuda.is_available():
        return AutoModelForCausalLM.from_pretrained(folder, dtype="auto", trust_remote_code=trust), tokenizer
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust)
    if int(transformers_version.split(".")[0]) >= 5 and not hasattr(config, "auto_map"):
        return load_4bit(folder, "cuda", torch.float16), tokenizer
    from transformers import BitsAndBytesConfig

    four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float16)
    model = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=four, device_map="cuda", trust_remote_code=trust
    )
    return model, tokenizer


@torch.no_grad()
def load_dense(source: Source, dtype: torch.dtype) -> Any:
    """Load a model of a recipe, however its weights are stored: in 4 bit where a mixture would be, in dtype otherwise.

    Args:
        source: the model; its weights must be on the disk.
        dtype: of the weights where there is no CUDA GPU.

    Raises:
        SourceError: if transformers can't make a model of its config, or it lacks weights.
    """
    config = settled_config(replace(source, config={k: v for k, v in source.config.items() if k not in LEADING}))
    if torch.cuda.is_available() and _fours():
        model = quantized(source, config, "cuda", torch.float16)
    else:
        kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        state = {name: source.load(name).to(dtype) for name in source.tensors}
        model, info = kind.from_pretrained(None, config=config, state_dict=state, dtype=dtype, output_loading_info=True)
        if missing := sorted(info["missing_keys"]):
            what = f"it lacks '{missing[0]}', which a model of its config.json has"
            raise error("source.incomplete", source.reference, what, "Download it again.")
        model = model.to("cuda", torch.float16) if torch.cuda.is_available() else model
    ends = readable(source.folder / GENERATION).get("eos_token_id")
    if isinstance(ends, int) or (isinstance(ends, list) and all(isinstance(end, int) for end in ends)):
        model.generation_config.eos_token_id = ends
    return model.eval()


def _fours() -> bool:
    """Tell whether a dense model can be quantized here."""
    return int(transformers_version.split(".")[0]) >= 5 and find_spec("bitsandbytes") is not None


def load_4bit(folder: Path, device: str, dtype: torch.dtype) -> Any:
    """Load a mixture of a class of transformers 5, the matrices of its layers in NF4 but for the routers'.

    Args:
        folder: the mixture's.
        device: where it goes, as torch names it.
        dtype: of the rest.
    """
    return quantized(open_folder(folder), AutoConfig.from_pretrained(folder, trust_remote_code=False), device, dtype)


@torch.no_grad()
def quantized(source: Source, config: Any, device: str, dtype: torch.dtype) -> Any:
    """Load a model of a class of transformers 5, the matrices of its layers in NF4 but for routers'.

    Takes memory for the result and two layers in dtype. NF4: https://arxiv.org/abs/2305.14314

    Args:
        source: the model; its weights must be on the disk.
        config: of it, as transformers has it.
        device: where it goes, as torch names it.
        dtype: of the rest.
    """
    from bitsandbytes.nn.parametrize import replace_parameter_4bit

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    for name, module in list(model.model.named_children()):
        if type(module).__name__.endswith("RotaryEmbedding"):
            setattr(model.model, name, type(module)(config=config).to(device))

    own_buffers(model, model.model.embed_tokens, device)
    for i in range(config.num_hidden_layers):
        layer = model.model.layers[i] = _read_layer(type(model), source, config, i, dtype).to(device)
        for path, module in list(layer.named_modules()):
            if hasattr(module, "layer_idx"):
                module.layer_idx = i
            for leaf, parameter in list(module.named_parameters(recurse=False)):
                matrix = isinstance(module, torch.nn.Linear) and parameter.dim() == 2
                if (matrix and not path.startswith("router.")) or leaf in EXPERTS:
                    replace_parameter_4bit(module, leaf, quant_type="nf4")

    for name, parameter in model.named_parameters():
        if parameter.is_meta and name in source.tensors:
            module_name, _, leaf = name.rpartition(".")
            value = source.load(name).to(device, dtype)
            setattr(model.get_submodule(module_name), leaf, torch.nn.Parameter(value, requires_grad=False))
    model.tie_weights()
    return model.eval()


def _read_layer(kind: Any, source: Source, config: Any, i: int, dtype: torch.dtype) -> Any:
    """Read one layer as transformers loads it, with what it does to names and shapes: that of a model of one layer."""
    own = config.per_layer_config[i] if getattr(config, "is_heterogeneous", False) else config
    alone = copy.deepcopy(own)
    alone.num_hidden_layers, alone.vocab_size, alone.pad_token_id = 1, 1, None
    if getattr(config, "layer_types", None):
        alone.layer_types = [config.layer_types[i]]
    prefix = LAYER.format(layer=i)
    state = {
        LAYER.format(layer=0) + name.removeprefix(prefix): source.load(name)
        for name in source.tensors
        if name.startswith(prefix)
    }
    for name, tensor in source.tensors.items():
        if ".layers." not in name:  # these are read only once, at the end
            state[name] = torch.zeros(1 if tensor.shape[0] == config.vocab_size else tensor.shape[0], *tensor.shape[1:])
    model, info = kind.from_pretrained(None, config=alone, state_dict=state, dtype=dtype, output_loading_info=True)
    assert not any(info.values()), info
    return model.model.layers[0]
