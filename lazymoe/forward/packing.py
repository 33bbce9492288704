"""A mixture in little memory: experts in bitsandbytes' NF4 (https://arxiv.org/abs/2305.14314), attention in 8 bit, the
rest in 16.

transformers quantizes only what is `nn.Linear`, and from version 5 on keeps the experts of a layer in one tensor: with
its own ``load_in_4bit`` nearly all of the weights would stay in 16 bit. So here each layer is read, and packed at once,
before the next one is; and of a layer's experts only the one that computes is unpacked.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from lazymoe.architectures.records import LAYER
from lazymoe.architectures.watching import layers_of, width_of
from lazymoe.errors import error
from lazymoe.forward.skeleton import Weights, allocate, unweighted
from lazymoe.planning.plan import BLOCK_4, BLOCK_8
from lazymoe.progress import Progress, silent, without_loading_bars

OLDEST = (0, 50)  # bitsandbytes with 4 bit in blocks of 32 on every device
AT_ONCE = 1 << 18  # weights that are packed at a time, whole blocks: on a CPU that takes 20 bytes for each


class Unpack(nn.Module):
    """What makes a matrix of its packed form: a parametrization, as torch calls it."""

    def __init__(self, unpack: Callable[[Tensor, Any], Tensor], state: Any) -> None:
        """Remember how.

        Args:
            unpack: takes what is packed and the state; a function of bitsandbytes.
            state: scales, shape and dtype.
        """
        super().__init__()
        self.unpack, self.state = unpack, state

    def forward(self, packed: Tensor) -> Tensor:
        """Unpack it: ``[N, K]`` in the dtype it had.

        Args:
            packed: uint8.
        """
        return self.unpack(packed, self.state)


class Stacked(nn.ModuleList):
    """The matrices of a layer's experts, packed, in place of a tensor ``[E, N, K]``: indexing it unpacks one."""

    def __getitem__(self, expert: Any) -> Any:
        """Unpack an expert's matrix ``[N, K]``.

        Args:
            expert: its number, or a tensor of that.
        """
        return super().__getitem__(int(expert)).weight


def pack(linear: nn.Linear | Conv1D, bits: int) -> None:
    """Pack the weight of a linear layer, in place; it is unpacked whenever it is asked for.

    No kernel of bitsandbytes multiplies with it: on some processors these take only matrices of certain sizes.

    Args:
        linear: the layer, its weight in floats and where it shall stay.
        bits: 4 or 8.
    """
    functional = _bitsandbytes()
    weight = linear.weight.data
    if bits == 4:
        packed, state = _pack_4bit(functional, weight)
        unpack = Unpack(functional.dequantize_4bit, state)
    else:
        packed, state = functional.quantize_blockwise(weight, blocksize=BLOCK_8)
        unpack = Unpack(functional.dequantize_blockwise, state)
    linear.weight = nn.Parameter(packed, requires_grad=False)
    register_parametrization(linear, "weight", unpack, unsafe=True)


def _pack_4bit(functional: Any, weight: Tensor) -> tuple[Tensor, Any]:
    """Pack a matrix ``[N, K]`` in NF4, with the scales of its blocks in 8 bit."""
    packed = torch.empty(-(-weight.numel() // 2), 1, dtype=torch.uint8, device=weight.device)
    scales = torch.empty(-(-weight.numel() // BLOCK_4), device=weight.device)
    flat = weight.flatten()
    for start in range(0, len(flat), AT_ONCE):
        part, state = functional.quantize_4bit(flat[start : start + AT_ONCE], blocksize=BLOCK_4, quant_type="nf4")
        packed[start // 2 :][: len(part)] = part
        scales[start // BLOCK_4 :][: len(state.absmax)] = state.absmax
    state.shape, state.offset, state.nested = weight.shape, scales.mean(), True
    state.absmax, state.state2 = functional.quantize_blockwise(scales - state.offset, blocksize=BLOCK_8)
    return packed, state


def _bitsandbytes() -> Any:
    """Import what packs and unpacks.

    Raises:
        LazyMoEError: if it isn't here, or is too old.
    """
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # it misses what isn't needed here
    try:
        from bitsandbytes import __version__, functional

        if tuple(map(int, __version__.split(".")[:2])) >= OLDEST:
            return functional
    except ImportError:
        pass
    needed = f"bitsandbytes>={'.'.join(map(str, OLDEST))}"
    raise error("input.bitsandbytes", "bits", f"4 and 8 bit need {needed}", f"Run: pip install '{needed}'")


@torch.no_grad()
def load_packed(
    source: Weights,
    config: Any,
    experts: int,
    within: frozenset[str],
    bits: int,
    device: str,
    dtype: torch.dtype,
    *,
    trust: bool = False,
    progress: Progress = silent,
) -> Any:
    """Load a model with the matrices of its layers packed, but for those of routers and gates.

    Takes memory for the result and two layers in dtype.

    Args:
        source: the mixture, or a dense model; its weights must be on the disk.
        config: of it, as transformers has it.
        experts: how many there are; 1 for a dense model.
        within: names of the modules in a layer that hold them, or a dense model's feed-forward network.
        bits: 4 for feed-forward networks in 4 bit and attention in 8, or 8.
        device: where it goes, as torch names it.
        dtype: of the rest, and of what is computed.
        trust: whether the modelling code in the folder may run.
        progress: told of the layers that are there, stage ``load``.

    Raises:
        LazyMoEError: if bitsandbytes isn't here, or is too old.
    """
    _bitsandbytes()
    config._experts_implementation = "eager"  # the others want all experts in one tensor
    with unweighted():
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trust)
    _, layers = layers_of(model)
    prefix = next(name for name, module in model.named_modules() if module is layers)
    progress("load", 0, len(layers))
    for i in range(len(layers)):
        layer = layers[i] = _read_layer(model, f"{prefix}.{i}.", source, i, dtype).to(device)
        for path, module in list(layer.named_modules()):
            if hasattr(module, "layer_idx"):
                module.layer_idx = i
            _pack_own(module, bits if path.partition(".")[0] in within else 8, experts)
        progress("load", i + 1, len(layers))

    for name, tensor in model.state_dict().items():
        if tensor.is_meta and name in source.tensors:
            module_name, _, leaf = name.rpartition(".")
            value = source.load(name).to(device, dtype)
            setattr(model.get_submodule(module_name), leaf, nn.Parameter(value, requires_grad=False))
    model.tie_weights()
    for module in model.modules():
        for name, buffer in module._buffers.items():
            module._buffers[name] = buffer if buffer is None else buffer.to(device)
    return model.eval()


def _pack_own(module: nn.Module, bits: int, experts: int) -> None:
    """Pack what a module itself holds of matrices, in place. Routers and gates, of a row for each expert or of one,
    stay as they are."""
    if isinstance(module, (nn.Linear, Conv1D)) and width_of(module) > experts:
        pack(module, bits)
    for name, parameter in list(module._parameters.items()):
        if parameter is not None and parameter.dim() == 3 and len(parameter) == experts:  # [E, N, K]
            linears = [_linear(matrix) for matrix in parameter.data]
            delattr(module, name)
            for linear in linears:
                pack(linear, bits)
            setattr(module, name, Stacked(linears))


def _linear(matrix: Tensor) -> nn.Linear:
    """Give a matrix ``[N, K]`` a module to lie in."""
    linear = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(matrix, requires_grad=False)
    return linear


def _read_layer(model: Any, prefix: str, source: Weights, i: int, dtype: torch.dtype) -> Any:
    """Read one layer as transformers loads it, with what it does to names and shapes: that of a model of one layer."""
    layer, config = layers_of(model)[1][i], model.config
    if all(prefix + name in source.tensors for name in layer.state_dict()):  # it does nothing to them
        allocate(layer, "cpu")
        for name, tensor in layer.state_dict().items():
            tensor.copy_(source.load(prefix + name))
        return layer
    own = config.per_layer_config[i] if getattr(config, "is_heterogeneous", False) else config
    alone = copy.deepcopy(own)
    alone._experts_implementation = "eager"
    alone.num_hidden_layers, alone.vocab_size, alone.pad_token_id = 1, 1, None
    if getattr(config, "layer_types", None):
        alone.layer_types = [config.layer_types[i]]
    state = {
        LAYER.format(layer=0) + name.removeprefix(prefix): source.load(name)
        for name in source.tensors
        if name.startswith(prefix)
    }
    for name, tensor in source.tensors.items():
        if ".layers." not in name:  # these are read only once, at the end
            state[name] = torch.zeros(1 if tensor.shape[0] == config.vocab_size else tensor.shape[0], *tensor.shape[1:])
    with without_loading_bars():
        one, info = type(model).from_pretrained(
            None, config=alone, state_dict=state, dtype=dtype, output_loading_info=True
        )
    assert not any(info.values()), info
    return one.model.layers[0]
