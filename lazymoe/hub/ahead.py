"""Reading models on the Hub a while before their bytes are wanted, many ranges at once, with little of it here.

A sweep over a model's layers reads in each what it read in the one before, and in the same order: that is all that is
known here of what comes next. What is wrongly expected is brought in vain, and no more.
"""

from __future__ import annotations

import itertools
import re
import shutil
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from threading import Event, Lock, RLock
from typing import NamedTuple

from lazymoe.files import read_into
from lazymoe.hub.ranges import Place, Ranges
from lazymoe.memory import give_back
from lazymoe.progress import Progress

BLOCK = 1 << 23  # bytes of a range
AT_ONCE = 16  # ranges on their way; each is in memory until it is whole
TICK = 0.2  # seconds between two looks at whether one has arrived
LAYER = re.compile(r"(?<=\.)\d+(?=\.)")  # the number of a layer in the name of a tensor
Held = bytearray | Path  # what has arrived, or the file that it is in
Stem = tuple[Ranges, str, str]  # a model, and what stands before and behind the layer's number in a name


class Block(NamedTuple):
    """A range that is brought at a time: of one tensor, or of what is no tensor's."""

    ranges: Ranges
    place: Place

    @property
    def nbytes(self) -> int:
        return self.place.end - self.place.begin


class Ahead:
    """Answers models' `Ranges.read` while it is entered, and lets go of all that it holds when it is left."""

    def __init__(
        self,
        models: Iterable[Ranges],
        folder: Path | None,
        room: int,
        total: int,
        progress: Progress,
        kept: frozenset[str] = frozenset(),
    ) -> None:
        """Prepare to read.

        Args:
            models: what is read.
            folder: for what is held, and whatever is there is removed; None to hold it in memory.
            room: the most bytes to hold, but for one read that is larger; half of it for what comes next.
            total: bytes that will be wanted, about.
            progress: told of the bytes that were wanted so far, stage ``download``; what it raises stops a read.
            kept: names of tensors that are held until it is left, once they were wanted; they take no room.
        """
        self._models, self._folder, self._room = set(models), folder, room
        self._total, self._progress, self._kept = total, progress, kept
        self._pool, self._stopped, self._lock = ThreadPoolExecutor(AT_ONCE), Event(), RLock()
        self._writing = Lock()
        self._held: OrderedDict[Block, Future[Held]] = OrderedDict()  # the one to let go of first comes first
        self._nbytes = 0  # of those
        self._freed = 0  # bytes of blocks that were let go of since memory was given back
        self._seen = set[Block]()
        self._done = 0  # bytes of those
        self._names, self._order = itertools.count(), _Order()
        self._last: list[Block] = []  # that were wanted

    def __enter__(self) -> Ahead:
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.mkdir(parents=True)
        for ranges in self._models:
            ranges.reader = self.read
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for ranges in self._models:
            ranges.reader = None
        self._stopped.set()
        self._pool.shutdown(wait=False, cancel_futures=True)  # a stalled one must not hold up whoever stops it
        if self._folder:
            with self._writing:  # nothing is written from now on
                shutil.rmtree(self._folder, ignore_errors=True)
        if not kind:
            self._progress("download", self._total, self._total)

    def read(self, ranges: Ranges, wanted: Place) -> bytearray | memoryview:
        """Read bytes, and bring those that will be wanted next. Nobody may change a view: others are given it too.

        Args:
            ranges: the model.
            wanted: which.

        Raises:
            LazyMoEError: as `Ranges.bring`.
            OSError: if what is brought can't be held, as when the disk is full.
        """
        blocks = list(_blocks(ranges, wanted))
        with self._lock:
            self._expect(blocks)
        if len(blocks) == 1 and isinstance(held := self._arrived(blocks[0]), bytearray):
            first = wanted.begin - blocks[0].place.begin
            return memoryview(held)[first : first + wanted.end - wanted.begin]
        data = bytearray(wanted.end - wanted.begin)
        view = memoryview(data)
        for block in blocks:
            begin, end = max(wanted.begin, block.place.begin), min(wanted.end, block.place.end)
            self._copy(block, begin - block.place.begin, view[begin - wanted.begin : end - wanted.begin])
        return data

    def _copy(self, block: Block, offset: int, view: memoryview) -> None:
        """Fill a buffer from a block, when that has arrived."""
        while True:
            if isinstance(held := self._arrived(block), bytearray):
                view[:] = memoryview(held)[offset : offset + len(view)]
                return
            with suppress(FileNotFoundError), open(held, "rb", buffering=0) as f:  # else let go of just now
                f.seek(offset)
                read_into(f, view)
                return

    def _arrived(self, block: Block) -> Held:
        """Wait for a block."""
        with self._lock:
            future = self._want(block)
        while not wait([future], TICK).done:
            self._tell()
        held = future.result()
        if block not in self._seen:
            self._seen.add(block)
            self._done += block.nbytes
            self._tell()
        return held

    def _tell(self) -> None:
        self._progress("download", min(self._done, self._total), self._total)

    def _expect(self, blocks: list[Block]) -> None:
        """Bring blocks, and as many as may be of those that will be wanted next; let go of the oldest others."""
        if blocks == self._last:
            return
        self._last = blocks
        soon, nbytes, share = list(blocks), sum(map(self._takes, blocks)), self._room // 2
        if not LAYER.search(_name(blocks[-1]) or ""):  # it may be read of all models side by side
            share //= len(self._models)
        for block in self._order.after(blocks[-1], self._held):
            nbytes += self._takes(block)
            if nbytes > share:
                break
            soon.append(block)
        new = set(soon)
        room = self._room - sum(map(self._takes, new - self._held.keys()))
        if self._nbytes > room:
            others = [block for block in self._held if block not in new and self._takes(block)]
            for block in sorted(others, key=lambda block: block not in self._seen):  # what was never read goes last
                if self._nbytes > room:
                    self._let_go(block)
        if self._freed > self._room:
            self._freed = 0
            give_back()
        for block in soon:
            self._want(block)

    def _takes(self, block: Block) -> int:
        """Count the bytes of room that a block takes."""
        return 0 if _name(block) in self._kept else block.nbytes

    def _want(self, block: Block) -> Future[Held]:
        if block not in self._held:
            path = self._folder / str(next(self._names)) if self._folder else None
            self._held[block] = self._pool.submit(self._bring, block, path)
            self._nbytes += self._takes(block)
        self._held.move_to_end(block)
        return self._held[block]

    def _bring(self, block: Block, path: Path | None) -> Held:
        data = block.ranges.bring(block.place, self._stopped)
        if path is None:
            return data
        with self._writing:
            if not self._stopped.is_set():
                path.write_bytes(data)
        return path

    def _let_go(self, block: Block) -> None:
        self._nbytes -= block.nbytes
        self._freed += block.nbytes
        future = self._held.pop(block)
        if not future.cancel():
            future.add_done_callback(_remove)


def _name(block: Block) -> str | None:
    """Name the tensor that a block is of; None if it is of none."""
    return block.ranges.tensor(block.place.file, block.place.begin)


def _remove(future: Future[Held]) -> None:
    if not future.cancelled() and not future.exception() and isinstance(path := future.result(), Path):
        path.unlink(missing_ok=True)


def _blocks(ranges: Ranges, wanted: Place) -> Iterator[Block]:
    """Yield the blocks that have these bytes: a tensor's begin where it begins, so that none is of two."""
    file, at, end = wanted
    while at < end:
        name = ranges.tensor(file, at)
        tensor = ranges.places[name] if name else wanted
        begin = at - (at - tensor.begin) % BLOCK
        yield Block(ranges, Place(file, begin, at := min(begin + BLOCK, tensor.end)))


class _Order:
    """The order in which tensors are read, learned from one layer for the next."""

    def __init__(self) -> None:
        self._layer = -1
        self._before: list[Stem] = []  # what was read of the layer before, in order
        self._now: dict[Stem, None] = {}  # what was read of this one

    def after(self, block: Block, held: Iterable[Block]) -> Iterator[Block]:
        """Yield the blocks that may be wanted after one.

        Args:
            block: that is wanted now.
            held: those that are here or on their way.
        """
        ranges, (file, begin, end) = block
        name = _name(block)
        if name is None:
            return
        tensor = ranges.places[name]
        last = Block(ranges, Place(file, begin - BLOCK, begin))
        if begin == tensor.begin or last in held:  # who reads it from its beginning on reads it to its end
            yield from _blocks(ranges, Place(file, end, tensor.end))
        if match := LAYER.search(name):
            stem = ranges, name[: match.start()], name[match.end() :]
            self._note(stem, layer := int(match[0]))
            if stem in self._before:
                following = self._before[self._before.index(stem) + 1 :]
                yield from self._moved(following, layer)
                yield from self._moved(self._before, layer + 1)

    def _note(self, stem: Stem, layer: int) -> None:
        if layer != self._layer:
            self._layer, self._before, self._now = layer, list(self._now), {}
        self._now[stem] = None

    def _moved(self, stems: Iterable[Stem], layer: int) -> Iterator[Block]:
        for ranges, before, behind in stems:
            if place := ranges.places.get(f"{before}{layer}{behind}"):
                yield from _blocks(ranges, place)
