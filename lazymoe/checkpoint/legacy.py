"""Pickled checkpoints, ``.bin``: read by torch, nothing but tensors ever, and only where the user allows it."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lazymoe.checkpoint.tensors import CODES, TensorInfo

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Pickled:
    """Reads a tensor of a pickle.

    Attributes:
        folder: where the file is.
        file: its name.
        name: of the tensor in it.
    """

    folder: Path = field(repr=False)
    file: str
    name: str

    def span(self, start: int, stop: int) -> None:
        """Only torch can tell."""

    def read(self, start: int, stop: int) -> torch.Tensor:
        path = self.folder / self.file
        return _load(path, path.stat().st_mtime_ns)[self.name].reshape(-1)[start:stop]


def open_pickle(path: Path) -> dict[str, TensorInfo]:
    """The tensors of a pickle, by name.

    Raises:
        ValueError: if torch can't load it with ``weights_only=True``, or it isn't a dictionary of tensors.
    """
    return {
        name: TensorInfo(name, _dtype(tensor), tuple(tensor.shape), Pickled(path.parent, path.name, name))
        for name, tensor in _load(path, path.stat().st_mtime_ns).items()
    }


def _dtype(tensor: torch.Tensor) -> str:
    return CODES.get(str(tensor.dtype).removeprefix("torch."), "I64")


@functools.lru_cache(maxsize=1)
def _load(path: Path, stamp: int) -> dict[str, torch.Tensor]:
    """The tensors by name, as torch maps them: nothing is read yet. The file's time of change keeps one that was saved
    anew from being taken for the old."""
    import torch

    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as e:
        raise ValueError(f"torch can't load it ({str(e).splitlines()[0][:100]})") from None
    if not isinstance(tensors, dict) or not all(isinstance(t, torch.Tensor) for t in tensors.values()):
        raise ValueError("it isn't a dictionary of tensors")
    return tensors
