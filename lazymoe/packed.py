"""Weights stored in fewer bits, read as what they stand for, a tensor at a time: no unpacked copy is made.

bitsandbytes' 4 bit (by that library) and 8 bit (row-wise int8), and FP8 with scales for blocks, rows or whole tensors:
these have one value for each weight, which is what transformers computes with. GPTQ, AWQ and others aren't read.
Formats: https://huggingface.co/docs/transformers/quantization/overview
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lazymoe.errors import error
from lazymoe.families import dense_of
from lazymoe.header import CODES, FLOATS, Tensor
from lazymoe.read import read_tensor

if TYPE_CHECKING:
    import torch

STORED = FLOATS | {"U8": "uint8", "I8": "int8", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
BESIDE = re.compile(  # what lies beside a packed weight, and belongs to it
    r"(?P<module>.+\.)(?:weight\.(?P<four>absmax|quant_map|nested_absmax|nested_quant_map|quant_state\.\w+)"
    r"|(?P<other>SCB|weight_format|weight_scale|weight_scale_inv|input_scale))"
)
BLOCK = (128, 128)  # weights that share a scale in FP8, where a config doesn't say


@dataclass(frozen=True)
class Packed:
    """The packed tensors of a checkpoint.

    Attributes:
        unread: tensors that can't be read, by name: none.
        dtype: the format's name of the dtype they had before.
        tensors: as they read, by name.
        stored: each one's weight as it is stored, by name.
        beside: what lies beside each, by name.
        block: weights that share a scale, where scales are for blocks.
    """

    dtype: str
    tensors: dict[str, Tensor]
    stored: dict[str, Tensor]
    beside: dict[str, dict[str, Tensor]]
    block: tuple[int, int]
    unread = ()

    def elements(self, folder: Path, name: str, start: int, stop: int) -> torch.Tensor:
        """Elements start to stop of one of the tensors, flat, in the dtype that `tensors` says.

        Raises:
            LazyMoEError: if the packed weight and what lies beside it don't fit each other.
        """
        weight, beside = self.stored[name], tuple(self.beside[name].items())
        stamp = (folder / weight.file).stat().st_mtime_ns
        try:
            whole = _unpack(folder, self.tensors[name], weight, beside, self.block, stamp)
        except (RuntimeError, ValueError, KeyError, AssertionError, StopIteration) as e:
            what = f"'{name}' can't be unpacked ({str(e).splitlines()[0][:100] if str(e) else type(e).__name__})"
            raise error(folder / weight.file, what, "Download it again, or name the unquantised model.") from None
        return whole.reshape(-1)[start:stop]


def find_packed(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> tuple[Packed | None, dict[str, Tensor]]:
    """The packed tensors of a checkpoint, if it has any, and all of its tensors as they read.

    Args:
        config: its config.json.
        tensors: what its files hold, by name.
    """
    beside: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if (match := BESIDE.fullmatch(key)) and f"{match['module']}weight" in tensors:
            beside.setdefault(f"{match['module']}weight", {})[match["four"] or match["other"]] = tensor
    dense = dense_of(config.get("model_type"))
    if not beside or dense is None:
        return None, dict(tensors)
    stated = str(config.get("dtype") or config.get("torch_dtype")).removeprefix("torch.")
    dtype = CODES.get(stated, "BF16")
    try:
        body, ffn = dense.all_shapes(dense.complete(config))
    except (LookupError, TypeError, AttributeError, ZeroDivisionError):  # no use as a config: `fit.unusable` says so
        return None, dict(tensors)
    shapes = body | ffn
    unpacked = {}
    for name, parts in beside.items():  # 4 bit weights lie flat, two in a byte: the config tells their shape
        shape = shapes.get(name, ()) if "absmax" in parts else tensors[name].shape
        unpacked[name] = replace(tensors[name], dtype=dtype, offset=None, shape=shape)
    settings = config.get("quantization_config")
    rows, columns = (settings.get("weight_block_size") if isinstance(settings, dict) else None) or BLOCK
    gone = {tensor.name for parts in beside.values() for tensor in parts.values()}
    as_read = {name: tensor for name, tensor in tensors.items() if name not in gone} | unpacked
    return Packed(dtype, unpacked, {name: tensors[name] for name in unpacked}, beside, (rows, columns)), as_read


@functools.lru_cache(maxsize=1)
def _unpack(
    folder: Path,
    tensor: Tensor,
    weight: Tensor,
    beside: tuple[tuple[str, Tensor], ...],
    block: tuple[int, int],
    stamp: int,
) -> torch.Tensor:
    """A whole tensor; the file's time of change keeps one that was made anew from being taken for the old."""
    import torch

    packed, parts = _read(folder, weight), {key: _read(folder, part) for key, part in beside}
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
            scale = scale.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
            scale = scale[: packed.shape[0], : packed.shape[1]]
        values = packed.float() * (scale if scale.dim() == 2 else scale.reshape(-1, 1))
    return values.to(getattr(torch, FLOATS[tensor.dtype])).reshape(tensor.shape)


def _check_scales(state: Any, tensor: Tensor, packed: torch.Tensor) -> None:
    """Whether bitsandbytes will find a scale for each block: it doesn't look, and would read what lies behind them."""
    scales, nested = state.absmax.numel(), state.state2
    fits = tuple(state.shape) == tensor.shape and packed.numel() * 2 >= tensor.elements and state.code.numel() == 16
    fits = fits and scales * state.blocksize >= tensor.elements
    if nested:
        fits = fits and nested.absmax.numel() * nested.blocksize >= scales and nested.code.numel() == 256
    if not fits:
        raise ValueError("its scales and its shape don't fit each other")


def _read(folder: Path, tensor: Tensor) -> torch.Tensor:
    import torch

    data, dtype = read_tensor(folder, tensor), getattr(torch, STORED[tensor.dtype])
    return torch.frombuffer(data, dtype=dtype).reshape(tensor.shape)
