"""Bytes and elements of the files that hold weights. What the bytes of a safetensors file mean, `header` tells."""

from __future__ import annotations

import functools
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

from lazymoe.errors import LazyMoEError, error
from lazymoe.header import CODES, FLOATS, Tensor, within

if TYPE_CHECKING:
    import torch


def read_into(f: FileIO, view: memoryview) -> None:
    """Fill a buffer from an open file, unbuffered. Not mapped: mapped pages would count as this program's memory."""
    while view:
        n = f.readinto(view)
        if not n:
            raise error(f.name, "the file ended early; was it changed during the merge?", "Download it again.")
        view = view[n:]


def read_bytes(path: Path, offset: int, length: int) -> bytearray:
    """Bytes of a file."""
    data = bytearray(length)
    with open(path, "rb", buffering=0) as f:
        f.seek(offset)
        read_into(f, memoryview(data))
    return data


def read_tensor(folder: Path, tensor: Tensor) -> bytearray:
    """The bytes of a tensor in a safetensors file of a folder."""
    return read_bytes(folder / tensor.file, tensor.offset or 0, tensor.nbytes)


def read_elements(folder: Path, tensor: Tensor, start: int, stop: int) -> torch.Tensor:
    """Elements start to stop of a tensor in a safetensors file of a folder, flat, in its own dtype."""
    import torch

    data = read_tensor(folder, within(tensor, start, stop - start))
    return torch.frombuffer(data, dtype=getattr(torch, FLOATS[tensor.dtype]))


@functools.lru_cache(maxsize=1)
def load_pickle(path: Path) -> dict[str, torch.Tensor]:
    """A ``.bin`` file's tensors by name, as torch maps them: nothing is read yet, and nothing but tensors ever.

    Raises:
        ValueError: if torch can't load it so.
    """
    import torch

    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except LazyMoEError:
        raise
    except Exception as e:
        raise ValueError(f"torch can't load it ({str(e).splitlines()[0][:100]})") from None
    if not isinstance(tensors, dict) or not all(isinstance(t, torch.Tensor) for t in tensors.values()):
        raise ValueError("it isn't a dictionary of tensors")
    return tensors


def described(name: str, tensor: torch.Tensor, file: str) -> Tensor:
    """A tensor of a ``.bin`` file as those of other files are described, but for its offset, which only torch knows."""
    return Tensor(name, CODES.get(str(tensor.dtype).removeprefix("torch."), "I64"), tuple(tensor.shape), file, None)
