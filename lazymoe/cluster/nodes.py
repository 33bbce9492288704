"""A merge on a cluster of Ray, from the process that merges and fits.

Each model has an actor on one of the machines. What is asked of one that dies is asked again of another in its place,
which does the same: nothing of it is kept but what it has read.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import torch
from torch import Tensor

from lazymoe.checkpoint.source import Source
from lazymoe.cluster.asking import LOST, SAME, alive, begin_on, check_versions, hear, lost, wait
from lazymoe.cluster.dealing import spread_export, spread_shards
from lazymoe.cluster.model import Model, Told, Wanted, by_bytes
from lazymoe.cluster.writing import begin_writing
from lazymoe.computing.places import Asked, Here, Take, Work
from lazymoe.errors import error
from lazymoe.hub.accounts import find_token
from lazymoe.hub.ranges import Place, Ranges
from lazymoe.output.gguf import Export
from lazymoe.output.shards import Taker
from lazymoe.output.writer import Sink
from lazymoe.planning.plan import Piece, Plan
from lazymoe.planning.prepared import Prepared
from lazymoe.planning.remote import Remote
from lazymoe.progress import Progress
from lazymoe.recipe.reference import Reference

TRIES = 4  # how often a model is begun anew before anything comes of it


@contextmanager
def seated(prepared: Prepared, plan: Plan, remote: Remote | None, progress: Progress) -> Iterator[Cluster]:
    """Have each model of a plan read on one of the machines, and nowhere else.

    Args:
        prepared, plan: what is made.
        remote: what is read of models that stay on the Hub; None if none do.
        progress: told of the bytes that were brought, stage ``download``; what it raises stops a wait.

    Raises:
        LazyMoEError: if a machine can't have its model, or too many of them die.
    """
    cluster = Cluster(prepared, plan, remote, progress)
    try:
        cluster.begin()
        yield cluster
    finally:
        cluster.end()


@dataclass(eq=False)
class _Seat:
    """A model, and the actor that has it.

    Attributes:
        source: the model, as it is known here.
        where: how messages name the place that it was asked for.
        written: names of its tensors that are written when they are read.
        actor, node: which has it, and the machine that this is on.
        begun: the answer to its beginning.
        brought: bytes that it has read on the Hub, and those that actors before it have.
        failed: how many died since something came of one.
    """

    source: Source
    where: str
    written: set[str] = field(default_factory=set)
    actor: Any = None
    node: str = ""
    begun: Any = None
    brought: int = 0
    before: int = 0
    failed: int = 0


class Cluster:
    """The models of a plan on the machines of a cluster: `Places`, and what reads them on the Hub; see `seated`."""

    def __init__(self, prepared: Prepared, plan: Plan, remote: Remote | None, progress: Progress) -> None:
        self._plan, self._progress, self._total = plan, progress, remote.nbytes if remote else 0
        self._kept, self._allow_pickle = remote.kept if remote else frozenset[str](), prepared.allow_pickle
        seats: dict[Reference, _Seat] = {}
        named = zip(prepared.recipe.models, plan.sources, strict=True)
        self._seats = [seats.setdefault(s.reference, _Seat(s, model.where)) for model, s in named]  # of each source
        for part in (part for output in plan.outputs for part in output.parts):
            if isinstance(part, Piece):
                self._seats[part.source].written.add(part.tensor.name)
        self._each_once = list(seats.values())
        self._died = Counter[str]()  # actors, by the machine
        self._spread = False  # whether what is read is written where it is, or elsewhere, but not here
        self._broke = 0  # how often writing did since something was kept

    def begin(self) -> None:
        """Begin an actor for each model, and read by it from now on."""
        by_bytes()
        for seat in self._each_once:
            self._start(seat)
        for seat in self._each_once:
            self._settle(seat)
            if seat.source.origin and seat.source.origin.ranges:
                seat.source.origin.ranges.reader = functools.partial(self._read, seat)

    def end(self) -> None:
        """Let the actors go."""
        for seat in self._each_once:
            if seat.actor:
                ray.kill(seat.actor)
            if seat.source.origin and seat.source.origin.ranges:
                seat.source.origin.ranges.reader = None

    def each(self, work: Work, asked: Asked, take: Take) -> Iterator[Iterator[Tensor]]:
        """Have a piece of work begun for several models at once; see `Places`."""
        sent: dict[int, tuple[Any, Any]] = {}  # by its identity, what was sent, which keeps that, and where it is

        def put(given: Any) -> Any:
            given = list(given) if isinstance(given, Iterator) else given
            if id(given) not in sent:
                sent[id(given)] = given, ray.put(given)
            return sent[id(given)][1]

        precision, begun = torch.get_float32_matmul_precision(), []
        for number, given in asked:
            beside = [put(one) for one in given]
            ask = functools.partial(self._ask, number, work, precision, number, *beside)
            begun.append((number, ask, self._seats[number].actor, ask()))
        return (self._answers(*one, take) for one in begun)

    def writer(
        self, plan: Plan, out: Path, work: Path, seed: int, taker: Taker | None, progress: Progress
    ) -> Sink[Any]:
        """Make what writes the files, on all machines that see the folder if it isn't just this one; see `Places`."""
        actors = begin_writing(work, self.tell)
        self._spread = bool(actors)
        if not actors:
            return Here(plan.sources).writer(plan, out, work, seed, taker, progress)
        return spread_shards(self, actors, plan, out, work, seed, taker, progress)

    def exporter(self, export: Export, work: Path, threads: int, progress: Progress) -> Sink[Any]:
        """Make what writes GGUF files, on the machines that see the folder: each writes those of some types; see
        `Places`."""
        actors = begin_writing(work, self.tell, len(export.files))
        self._spread = bool(actors)
        if not actors:
            return Here(self._plan.sources).exporter(export, work, threads, progress)
        return spread_export(self, actors, self._plan, export, threads, progress)

    def kept(self) -> None:
        """Note that what was written until now isn't lost any more."""
        self._broke = 0

    def broke(self, e: Exception) -> None:
        """Count that something which writes died.

        Args:
            e: what was raised of it.

        Raises:
            ClusterError: if too many have.
        """
        self._broke += 1
        if self._broke > TRIES:
            raise lost("what writes the mixture", "--on", e)

    def _ask(self, seat: int, *work: Any) -> Any:
        return self._seats[seat].actor.work.remote(*work)

    def _answers(self, number: int, ask: Callable[[], Any], actor: Any, stream: Any, take: Take) -> Iterator[Tensor]:
        """Yield what comes of a piece of work, and hand on what was read for it; if its actor dies, go on with what
        another one says, behind what is known."""
        seat, known = self._seats[number], 0
        while True:
            try:
                for told, read in itertools.islice(self._listen(stream), known, None):
                    value = read if self._spread or not told.name else hear(read, self.tell)
                    known += 1
                    self._hear(seat, told)
                    if told.name:
                        take(number, told.name, value)
                    else:
                        yield told.value
                return
            except LOST as e:
                self._replace(seat, actor, e)
                actor, stream = seat.actor, ask()

    def _listen(self, stream: Any) -> Iterator[tuple[Told, Any]]:
        """Yield what is said, with what stands for a tensor that was read, if it is of one."""
        while True:
            wait(stream, self.tell)
            try:
                told = hear(next(stream), self.tell)
            except StopIteration:
                return
            if told.name:
                wait(stream, self.tell)
            yield told, next(stream) if told.name else None

    def _read(self, seat: _Seat, _: Ranges, place: Place) -> bytearray:
        """Read bytes of a model's file where it is read; stands for `Ranges.read`."""
        while True:
            actor = seat.actor
            try:
                told = hear(actor.read.remote(place.file, place.begin, place.end - place.begin), self.tell)
                self._hear(seat, told)
                return bytearray(told.value)
            except LOST as e:
                self._replace(seat, actor, e)

    def _hear(self, seat: _Seat, told: Told) -> None:
        seat.brought, seat.failed = seat.before + told.brought, 0
        self.tell()

    def tell(self) -> None:
        brought = sum(seat.brought for seat in self._each_once)
        if self._total:
            self._progress("download", min(brought, self._total), self._total)

    def _start(self, seat: _Seat) -> None:
        """Begin an actor, on the machine where the fewest have died, and that has the fewest; on this one last."""
        seat.node, here = "", ray.get_runtime_context().get_node_id()
        taken = Counter(seat.node for seat in self._each_once)
        seat.node = min(alive(), key=lambda node: (self._died[node], taken[node], node == here))
        wanted = Wanted(
            Reference.parse(seat.source.pinned), Path.cwd(), seat.where, seat.source.fingerprint, self._allow_pickle,
            frozenset(seat.written), self._kept,
        )  # fmt: skip
        seat.before = seat.brought
        seat.actor = begin_on(seat.node, Model)
        found = find_token()  # not before the actor is there: who begins one is kept with what it was begun with
        seat.begun = seat.actor.begin.remote(wanted, torch.get_num_threads(), found and found[0])

    def _settle(self, seat: _Seat) -> None:
        """Wait until an actor has its model.

        Raises:
            LazyMoEError: if it can't have it.
        """
        try:
            check_versions(hear(seat.begun, self.tell))
        except LOST as e:
            self._replace(seat, seat.actor, e)

    def _replace(self, seat: _Seat, actor: Any, e: Exception) -> None:
        """Begin another actor in place of one that died, unless that is done.

        Raises:
            ClusterError: if too many have died.
        """
        if seat.actor is not actor:
            return
        seat.failed += 1
        self._died[seat.node] += 1
        if "No module named 'lazymoe" in str(e):
            raise error("cluster.versions", "--on", "a machine has no or another LazyMoE", SAME)
        if seat.failed > TRIES:
            raise lost(f"what reads {seat.source.reference}", seat.where, e)
        ray.kill(actor)  # it may live, and be out of reach
        self._start(seat)
        self._settle(seat)
