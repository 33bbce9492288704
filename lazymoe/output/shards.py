"""The plan's shards while they are written: safetensors files, filled part by part in any order.

Every part has its place in a file from the beginning. A shard gets its final name only when all of its parts are there
and on the disk, and its seal is kept among what is half-made. What was written of one that isn't finished is noted on
demand, part by part with its checksum: a rerun goes on from there.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from io import FileIO
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

from lazymoe.checkpoint.safetensors import write_header
from lazymoe.files import SEAL, checksum_of, combined, is_sealed, read_seal, readable, seal, settle, write_whole
from lazymoe.output.parts import Looker, PlainPen, Slot, slots_of
from lazymoe.planning.plan import Output, Plan

NOTES = ".parts"  # ends the name of the file that holds the checksums of another's parts
FLUSH = 1 << 26  # bytes that the disk gets at a time: what waits for the end waits for all of them


class Taker(Protocol):
    """Takes shards away as they are finished, such as to the Hub."""

    def has(self, name: str) -> bool:
        """Tell whether it took this one before."""

    def follow(self, path: Path, size: int) -> None:
        """Look at one that is being made: its first bytes, so many, stay as they are."""

    def take(self, path: Path, outputs: Sequence[Output]) -> None:
        """Take a finished one, which holds these tensors."""

    def elsewhere(self, path: Path, outputs: Sequence[Output]) -> Callable[[], Any]:
        """Look at a finished one, and give what takes it from any machine that sees it."""

    def took(self, path: Path, said: Any) -> None:
        """Note that one was taken elsewhere, by what that gave."""

    def finish(self, folder: Path) -> None:
        """Take the other files, which are in this folder, when all weights were taken."""


def shards_of(plan: Plan, out: Path, work: Path, seed: int, taker: Taker | None = None) -> list[Shard]:
    """List the files of a plan's tensors; what is there already stays.

    Args:
        plan: what to write.
        out: where complete shards go.
        work: a folder on the same disk for what is half-made.
        seed: of the experts' noise.
        taker: is given each shard when it is finished, if anybody is.
    """
    return [Shard(name, slots_of(outputs, plan.references, seed), out, work, taker) for name, outputs in plan.shards]


class Shard:
    """A shard, and the places of its parts: a `writer.Target`.

    Attributes:
        slots, sizes: its parts, and their bytes.
        lacking: the numbers of the parts that aren't there, in order.
    """

    def __init__(self, name: str, slots: list[Slot], out: Path, work: Path, taker: Taker | None = None) -> None:
        """Find what is there of it.

        Args:
            name: of the file.
            slots: its parts.
            out, work, taker: as in `shards_of`.
        """
        self._outputs, self._out, self._taker = [slot.output for slot in slots if not slot.number], out / name, taker
        self._half, self._kept, self._notes = work / name, work / f"{name}{SEAL}", work / f"{name}{NOTES}"
        self._header = write_header((o.name, o.dtype, o.shape) for o in self._outputs)
        self.slots = slots
        self.sizes = [slot.nbytes for slot in self.slots]
        self._places = list(accumulate(self.sizes, initial=len(self._header)))  # the first byte of each, and the end
        self.lacking = dict.fromkeys(range(len(self.slots)))
        self._whole = self._taken = False  # whether it has its name, and whether the taker has it
        self._checksums: dict[int, int] = {}
        self._pens: dict[int, PlainPen] = {}  # of parts whose checksums are still to come
        self._file: FileIO | None = None
        self._waiting = 0  # bytes that the disk hasn't been given yet
        if taker and taker.has(name):
            self._end(taken=True)
        elif is_sealed(self._out, read_seal(self._kept)):
            self._end()
        else:
            self._find()

    def _end(self, taken: bool = False) -> None:
        """Note that it is complete, and whether the taker has it."""
        self.lacking.clear()
        self._whole, self._taken = True, taken

    def _find(self) -> None:
        """Find the parts that are there, by what was noted of them: their bytes are looked at again."""
        noted = readable(self._notes)
        with suppress(OSError), open(self._half, "rb", buffering=0) as f:
            if f.read(len(self._header)) != self._header:
                return
            for i in [i for i in self.lacking if str(i) in noted]:
                f.seek(self._places[i])
                if noted[str(i)] == (found := checksum_of(f, self.sizes[i])):
                    self._checksums[i] = found
                    del self.lacking[i]

    def pen(self, i: int, looker: Looker, moved: Callable[[int], None]) -> PlainPen:
        """Set a pen down to write a part; see `writer.Target`."""
        if self._file is None:
            self._file = FileIO(self._half, "r+" if self._checksums else "w+")
            self._file.write(self._header)
        del self.lacking[i]

        def passed(n: int) -> None:
            moved(n)
            self._flush(n)

        self._pens[i] = PlainPen(self._file, self._places[i], looker, passed)
        return self._pens[i]

    def _flush(self, n: int) -> None:
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
            write_whole(self._notes, json.dumps(self._checksums))
            if self._taker:
                first = next((i for i in range(len(self.slots)) if i not in self._checksums), len(self.slots))
                self._taker.follow(self._half, self._places[first])

    def finish(self) -> None:
        """Give it its name, and give it to the taker; all parts are there and were looked at."""
        if not self._whole:
            write_whole(self._kept, self._seal())
            self.close()
            settle(self._half, self._out)
            self._notes.unlink(missing_ok=True)
            self._end()
        if self._taker and not self._taken:
            self._taker.take(self._out, self._outputs)
            self._end(taken=True)

    def _seal(self) -> str:
        """Give the seal of the whole."""
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
