"""What is asked of whom, opened where they are asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import psutil
import torch

from lazymoe.evaluating.bringing import bringing
from lazymoe.evaluating.kept import Answers, Kept, key_of
from lazymoe.evaluating.models import Found, find_models
from lazymoe.evaluating.tasks import Row, load_rows
from lazymoe.files import absolute, cache
from lazymoe.output.folder import Finished, open_finished, reopen
from lazymoe.planning.prepared import Prepared, Where
from lazymoe.progress import Progress
from lazymoe.reporting.measuring import Texts, by_expert

SHARE = 0.25  # of the memory that is free: what states may take of it


class Wanted(NamedTuple):
    """What is asked of whom.

    Attributes:
        folder: the mixture's.
        names: of tasks, as `load_rows` takes them.
        texts: of each expert's domain, as `lazymoe.report` takes them; None if there are none.
        kinds: of models, as `choose` gives them.
        limit: the most questions of each task.
        memory: bytes that states may take while they go through a layer; a share of what is free if None.
        device: where to compute.
        source: where the weights of models on the Hub are read.
    """

    folder: Path
    names: Sequence[str]
    texts: Texts | None
    kinds: Sequence[str]
    limit: int | None
    memory: int | None
    device: str
    source: Where


class Seated(Protocol):
    """Those who are asked, where they are."""

    @property
    def free(self) -> int:
        """Bytes of memory that are free there, at least."""

    def ask(self, bits: Literal[4] | None, progress: Progress) -> dict[str, dict[str, Any]]:
        """Ask all of them; give of each name what `harness.ask` gives.

        Args:
            bits: as in `Model.load`, for what they write.
            progress: as `lazymoe.evaluate` has it.

        Raises:
            LazyMoEError: as `lazymoe.evaluate`.
            OSError: if something can't be written.
        """


@dataclass
class Asking:
    """What is wanted, opened: the mixture, its recipe, what is asked, and who. Here they are asked one by one.

    Attributes:
        wanted, done, prepared, rows, models: these.
    """

    wanted: Wanted
    done: Finished
    prepared: Prepared
    rows: list[Row]
    models: list[Found]

    @property
    def questions(self) -> int:
        """How many questions each of them is asked."""
        return sum(row.questions(self.wanted.limit) for row in self.rows)

    def leave_out(self, names: Iterable[str]) -> None:
        """Leave tasks out.

        Args:
            names: of their rows.
        """
        left = set(names)
        self.rows = [row for row in self.rows if row.name not in left]

    @property
    def free(self) -> int:
        """Bytes of memory that are free; see `Seated`."""
        return free_memory(self.wanted.device)

    def ask(self, bits: Literal[4] | None, progress: Progress) -> dict[str, dict[str, Any]]:
        """Ask all of them; see `Seated`."""
        found: dict[str, dict[str, Any]] = {}
        total = self.questions * len(self.models)

        def passed(answered: int) -> None:
            progress("evaluate", self.questions * len(found) + answered, total)

        for name, said in self.answers(range(len(self.models)), bits, progress, passed):
            found[name] = said
        return found

    def answers(
        self,
        numbers: Sequence[int],
        bits: Literal[4] | None,
        progress: Progress,
        passed: Callable[[int], None],
        keep: Callable[[str], Answers] = Kept,
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Ask some of them, one after the other.

        Args:
            numbers: which of the models.
            bits: as in `Model.load`, for what they write.
            progress: told of the bytes of models that are there, stage ``download``.
            passed: told how many questions, about, the one who is asked has answered.
            keep: gives what keeps the answers of a model, by its fingerprint.

        Yields:
            The name of each, and what `harness.ask` gives.

        Raises:
            LazyMoEError: as `lazymoe.evaluate`.
            OSError: if something can't be written.
        """
        from lazymoe.evaluating.harness import ask

        wanted, place = self.wanted, absolute(cache())
        place.mkdir(parents=True, exist_ok=True)
        some = [self.models[number] for number in numbers]
        key = key_of(self.done.record.fingerprint, list(numbers))  # machines may have one folder of caches
        with bringing(self.prepared, [found.sources for found in some if found.sources], key, progress) as reading:
            for found in some:
                model = found.open()
                with reading(model.sources):
                    means = model.means(wanted.memory or int(SHARE * self.free), place)
                    yield model.name, ask(
                        model, self.rows, wanted.limit, kept=keep(model.fingerprint), means=means, bits=bits,
                        device=wanted.device, passed=passed,
                    )  # fmt: skip


def opened(wanted: Wanted) -> Asking:
    """Open what is wanted.

    Args:
        wanted: this.

    Raises:
        LazyMoEError: if the folder isn't a finished mixture, or its recipe, a task or a data set can't be had.
    """
    done, prepared = open_finished(wanted.folder), reopen(wanted.folder, wanted.source)
    experts = prepared.recipe.names
    texts = dict(zip(experts, by_expert(wanted.texts, experts), strict=True)) if wanted.texts else {}
    rows = load_rows(wanted.names, texts)
    return Asking(wanted, done, prepared, rows, find_models(done, prepared, wanted.kinds, wanted.device))


def free_memory(device: str) -> int:
    """Find how many bytes of memory are free.

    Args:
        device: whose.
    """
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)
