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
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import torch
from torch import Tensor

from lazymoe.cluster.asking import LOST, alive, begin_on, hear
from lazymoe.cluster.model import by_bytes
from lazymoe.computing.places import Interrupted, Passing
from lazymoe.errors import LazyMoEError
from lazymoe.files import write_whole
from lazymoe.output.gguf import Export
from lazymoe.output.parts import Slot, Taken
from lazymoe.output.shards import Taker
from lazymoe.output.writer import Sink, Target, Writer
from lazymoe.planning.plan import Output, Piece, Plan
from lazymoe.progress import Progress
from lazymoe.quantizing.importance import Importance
from lazymoe.version import versions

if TYPE_CHECKING:
    from lazymoe.cluster.nodes import Cluster

MARK = "shared"  # a file among what is half-made: who sees it can write there
TAKEN = "taken"  # what an actor does beside writing
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

    def open(self, make: Callable[[], Sequence[Target]]) -> list[list[int]]:
        """Find what is there of files; give of each the numbers of the parts that aren't.

        Args:
            make: gives the files.
        """
        targets = make()
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

    def learn(self, news: Importance) -> int:
        """Take how much columns count, for what is quantized from now on."""
        for target in self._writer.files:
            if isinstance(target, Export):
                target.importance |= news
        return 0

    def finish(self, within: str) -> int:
        """Write what is of one value, and give what is complete its name; see `Sink.finish`."""
        self._writer.finish(within)
        return self._written()

    def keep(self) -> int:
        """See to it that all that was written is on the disk, and note it; see `Sink.keep`."""
        self._writer.keep()
        return self._written()

    def hand_over(self, take: Callable[[], Any]) -> Any:
        """Have a finished file taken, while others are written; see `shards.Taker.elsewhere`."""
        return take()


def begin_writing(work: Path, tick: Callable[[], None], most: int | None = None) -> list[Any]:
    """Begin an actor, `Writing`, on each machine that sees a folder; on none if that is this one alone.

    Args:
        work: the folder for what is half-made.
        tick: as `asking.wait` has it.
        most: of them, if there is not enough to write for all.
    """
    text, here = secrets.token_hex(), ray.get_runtime_context().get_node_id()
    write_whole(work / MARK, text)
    begun = {node: begin_on(node, Writing, {TAKEN: 1}) for node in alive()}
    asked = {node: actor.begin.remote(work / MARK, text) for node, actor in begun.items()}
    seeing = []
    for node, said in asked.items():
        with suppress(*LOST):
            if hear(said, tick) == versions():
                seeing.append(node)
    used = [] if seeing == [here] else seeing[:most]
    for node, actor in begun.items():
        if node not in used:
            ray.kill(actor)
    return [begun[node] for node in used]


@dataclass(eq=False)
class Away:
    """A file that is written elsewhere: `writer.Parts`.

    Attributes:
        actor: who writes it.
        path: its name in the end.
        slots, sizes, lacking: as `writer.Parts` has them.
        gone: whether it is on its way to the taker, or there.
    """

    actor: Any
    path: Path
    slots: list[Slot]
    sizes: list[int]
    lacking: dict[int, None]
    gone: bool = False

    @property
    def outputs(self) -> list[Output]:
        """The tensors that it holds."""
        return [slot.output for slot in self.slots if not slot.number]


class Spread(Sink[Away]):
    """Hands tensors to the actors that write them: what was handed over counts as there, `keep` and `finish` wait."""

    def __init__(
        self,
        cluster: Cluster,
        actors: Sequence[Any],
        plan: Plan,
        files: Sequence[Away],
        makes: Sequence[Callable[[], Sequence[Target]]],
        progress: Progress,
        stage: str = "write",
        taker: Taker | None = None,
        news: Callable[[], Importance] = dict,
    ) -> None:
        """Deal the files out, and find what is there.

        Args:
            cluster: that has the models.
            actors: `Writing`, one on each machine.
            plan: what is written.
            files: those of all actors.
            makes: for each actor, what gives the files there that are its own and not gone.
            progress, stage: as `Sink` has them.
            taker: as `shards_of` has it.
            news: gives how much columns count, as far as that has been learned since it was asked last.

        Raises:
            Interrupted: if a machine dies.
        """
        self._cluster, self._plan, self._actors, self._taker = cluster, plan, actors, taker
        self._news = news
        self._asked: deque[Any] = deque()
        self._going: deque[tuple[Away, Any]] = deque()  # files on their way to the taker
        begun = [actor.open.remote(make) for actor, make in zip(actors, makes, strict=True)]
        for actor, said in zip(actors, begun, strict=True):
            own = [file for file in files if file.actor is actor and not file.gone]
            for file, lacking in zip(own, self._hear(said), strict=True):
                file.lacking.update(dict.fromkeys(lacking))
        super().__init__(files, progress, stage)

    def write(self, taken: Taken, blocks: Iterable[Any]) -> None:
        """Have written what takes of a tensor, unless it is there; see `Sink`."""
        lacking = self.lacking(taken)
        if lacking:
            there = [block if isinstance(block, ray.ObjectRef) else ray.put(block) for block in blocks]
            for file, i in lacking:
                del file.lacking[i]
            if news := self._news():
                self._asked += [actor.learn.remote(news) for actor in self._actors]
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
        if self._taker:
            self._hand_over(self._taker, last=not within)

    def _hand_over(self, taker: Taker, last: bool) -> None:
        """Have finished files taken, one at a time by each machine; in the end wait until all are."""
        for file in self.files:
            if not file.lacking and not file.gone:
                take = taker.elsewhere(file.path, file.outputs)
                said = file.actor.hand_over.options(concurrency_group=TAKEN).remote(take)
                self._going.append((file, said))
                file.gone = True
        while len(self._going) > (0 if last else len(self._actors)):
            file, said = self._going.popleft()
            try:
                taken = hear(said, self._cluster.tell)
            except (LazyMoEError, *LOST):
                taker.take(file.path, file.outputs)  # from here: that tells what is wrong
            else:
                taker.took(file.path, taken)

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
