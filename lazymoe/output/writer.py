"""The plan's parts on their way into files, in any order. Knows neither what an expert is, nor how a router is made,
nor the format of a file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from lazymoe.checkpoint.tensors import TensorInfo
from lazymoe.output.parts import Looker, Pen, Slot, Taken
from lazymoe.planning.plan import Computed, Piece
from lazymoe.progress import Progress

if TYPE_CHECKING:
    import torch


class Parts(Protocol):
    """A file, or several of the same parts.

    Attributes:
        slots, sizes: the parts, and their bytes in the plan's dtype.
        lacking: the numbers of the parts that aren't there, in order.
    """

    slots: list[Slot]
    sizes: list[int]
    lacking: dict[int, None]


class Target(Parts, Protocol):
    """What parts are written into here."""

    def pen(self, i: int, looker: Looker, moved: Callable[[int], None]) -> Pen:
        """Set a pen down to write a part, which counts as there from now on.

        Args:
            i: its number.
            looker: what may look at the bytes.
            moved: told how many bytes were written, each time.
        """

    def keep(self) -> None:
        """Note the parts that are there, when they are on the disk; all must have been looked at."""

    def finish(self) -> None:
        """Give it its name, if it hasn't got it: all parts are there and were looked at."""

    def close(self) -> None:
        """Let files go."""


File = TypeVar("File", bound=Parts)


class Sink(ABC, Generic[File]):
    """Takes a plan's tensors, and has their parts written, each once; what is there already stays.

    Attributes:
        files: what they are parts of.
        computed: tensors of the plan that were worked out into files, by name.
    """

    def __init__(self, files: Sequence[File], progress: Progress, stage: str = "write") -> None:
        """Find what is there.

        Args:
            files: what is written.
            progress: told of the bytes done, in the plan's dtype.
            stage: of the progress.
        """
        self.files, self._progress, self._stage = files, progress, stage
        self.computed: Mapping[str, TensorInfo] = {}
        self._done, self._total = 0, sum(size for file in files for size in file.sizes)
        self._takers: dict[Taken, list[tuple[File, int]]] = {}  # the parts that take of a tensor
        for file in files:
            self._done += sum(size for i, size in enumerate(file.sizes) if i not in file.lacking)
            for i, slot in enumerate(file.slots):
                if slot.taken:
                    self._takers.setdefault(slot.taken, []).append((file, i))

    @property
    def whole(self) -> bool:
        """Whether all parts of all tensors are there."""
        return not any(file.lacking for file in self.files)

    def has(self, source: int, name: str) -> bool:
        """Tell whether all that takes of a tensor, or of one that is computed and stands for it, is there.

        Args:
            source: number of the source.
            name: of the tensor.
        """
        return not any(self.lacking(Taken(kind, source, name)) for kind in (Piece, Computed))

    def lacking(self, taken: Taken) -> list[tuple[File, int]]:
        """List the parts that take of a tensor and aren't there, each as its file and its number there.

        Args:
            taken: the tensor.
        """
        return [(file, i) for file, i in self._takers.get(taken, []) if i in file.lacking]

    def give(self, source: int, name: str, blocks: Iterable[torch.Tensor]) -> None:
        """Write what takes of a computed tensor, unless it is there.

        Args:
            source, name: as in `has`.
            blocks: its elements, in order, in blocks of any shape.

        Raises:
            SourceError, RecipeError, OSError: as `Slot.write`.
        """
        self.write(Taken(Computed, source, name), blocks)

    def pass_by(self, source: int, name: str, blocks: Iterable[torch.Tensor]) -> None:
        """Write what takes of a source's tensor that was read for something else too, unless it is there.

        Args:
            source: number of the source.
            name: of the tensor.
            blocks: as in `give`.

        Raises:
            SourceError, RecipeError, OSError: as `Slot.write`.
        """
        self.write(Taken(Piece, source, name), blocks)

    def moved(self, n: int) -> None:
        """Count bytes that were written."""
        self._done += n
        self._progress(self._stage, self._done, self._total)

    @abstractmethod
    def write(self, taken: Taken, blocks: Iterable[torch.Tensor]) -> None:
        """Write what takes of a tensor, unless it is there.

        Args:
            taken: the tensor.
            blocks: as in `give`.

        Raises:
            SourceError, RecipeError, OSError: as `Slot.write`.
        """

    @abstractmethod
    def finish(self, within: str = "") -> None:
        """Write all parts that aren't there yet, and give what is complete its name.

        Args:
            within: how the names of the tensors begin that are meant, such as those of a layer; all by default.

        Raises:
            SourceError, RecipeError, OSError: as `Slot.write`; or what the taker raises.
        """

    @abstractmethod
    def keep(self) -> None:
        """See to it that all that was written is on the disk, and note it: a rerun goes on from there."""

    @abstractmethod
    def close(self) -> None:
        """Let files and threads go."""


class Writer(Sink[Target]):
    """Writes parts into files here."""

    def __init__(self, files: Sequence[Target], progress: Progress, stage: str = "write") -> None:
        """Find what is there; see `Sink`."""
        super().__init__(files, progress, stage)
        self._looker = Looker()

    def write(self, taken: Taken, blocks: Iterable[torch.Tensor]) -> None:
        """Write what takes of a tensor, unless it is there; see `Sink`."""
        receivers = []
        for file, i in self.lacking(taken):
            slot = file.slots[i]
            receivers.append((slot.elements, slot.receiver(self._pen(file, i))))
        at = 0
        for block in blocks if receivers else ():
            flat = block.reshape(-1)
            for wanted, put in receivers:
                if len(own := flat[max(wanted.start - at, 0) : max(wanted.stop - at, 0)]):
                    put(own)
            at += len(flat)
            self._looker.wait()  # before the next one needs the memory

    def finish(self, within: str = "") -> None:
        """Write all parts that aren't there yet, from where they lie; see `Sink`."""
        for file in self.files:
            for i in list(file.lacking):
                if (slot := file.slots[i]).output.name.startswith(within):
                    slot.write(self._pen(file, i), self.computed.get(slot.taken.name) if slot.taken else None)
            if not file.lacking:
                self._looker.wait()
                file.finish()

    def keep(self) -> None:
        """See to it that all that was written is on the disk, and note it; see `Sink`."""
        self._looker.wait()
        for file in self.files:
            file.keep()

    def close(self) -> None:
        """Let files and threads go."""
        self._looker.close()
        for file in self.files:
            file.close()

    def _pen(self, file: Target, i: int) -> Pen:
        return file.pen(i, self._looker, self.moved)
