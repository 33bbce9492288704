"""The mixture in memory, to chat with: in 4 bit where there is a CUDA GPU, as it is otherwise.

transformers 5 keeps the experts of a layer in one tensor and quantises only what is `nn.Linear`: with its own
``load_in_4bit`` the experts, nearly all of the weights, would stay in 16 bit, and a 2x7B wouldn't fit a T4. So here
each layer is read, and quantised at once, before the next one is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers import __version__ as transformers_version

from lazymoe.families import FAMILIES
from lazymoe.families.types import LAYER
from lazymoe.source import open_source


def load(folder: Path) -> tuple[Any, Any]:
    """A finished mixture and its tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if not torch.cuda.is_available():
        return AutoModelForCausalLM.from_pretrained(folder, dtype="auto"), tokenizer
    if int(transformers_version.split(".")[0]) >= 5:
        return load_4bit(folder, "cuda", torch.float16), tokenizer
    from transformers import BitsAndBytesConfig

    four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float16)
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=four, device_map="cuda"), tokenizer


@torch.no_grad()
def load_4bit(folder: Path, device: str, dtype: torch.dtype) -> Any:
    """A finished mixture in transformers 5, the matrices of its layers in NF4 but for the routers', the rest in dtype.

    Takes memory for the result and one layer in dtype.
    """
    from bitsandbytes.nn.parametrize import replace_parameter_4bit

    source, config = open_source(str(folder)), AutoConfig.from_pretrained(folder)
    family = next(family for family in FAMILIES if family.name == config.model_type)
    files = {role: name for name, role in family.experts.items()}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.model.rotary_emb = type(model.model.rotary_emb)(config=config).to(device)

    for i, layer in enumerate(model.model.layers):
        prefix = LAYER.format(layer=i)
        layer.to_empty(device=device)

        def expert(role: str, number: int, prefix: str = prefix) -> torch.Tensor:
            return source.load(prefix + files[role].format(expert=number))

        for name, parameter in list(layer.named_parameters()):
            module, _, leaf = name.rpartition(".")
            if leaf == "gate_up_proj":  # [E, 2 * ffn, hidden]
                for number, both in enumerate(parameter):
                    for half, role in zip(both.chunk(2), ("gate", "up"), strict=True):
                        half.copy_(expert(role, number))
            elif leaf == "down_proj":  # [E, hidden, ffn]
                for number, one in enumerate(parameter):
                    one.copy_(expert("down", number))
            else:
                parameter.copy_(source.load(prefix + (family.router if name == "mlp.gate.weight" else name)))
            if parameter.dim() > 1 and name != "mlp.gate.weight":
                replace_parameter_4bit(layer.get_submodule(module), leaf, quant_type="nf4")

    for name, parameter in model.named_parameters():
        if parameter.is_meta and name in source.tensors:
            module, _, leaf = name.rpartition(".")
            value = source.load(name).to(device, dtype)
            setattr(model.get_submodule(module), leaf, torch.nn.Parameter(value, requires_grad=False))
    model.tie_weights()
    return model.eval()
