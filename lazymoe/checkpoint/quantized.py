"""Weights stored in fewer bits, read as what they stand for, a tensor at a time: no unpacked copy is made.

bitsandbytes' 4 bit (by that library) and 8 bit (row-wise int8), and FP8 with scales for blocks, rows or whole tensors:
these have one value for each weight, which is what transformers computes with. GPTQ, AWQ and others aren't read.
Formats: https://huggingface.co/docs/transformers/quantization/overview
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lazymoe.architectures.registry import dense_of
from lazymoe.checkpoint.tensors import CODES, FLOATS, TensorInfo
from lazymoe.errors import error

if TYPE_CHECKING:
    import torch

BESIDE = re.compile(  # what lies beside a packed weight, and belongs to it
    r"(?P<module>.+\.)(?:weight\.(?P<four>absmax|quant_map|nested_absmax|nested_quant_map|quant_state\.\w+)"
    r"|(?P<other>SCB|weight_format|weight_scale|weight_scale_inv|input_scale))"
)
BLOCK = (128, 128)  # weights that share a scale in FP8, where a config doesn't say


@dataclass(frozen=True)
class Quantized:
    """Reads a tensor that is stored in fewer bits.

    Attributes:
        dtype: the format's name of the dtype that it had before.
        shape: the shape that it had before.
        weight: the tensor as it is stored.
        beside: what lies beside it.
        block: weights that share a scale, where scales are for blocks.
    """

    dtype: str
    shape: tuple[int, ...]
    weight: TensorInfo
    beside: tuple[tuple[str, TensorInfo], ...]
    block: tuple[int, int]

    def span(self, start: int, stop: int) -> None:
        """Give nothing: its bytes mean something else."""

    def stamp(self) -> tuple[object, ...]:
        """Give what changes when one of the files does."""
        return tuple(tensor.reader.stamp() for tensor in (self.weight, *(part for _, part in self.beside)))

    def read(self, start: int, stop: int) -> torch.Tensor:
        """Read elements start to stop, flat: ``[stop - start]``.

        Raises:
            SourceError: if the packed weight and what lies beside it don't fit each other.
        """
        try:
            whole = _unpack(self, self.stamp())
        except (RuntimeError, ValueError, KeyError, AssertionError, StopIteration) as e:
            why = str(e).splitlines()[0][:100] if str(e) else type(e).__name__
            what, lies = f"'{self.weight.name}' can't be unpacked ({why})", self.weight.span()
            remedy = "Download it again, or name the unquantized model."
            raise error("source.broken", lies.path if lies else "model", what, remedy) from None
        return whole.reshape(-1)[start:stop]


def unpacked(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> tuple[str | None, dict[str, TensorInfo]]:
    """List all tensors of a checkpoint as they read: quantized ones as what they stand for.

    Args:
        config: its config.json.
        tensors: what its files hold, by name.

    Returns:
        The format's name of the dtype that quantized tensors had before, None if none is quantized or the architecture
        isn't known; and the tensors by name.

    Raises:
        ValueError: if what the config says of it can't be meant; the message names it.
    """
    beside: dict[str, dict[str, TensorInfo]] = {}
    for key, tensor in tensors.items():
        if (match := BESIDE.fullmatch(key)) and f"{match['module']}weight" in tensors:
            beside.setdefault(f"{match['module']}weight", {})[match["four"] or match["other"]] = tensor
    dense = dense_of(config)
    if not beside or dense is None:
        return None, dict(tensors)
    stated = str(config.get("dtype") or config.get("torch_dtype")).removeprefix("torch.")
    dtype = CODES.get(stated, "BF16")
    backbone, ffn = dense.all_shapes(config)
    shapes = backbone | ffn
    block = _block(config.get("quantization_config"))
    gone = {tensor.name for parts in beside.values() for tensor in parts.values()}
    found = {name: tensor for name, tensor in tensors.items() if name not in gone}
    for name, parts in beside.items():  # 4 bit weights lie flat, two in a byte: the config tells their shape
        shape = shapes.get(name, ()) if "absmax" in parts else tensors[name].shape
        reader = Quantized(dtype, shape, tensors[name], tuple(parts.items()), block)
        found[name] = TensorInfo(name, dtype, shape, reader)
    return dtype, found


def _block(settings: Any) -> tuple[int, int]:
    """Read how many weights share a scale in FP8: rows and columns of a block.

    Raises:
        ValueError: if that can't be meant.
    """
    given = settings.get("weight_block_size") if isinstance(settings, dict) else None
    if given is None:
        return BLOCK
    if not isinstance(given, list) or [type(n) is int and n > 0 for n in given] != [True, True]:
        raise ValueError(f"weight_block_size ({str(given)[:60]})")
    return given[0], given[1]


@functools.lru_cache(maxsize=1)
def _unpack(tensor: Quantized, stamp: tuple[object, ...]) -> torch.Tensor:
    """Unpack a whole tensor, and keep the last one.

    The file's time of change keeps one that was made anew from being taken for the old.
    """
    import torch

    packed, parts = tensor.weight.load(), {key: part.load() for key, part in tensor.beside}
    values: torch.Tensor
    if "absmax" in parts:
        from bitsandbytes.functional import QuantState, dequantize_4bit

        state = QuantState.from_dict(parts, torch.device("cpu"))
        _check_scales(state, tensor, packed)
        values = dequantize_4bit(packed, state)
    elif "SCB" in parts:
        values = packed.float() * (parts["SCB"].float()[:, None] / 127)
    else:
        scale = next(parts[key] for key in ("weight_scale_inv", "weight_scale") if key in parts).float()
        if scale.dim() == 2 and scale.shape[1] > 1:  # for blocks
            rows, columns = map(min, tensor.block, packed.shape)  # a block may be larger than the whole
            scale = scale.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
            scale = scale[: packed.shape[0], : packed.shape[1]]
        values = packed.float() * (scale if scale.dim() == 2 else scale.reshape(-1, 1))
    return values.to(getattr(torch, FLOATS[tensor.dtype])).reshape(tensor.shape)


def _check_scales(state: Any, tensor: Quantized, packed: torch.Tensor) -> None:
    """Check that bitsandbytes will find a scale for each block: it doesn't look, and would read what lies behind them.

    Raises:
        ValueError: if it won't.
    """
    scales, nested, elements = state.absmax.numel(), state.state2, math.prod(tensor.shape)
    fits = tuple(state.shape) == tensor.shape and packed.numel() * 2 >= elements and state.code.numel() == 16
    fits = fits and scales * state.blocksize >= elements
    if nested:
        fits = fits and nested.absmax.numel() * nested.blocksize >= scales and nested.code.numel() == 256
    if not fits:
        raise ValueError("its scales and its shape don't fit each other")
