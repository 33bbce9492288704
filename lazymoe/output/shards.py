"""The plan's shards while they are written, their parts in any order. Knows safetensors and nothing else: not what an
expert is, nor how a router is made.

Every part has its place in a file from the beginning. A shard gets its final name only when all of its parts are there
and on the disk, and its seal is kept among what is half-made. What was written of one that isn't finished is noted on
demand, part by part with its checksum: a rerun goes on from there.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from io import FileIO
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from lazymoe.checkpoint.safetensors import write_header
from lazymoe.checkpoint.tensors import BITS, TensorInfo
from lazymoe.files import SEAL, checksum_of, combined, is_sealed, read_seal, readable, seal, settle, write_whole
from lazymoe.output.parts import Looker, Pen, Slot, Taken
from lazymoe.planning.plan import Computed, Output, Piece, Plan
from lazymoe.progress import Progress

if TYPE_CHECKING:
    import torch

NOTES = ".parts"  # ends the name of the file that holds the checksums of another's parts
FLUSH = 1 << 26  # bytes that the disk gets at a time: what waits for the end waits for all of them


class Taker(Protocol):
    """Takes shards away as they are finished, such as to the Hub."""

    def has(self, name: str) -> bool:
        """Tell whether it took this one before."""

    def take(self, path: Path, outputs: Sequence[Output]) -> None:
        """Take a finished one, which holds these tensors."""

    def finish(self, folder: Path) -> None:
        """Take the other files, which are in this folder, when all weights were taken."""


class Shards:
    """The files of a plan's tensors; what is there already stays.

    Attributes:
        computed: tensors of the plan that were worked out into files, by name.
    """

    def __init__(
        self, plan: Plan, out: Path, work: Path, seed: int, progress: Progress, taker: Taker | None = None
    ) -> None:
        """Find what is there.

        Args:
            plan: what to write.
            out: where complete shards go.
            work: a folder on the same disk for what is half-made.
            seed: of the experts' noise.
            progress: told of the bytes done, stage ``write``.
            taker: is given each shard when it is finished, if anybody is.
        """
        self._plan, self._out, self._taker, self._progress = plan, out, taker, progress
        self.computed: Mapping[str, TensorInfo] = {}
        self._looker, self._done = Looker(), 0
        self._files = [_File(plan, name, outputs, work, seed) for name, outputs in plan.shards]
        self._takers: dict[Taken, list[tuple[_File, int]]] = {}  # the parts that take of a tensor
        for file in self._files:
            if taker and taker.has(file.name):
                file.end(taken=True)
            elif is_sealed(out / file.name, read_seal(file.kept)):
                file.end()
            else:
                file.find()
            self._done += sum(size for i, size in enumerate(file.sizes) if i not in file.lacking)
            for i, slot in enumerate(file.slots):
                if slot.taken:
                    self._takers.setdefault(slot.taken, []).append((file, i))

    @property
    def whole(self) -> bool:
        """Whether all parts of all tensors are there."""
        return not any(file.lacking for file in self._files)

    def has(self, source: int, name: str) -> bool:
        """Tell whether all that takes of a tensor, or of one that is computed and stands for it, is there.

        Args:
            source: number of the source.
            name: of the tensor.
        """
        takers = (self._takers.get(Taken(kind, source, name), []) for kind in (Piece, Computed))
        return not any(i in file.lacking for some in takers for file, i in some)

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
        for file, i in self._takers.get(taken, []):
            if i in file.lacking:
                put = file.slots[i].receiver(self._pen(file, i), self._plan.sources[taken.source].reference)
                receivers.append((file.slots[i].elements, put))
        at = 0
        for block in blocks if receivers else ():
            flat = block.reshape(-1)
            for wanted, put in receivers:
                if len(own := flat[max(wanted.start - at, 0) : max(wanted.stop - at, 0)]):
                    put(own)
            at += len(flat)
            self._looker.wait()  # before the next one needs the memory

    def finish(self, layer: int | None = None) -> None:
        """Write all parts that aren't there yet, and give shards that are complete their names.

        Args:
            layer: whose parts are meant; all by default.

        Raises:
            SourceError, RecipeError, OSError: as `Slot.write`; or what the taker raises.
        """
        prefix = "" if layer is None else self._plan.dense.within(layer)
        for file in self._files:
            for i in list(file.lacking):
                if (slot := file.slots[i]).output.name.startswith(prefix):
                    slot.write(self._pen(file, i), self.computed.get(slot.taken.name) if slot.taken else None)
            if not file.lacking:
                self._complete(file)

    def keep(self) -> None:
        """See to it that all that was written is on the disk, and note it: a rerun goes on from there."""
        self._looker.wait()
        for file in self._files:
            file.keep()

    def close(self) -> None:
        """Let files and threads go."""
        self._looker.close()
        for file in self._files:
            file.close()

    def _pen(self, file: _File, i: int) -> Pen:
        return file.pen(i, self._looker, partial(self._moved, file))

    def _moved(self, file: _File, n: int) -> None:
        self._done += n
        self._progress("write", self._done, self._plan.nbytes)
        file.flush(n)

    def _complete(self, file: _File) -> None:
        if not file.whole:
            self._looker.wait()
            write_whole(file.kept, file.seal())
            file.close()
            settle(file.path, self._out / file.name)
            file.notes.unlink(missing_ok=True)
            file.end()
        if self._taker and not file.taken:
            self._taker.take(self._out / file.name, file.outputs)
            file.end(taken=True)


class _File:
    """A shard, and the places of its parts.

    Attributes:
        name: its final name.
        outputs: the tensors that it holds.
        path, kept, notes: where it is half-made, its seal, and what was noted of its parts.
        slots, sizes: its parts, and their bytes.
        lacking: the numbers of the parts that aren't there, in order.
        whole, taken: whether it is complete and has its name, and whether a taker has it.
    """

    def __init__(self, plan: Plan, name: str, outputs: Sequence[Output], work: Path, seed: int) -> None:
        self.name, self.outputs, self.path = name, outputs, work / name
        self.kept, self.notes = work / f"{name}{SEAL}", work / f"{name}{NOTES}"
        self._header = write_header((o.name, o.dtype, o.shape) for o in outputs)
        self.slots = [Slot(plan, o, number, seed) for o in outputs for number in range(len(o.parts))]
        self.sizes = [slot.part.elements * BITS[slot.output.dtype] // 8 for slot in self.slots]
        self._places = list(accumulate(self.sizes, initial=len(self._header)))  # the first byte of each, and the end
        self.lacking = dict.fromkeys(range(len(self.slots)))
        self.whole = self.taken = False
        self._checksums: dict[int, int] = {}
        self._pens: dict[int, Pen] = {}  # of parts whose checksums are still to come
        self._file: FileIO | None = None
        self._waiting = 0  # bytes that the disk hasn't been given yet

    def end(self, taken: bool = False) -> None:
        """Note that it is complete, and whether a taker has it."""
        self.lacking.clear()
        self.whole, self.taken = True, taken

    def find(self) -> None:
        """Find the parts that are there, by what was noted of them: their bytes are looked at again."""
        noted = readable(self.notes)
        with suppress(OSError), open(self.path, "rb", buffering=0) as f:
            if f.read(len(self._header)) != self._header:
                return
            for i in [i for i in self.lacking if str(i) in noted]:
                f.seek(self._places[i])
                if noted[str(i)] == (found := checksum_of(f, self.sizes[i])):
                    self._checksums[i] = found
                    del self.lacking[i]

    def pen(self, i: int, looker: Looker, moved: Callable[[int], None]) -> Pen:
        """Set a pen down to write a part, which counts as there from now on."""
        if self._file is None:
            self._file = FileIO(self.path, "r+" if self._checksums else "w+")
            self._file.write(self._header)
        del self.lacking[i]
        self._pens[i] = Pen(self._file, self._places[i], looker, moved)
        return self._pens[i]

    def flush(self, n: int) -> None:
        """Let the disk begin with what was written, where the system can be told, if that has become much."""
        self._waiting += n
        if self._file and self._waiting >= FLUSH and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            self._waiting = 0

    def keep(self) -> None:
        """Note the parts that are there, when they are on the disk; all must have been looked at."""
        if self._pens and self._file:
            os.fsync(self._file.fileno())
            self._look_up()
            write_whole(self.notes, json.dumps(self._checksums))

    def seal(self) -> str:
        """Give the seal of the whole; all must have been looked at."""
        self._look_up()
        found = zlib.crc32(self._header)
        for i, size in enumerate(self.sizes):
            found = combined(found, self._checksums[i], size)
        return seal(self._places[-1], found)

    def _look_up(self) -> None:
        self._checksums |= {i: pen.checksum for i, pen in self._pens.items()}
        self._pens.clear()

    def close(self) -> None:
        """Let the file go."""
        if self._file:
            self._file.close()
            self._file = None
