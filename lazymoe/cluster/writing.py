"""Files of weights that the machines of a cluster write, each its own, in a folder that they share.

Who reads a model hands its tensors straight to who writes them; what the driver works out, it sends. A file is no other
than that of one process, nor is what is noted of it while it is half-made: if a writing machine dies, the merge goes on
as after any other stop.
"""

from __future__ import annotations

import os
import secrets
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import torch
from torch import Tensor

from lazymoe.checkpoint.tensors import BITS, InMemory
from lazymoe.cluster.asking import LOST, alive, begin_on, hear
from lazymoe.cluster.model import by_bytes
from lazymoe.computing.places import Interrupted, Passing
from lazymoe.files import write_whole
from lazymoe.output.parts import Slot, Taken, slots_of
from lazymoe.output.shards import Shard
from lazymoe.output.writer import Sink, Writer
from lazymoe.planning.plan import Output, Piece, Plan
from lazymoe.progress import Progress
from lazymoe.version import versions

if TYPE_CHECKING:
    from lazymoe.cluster.nodes import Cluster

NOTHING = InMemory(torch.empty(0))  # reads a tensor that is handed over where it is written
MARK = "shared"  # a file among what is half-made: who sees it can write there
END = 10.0  # seconds to wait for what is being written when it is stopped


class Writing:
    """Some of the files, as an actor."""

    def begin(self, mark: Path, text: str) -> dict[str, str]:
        """Tell the versions that it would write with; none if it can't, for there is no such file here.

        Args:
            mark: the file.
            text: what it holds.
        """
        by_bytes()
        with suppress(OSError, ValueError):
            if mark.read_text() == text and os.access(mark.parent, os.W_OK):
                return versions()
        return {}

    def open(self, shards: Sequence[tuple[str, list[Slot]]], out: Path, work: Path) -> list[list[int]]:
        """Find what is there of files; give of each the numbers of the parts that aren't.

        Args:
            shards: the files, their names and parts.
            out, work: as `shards_of` has them.
        """
        self._moved = 0
        targets = [Shard(name, slots, out, work) for name, slots in shards]
        self._writer = Writer(targets, self._tell)
        self._before = self._done = sum(n for t in targets for i, n in enumerate(t.sizes) if i not in t.lacking)
        return [list(target.lacking) for target in targets]

    def _tell(self, stage: str, done: int, total: int) -> None:
        self._done = done

    def _written(self) -> int:
        """Count the bytes that were written since the last answer."""
        before, self._before = self._before, self._done
        return self._done - before

    def write(self, taken: Taken, blocks: Sequence[Any]) -> int:
        """Write what takes of a tensor; see `Sink.write`. The blocks are where they were made until they are wanted."""
        self._writer.write(taken, map(ray.get, blocks))
        return self._written()

    def finish(self, within: str) -> int:
        """Write what is of one value, and give what is complete its name; see `Sink.finish`."""
        self._writer.finish(within)
        return self._written()

    def keep(self) -> int:
        """See to it that all that was written is on the disk, and note it; see `Sink.keep`."""
        self._writer.keep()
        return self._written()


def begin_writing(work: Path, tick: Callable[[], None]) -> list[Any]:
    """Begin an actor, `Writing`, on each machine that sees a folder; on none if that is this one alone.

    Args:
        work: the folder for what is half-made.
        tick: as `asking.wait` has it.
    """
    text, here = secrets.token_hex(), ray.get_runtime_context().get_node_id()
    write_whole(work / MARK, text)
    begun = {node: begin_on(node, Writing) for node in alive()}
    asked = {node: actor.begin.remote(work / MARK, text) for node, actor in begun.items()}
    seeing = []
    for node, said in asked.items():
        with suppress(*LOST):
            if hear(said, tick) == versions():
                seeing.append(node)
    used = [] if seeing == [here] else seeing
    for node, actor in begun.items():
        if node not in used:
            ray.kill(actor)
    return [begun[node] for node in used]


@dataclass(eq=False)
class Away:
    """A file that is written elsewhere, and by whom: `writer.Parts`."""

    actor: Any
    slots: list[Slot]
    sizes: list[int]
    lacking: dict[int, None]


class Spread(Sink[Away]):
    """Hands tensors to the actors that write them: what was handed over counts as there, `keep` and `finish` wait."""

    def __init__(
        self, cluster: Cluster, actors: Sequence[Any], plan: Plan, out: Path, work: Path, seed: int, progress: Progress
    ) -> None:
        """Deal the files out, and find what is there.

        Args:
            cluster: that has the models.
            actors: `Writing`, one on each machine.
            plan, out, work, seed: as `shards_of` has them.
            progress: as `Sink` has it.

        Raises:
            Interrupted: if a machine dies.
        """
        self._cluster, self._plan, self._actors = cluster, plan, actors
        self._asked: deque[Any] = deque()
        dealt = [plan.shards[i :: len(actors)] for i in range(len(actors))]
        bare = [[(name, slots_of(map(_bare, outputs), plan.references, seed)) for name, outputs in d] for d in dealt]
        begun = [actor.open.remote(shards, out, work) for actor, shards in zip(actors, bare, strict=True)]
        files: list[Away] = []
        for actor, own, said in zip(actors, dealt, begun, strict=True):
            for (_, outputs), lacking in zip(own, self._hear(said), strict=True):
                slots = slots_of(outputs, plan.references, seed)
                sizes = [slot.part.elements * BITS[slot.output.dtype] // 8 for slot in slots]
                files.append(Away(actor, slots, sizes, dict.fromkeys(lacking)))
        super().__init__(files, progress)

    def write(self, taken: Taken, blocks: Iterable[Any]) -> None:
        """Have written what takes of a tensor, unless it is there; see `Sink`."""
        lacking = self.lacking(taken)
        if lacking:
            there = [block if isinstance(block, ray.ObjectRef) else ray.put(block) for block in blocks]
            for file, i in lacking:
                del file.lacking[i]
            self._asked += [actor.write.remote(taken, there) for actor in {file.actor for file, _ in lacking}]

    def finish(self, within: str = "") -> None:
        """Have written all parts that aren't there yet, a layer at a time, and what is complete given its name; see
        `Sink`."""

        def take(number: int, name: str, tensor: Any) -> None:
            self.pass_by(number, name, [tensor])

        left = dict.fromkeys(
            slot.taken for file in self.files for i, slot in enumerate(file.slots)
            if i in file.lacking and slot.taken and slot.output.name.startswith(within)
        )  # fmt: skip
        layers = sorted(left, key=self._layer)
        for _, group in groupby(layers, self._layer):
            names: dict[int, list[str]] = {}
            for taken in group:
                if taken.kind is Piece:
                    names.setdefault(taken.source, []).append(taken.name)
                else:
                    self.write(taken, [self.computed[taken.name].load()])
            for said in self._cluster.each(passed_on, ((n, (some,)) for n, some in names.items()), take):
                deque(said, 0)
            self.keep()
        self._all("finish", within)
        for file in self.files:
            for i in list(file.lacking):
                if file.slots[i].output.name.startswith(within):
                    del file.lacking[i]  # of one value

    def _layer(self, taken: Taken) -> int:
        """Give the number of a tensor's layer; of those outside, one before the first."""
        layer = self._plan.dense.layer_of(taken.name)
        return -1 if layer is None else layer

    def keep(self) -> None:
        """See to it that all that was written is on the disk, and noted; see `Sink`."""
        self._settle()
        self._all("keep")
        self._cluster.kept()

    def close(self) -> None:
        """Let the actors go; what one has begun to write, it ends."""
        if self._asked:
            ray.wait(list(self._asked), num_returns=len(self._asked), timeout=END)
        for actor in self._actors:
            ray.kill(actor)

    def _all(self, what: str, *given: Any) -> None:
        self._asked += [getattr(actor, what).remote(*given) for actor in self._actors]
        self._settle()

    def _settle(self) -> None:
        """Wait until all that was asked for is done."""
        while self._asked:
            self.moved(self._hear(self._asked.popleft()))

    def _hear(self, said: Any) -> Any:
        """Wait for what an actor says.

        Raises:
            Interrupted: if it died, or what it should write did.
            LazyMoEError, OSError: what it raised.
        """
        try:
            return hear(said, self._cluster.tell)
        except LOST as e:
            self._cluster.broke(e)
            raise Interrupted from e


def passed_on(model: Passing, names: Sequence[str]) -> Iterator[Tensor]:
    """Read tensors, for those who take what is read."""
    for name in names:
        model.load(name)
        yield torch.empty(0)


def _bare(output: Output) -> Output:
    """Leave out of an output what reads it: that doesn't travel."""
    parts = (
        replace(part, tensor=replace(part.tensor, reader=NOTHING)) if isinstance(part, Piece) else part
        for part in output.parts
    )
    return replace(output, parts=tuple(parts))
