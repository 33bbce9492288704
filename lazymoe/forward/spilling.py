"""States that have no room in memory: on the disk between two layers and inside of one, a batch of them in memory at a
time."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import MutableSequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lazymoe.files import read_into


def room_for_states(place: Path | None, device: str) -> MutableSequence[Tensor]:
    """Begin a list of tensors.

    Args:
        place: a folder, if they are to be on the disk; None for in memory.
        device: where they are when they are taken.
    """
    return Spilled(place, device) if place else []


class Spilled(MutableSequence[Tensor]):
    """Tensors in float32, as a list has them: each can be replaced by another, and none removed.

    Their file has no name, so it is gone with the process, however that ends. It isn't mapped: mapped pages count as
    this program's memory, and a full disk would end it without a word.
    """

    def __init__(self, folder: Path, device: str) -> None:
        """Begin without any.

        Args:
            folder: on the disk that has room for them.
            device: where they are when they are taken.
        """
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115  # open as long as this lives
        weakref.finalize(self, self._file.close)
        self._device, self._places, self._end = device, list[tuple[int, torch.Size]](), 0

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, i: Any) -> Any:
        place, shape = self._places[i]
        states = torch.empty(shape)
        self._file.seek(place)
        read_into(self._file, _bytes(states))
        return states.to(self._device)

    def __setitem__(self, i: Any, states: Any) -> None:
        place, shape = self._places[i]
        if states.numel() > shape.numel():  # it has no room where the one before was
            place, self._end = self._end, self._end + 4 * states.numel()
        self._places[i] = place, states.shape
        self._file.seek(place)
        left = _bytes(states.cpu().contiguous())
        while left:
            left = left[self._file.write(left) :]

    def insert(self, i: int, states: Tensor) -> None:
        assert i == len(self)
        self._places.append((self._end, torch.Size([0])))
        self[i] = states

    def __delitem__(self, i: Any) -> None:
        raise TypeError("what is spilled stays until all of it goes")


def _bytes(states: Tensor) -> memoryview:
    return memoryview(states.numpy()).cast("B")  # type: ignore[arg-type]
