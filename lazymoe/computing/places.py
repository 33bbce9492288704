"""Where a model's part of the work is done and files are written: here, one by one, or on several machines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lazymoe.checkpoint.source import Source
from lazymoe.output.shards import Taker, shards_of
from lazymoe.output.writer import Sink, Writer
from lazymoe.planning.plan import Plan
from lazymoe.progress import Progress

if TYPE_CHECKING:
    from torch import Tensor

    from lazymoe.output.gguf import Export

# a function of a model and of what else it takes: what comes of it. Iterators among that are gone through once.
Work = Callable[..., "Iterator[Tensor]"]
Asked = Iterable[tuple[int, tuple[Any, ...]]]  # numbers of sources, and what the work takes beside each
Each = Callable[[Work, Asked], "Iterator[Iterator[Tensor]]"]  # gives what comes of each, in the order of the asked
# takes a tensor that was read: the number of its source, its name, and it, or what stands for it and a `Sink` can take
Take = Callable[[int, str, Any], None]


class Interrupted(Exception):
    """Raised of a machine that died with what it had written since it was last noted: what goes on from there must be
    begun anew."""


class Places(Protocol):
    """What has work done, and files written."""

    def writer(
        self, plan: Plan, out: Path, work: Path, seed: int, taker: Taker | None, progress: Progress
    ) -> Sink[Any]:
        """Make what writes the files of a plan's tensors; what is there already stays.

        Args:
            plan, out, work, seed, taker: as `shards_of` has them.
            progress: told of the bytes written, stage ``write``.

        Raises:
            Interrupted: if a machine dies; so do the sink's own functions.
        """

    def exporter(self, export: Export, work: Path, threads: int, progress: Progress) -> Sink[Any]:
        """Make what writes GGUF files; what is there already stays.

        Args:
            export: the files, laid out; what else is learned of how much columns count is looked at.
            work: a folder of what is half-made of them.
            threads: how many quantize, on each machine.
            progress: told of the bytes written, in the plan's dtype, stage ``quantize``.

        Raises:
            Interrupted: as `writer`.
        """

    def each(self, work: Work, asked: Asked, take: Take) -> Iterator[Iterator[Tensor]]:
        """Have a piece of work done for several models.

        Args:
            work: what to do with each, as exactly as products are to be here.
            asked: the models.
            take: given each tensor that was loaded for it, so that nobody has to read it again.

        Returns:
            What comes of each, in the order of the asked; perhaps nothing of it is done before it is wanted.

        Raises:
            LazyMoEError: what the work raises, or reading the model.
        """


class Here:
    """This process: all is done when it is wanted, so one model is in memory at a time."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources

    def writer(self, plan: Plan, out: Path, work: Path, seed: int, taker: Taker | None, progress: Progress) -> Writer:
        """Make what writes the files of a plan's tensors; see `Places`."""
        return Writer(shards_of(plan, out, work, seed, taker), progress)

    def exporter(self, export: Export, work: Path, threads: int, progress: Progress) -> Writer:
        """Make what writes GGUF files; see `Places`."""
        export.open(threads)
        return Writer([export], progress, "quantize")

    def each(self, work: Work, asked: Asked, take: Take) -> Iterator[Iterator[Tensor]]:
        """Have a piece of work done for several models; see `Places`."""
        return (work(Passing(self._sources[number], number, take), *given) for number, given in asked)


class Passing:
    """A source whose tensors are handed on when they are loaded."""

    def __init__(self, source: Source, number: int, take: Take) -> None:
        self._load, self._number, self._take = source.load, number, take
        self.config, self.folder, self.tensors, self.dense = source.config, source.folder, source.tensors, source.dense
        self.rows, self.has, self.tensor = source.rows, source.has, source.tensor

    def load(self, name: str) -> Tensor:
        """Read a tensor."""
        tensor = self._load(name)
        self._take(self._number, name, tensor)
        return tensor
