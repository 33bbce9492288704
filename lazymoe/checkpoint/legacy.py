"""Pickled checkpoints, ``.bin``: read by torch, nothing but tensors ever, and only where the user allows it."""

from __future__ import annotations

import functools
import pickle
import pickletools
import re
import warnings
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lazymoe.checkpoint.tensors import CODES, TensorInfo
from lazymoe.files import stamp

if TYPE_CHECKING:
    import torch

OLD = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how they began before, as a pickled number
ZIP = b"PK\x03\x04"  # how torch's files begin since 1.6; only these can be mapped


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
        """Give nothing: only torch can tell."""

    def stamp(self) -> tuple[object, ...]:
        """Give what changes when the file does."""
        return stamp(self.folder / self.file)

    def read(self, start: int, stop: int) -> torch.Tensor:
        """Read elements start to stop, flat: ``[stop - start]``."""
        return _load(self.folder / self.file, self.stamp())[self.name].reshape(-1)[start:stop]


def open_pickle(path: Path) -> dict[str, TensorInfo]:
    """List the tensors of a pickle, by name.

    Args:
        path: of the file.

    Raises:
        ValueError: if torch can't load it with ``weights_only=True``, or it isn't a dictionary of tensors.
    """
    return {
        name: TensorInfo(name, _dtype(tensor), tuple(tensor.shape), Pickled(path.parent, path.name, name))
        for name, tensor in _load(path, stamp(path)).items()
    }


def _dtype(tensor: torch.Tensor) -> str:
    return CODES.get(str(tensor.dtype).removeprefix("torch."), "I64")


@functools.lru_cache(maxsize=1)
def _load(path: Path, stamped: tuple[object, ...]) -> dict[str, torch.Tensor]:
    """Load the tensors by name, as torch maps them: nothing is read yet, but of the format before torch 1.6.

    The file's stamp keeps one that was saved anew from being taken for the old.
    """
    import torch

    with open(path, "rb") as f:
        start = f.read(len(ZIP))
    mapped = start == ZIP
    if not start or (mapped and not zipfile.is_zipfile(path)):
        raise ValueError("the file is cut short" if start else "the file is empty")
    if not any(start):
        raise ValueError("it begins with zeros, as after a broken download")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of storages, which are torch's own affair
            tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as e:  # whatever a hostile or broken file makes torch raise
        raise ValueError("the file is cut short" if _ends_early(path) else _why(e)) from None
    if not isinstance(tensors, dict) or not tensors:
        raise ValueError("it isn't a dictionary of tensors")
    if alien := [key for key, tensor in tensors.items() if not isinstance(tensor, torch.Tensor)]:
        raise ValueError(f"it isn't a dictionary of tensors alone: {str(alien[0])[:50]!r} is something else")
    return {str(name): tensor.detach() for name, tensor in tensors.items()}


def _ends_early(path: Path) -> bool:
    """Tell whether a file of the format before torch 1.6 ends within the pickles that it begins with."""
    with open(path, "rb") as f:
        if not OLD.startswith(f.read(len(OLD))):
            return False
        f.seek(0)
        try:
            for _ in range(5):  # magic number, version, system, tensors, storages: then come their bytes
                for _ in pickletools.genops(f):
                    pass
        except (ValueError, IndexError):
            return True
    return False


def _why(e: Exception) -> str:
    """Say in a line why torch can't load a file: its own messages are pages."""
    text = str(e)
    if named := re.search(r"GLOBAL ([\w.]+)", text):
        return f"it holds a '{named[1]}', and nothing but tensors is loaded from a pickle"
    if ".tar format" in text:
        return "it is in the format that torch had before 0.1.10"
    if isinstance(e, EOFError) or "unexpected EOF" in text:
        return "the file is cut short"
    if isinstance(e, pickle.UnpicklingError):
        return "it isn't a pickle of torch's, or a broken one"
    first = " ".join(re.split(r"\. |\n", text.strip(), maxsplit=1)[0].split())
    return f"torch can't load it ({first or type(e).__name__})"
