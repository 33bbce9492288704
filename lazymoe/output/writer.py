"""The plan's parts on their way into files, in any order. Knows neither what an expert is, nor how a router is made,
nor the format of a file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from lazymoe.checkpoint.tensors import TensorInfo
from lazymoe.output.parts import Looker, Pen, Slot, Taken
from lazymoe.planning.plan import Computed, Piece
from lazymoe.progress import Progress

if TYPE_CHECKING:
    import torch


class Target(Protocol):
    """What parts are written into: a file, or several of the same parts.

    Attributes:
        slots, sizes: the parts, and their bytes in the plan's dtype.
        lacking: the numbers of the parts that aren't there, in order.
    """

    slots: list[Slot]
    sizes: list[int]
    lacking: dict[int, None]

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


class Writer:
    """Writes parts into targets, each once; what is there already stays.

    Attributes:
        computed: tensors of the plan that were worked out into files, by name.
    """

    def __init__(self, targets: Sequence[Target], progress: Progress, stage: str = "write") -> None:
        """Find what is there.

        Args:
            targets: what to write into.
            progress: told of the bytes done, in the plan's dtype.
            stage: of the progress.
        """
        self._targets, self._progress, self._stage = targets, progress, stage
        self.computed: Mapping[str, TensorInfo] = {}
        self._looker, self._done = Looker(), 0
        self._total = sum(size for target in targets for size in target.sizes)
        self._takers: dict[Taken, list[tuple[Target, int]]] = {}  # the parts that take of a tensor
        for target in targets:
            self._done += sum(size for i, size in enumerate(target.sizes) if i not in target.lacking)
            for i, slot in enumerate(target.slots):
                if slot.taken:
                    self._takers.setdefault(slot.taken, []).append((target, i))

    @property
    def whole(self) -> bool:
        """Whether all parts of all tensors are there."""
        return not any(target.lacking for target in self._targets)

    def has(self, source: int, name: str) -> bool:
        """Tell whether all that takes of a tensor, or of one that is computed and stands for it, is there.

        Args:
            source: number of the source.
            name: of the tensor.
        """
        takers = (self._takers.get(Taken(kind, source, name), []) for kind in (Piece, Computed))
        return not any(i in target.lacking for some in takers for target, i in some)

    def give(self, source: int, name: str, blocks: Iterable[torch.Tensor]) -> None:
        """Write what takes of a computed tensor, unless it is there.

        Args:
            source, name: as in `has`.
            blocks: its elements, in order, in blocks of any shape.

        Raises:
            SourceError, RecipeError, OSError: as `Slot.write`.
        """
        self._write(Taken(Computed, source, name), blocks)

    def pass_by(self, source: int, name: str, blocks: Iterable[torch.Tensor]) -> None:
        """Write what takes of a source's tensor that was read for something else too, unless it is there.

        Args:
            source: number of the source.
            name: of the tensor.
            blocks: as in `give`.

        Raises:
            SourceError, RecipeError, OSError: as `Slot.write`.
        """
        self._write(Taken(Piece, source, name), blocks)

    def _write(self, taken: Taken, blocks: Iterable[torch.Tensor]) -> None:
        receivers = []
        for target, i in self._takers.get(taken, []):
            if i in target.lacking:
                slot = target.slots[i]
                receivers.append((slot.elements, slot.receiver(self._pen(target, i))))
        at = 0
        for block in blocks if receivers else ():
            flat = block.reshape(-1)
            for wanted, put in receivers:
                if len(own := flat[max(wanted.start - at, 0) : max(wanted.stop - at, 0)]):
                    put(own)
            at += len(flat)
            self._looker.wait()  # before the next one needs the memory

    def finish(self, within: str = "") -> None:
        """Write all parts that aren't there yet, and give what is complete its name.

        Args:
            within: how the names of the tensors begin that are meant, such as those of a layer; all by default.

        Raises:
            SourceError, RecipeError, OSError: as `Slot.write`; or what the taker raises.
        """
        for target in self._targets:
            for i in list(target.lacking):
                if (slot := target.slots[i]).output.name.startswith(within):
                    slot.write(self._pen(target, i), self.computed.get(slot.taken.name) if slot.taken else None)
            if not target.lacking:
                self._looker.wait()
                target.finish()

    def keep(self) -> None:
        """See to it that all that was written is on the disk, and note it: a rerun goes on from there."""
        self._looker.wait()
        for target in self._targets:
            target.keep()

    def close(self) -> None:
        """Let files and threads go."""
        self._looker.close()
        for target in self._targets:
            target.close()

    def _pen(self, target: Target, i: int) -> Pen:
        return target.pen(i, self._looker, self._moved)

    def _moved(self, n: int) -> None:
        self._done += n
        self._progress(self._stage, self._done, self._total)
