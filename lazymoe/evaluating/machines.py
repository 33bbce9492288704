"""An evaluation on a cluster: each of those who are asked is asked on one of the machines that see the mixture.

Answers come here as they are given, and are kept here: what a machine has asked that dies, another one need not ask
again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any, Literal, NamedTuple

import ray
import torch

from lazymoe.cluster.asking import LOST, alive, begin_on, check_versions, hear, lost
from lazymoe.evaluating.asking import Asking, Wanted, opened
from lazymoe.evaluating.kept import Answers, Kept
from lazymoe.evaluating.questions import OWN
from lazymoe.files import absolute
from lazymoe.hub.accounts import find_token
from lazymoe.hub.client import use_token
from lazymoe.progress import Progress, silent
from lazymoe.version import versions

ASKING = "asking"  # what an actor does beside telling how far it is
OFTEN = 1.0  # seconds between two times that it is asked that, unless one has ended


class Ready(NamedTuple):
    """What a machine says that sees the mixture: which it is, its versions, and its free memory."""

    fingerprint: str
    versions: dict[str, str]
    free: int


class Sent(Answers):
    """Answers that are kept elsewhere.

    Attributes:
        told: told of new ones.
    """

    def __init__(self, known: Mapping[str, Any], told: Callable[[Mapping[str, Any]], None]) -> None:
        super().__init__(known)
        self.told = told

    def add(self, answers: Mapping[str, Any]) -> None:
        """Send answers."""
        super().add(answers)
        self.told(answers)


class Machine:
    """One that asks, as an actor."""

    def begin(self, wanted: Wanted, files: Mapping[str, bytes], threads: int, token: str | None) -> Ready | None:
        """Open what is wanted; None if there is no such mixture here.

        Args:
            wanted: this.
            files: of questions, by their names in it.
            threads: that compute, as many as elsewhere: sums depend on it.
            token: for the Hub; kept in memory alone.

        Raises:
            LazyMoEError: if something else of it can't be had.
        """
        if token:
            use_token(token)
        self._threads = threads
        if not wanted.folder.is_dir():
            return None
        with TemporaryDirectory() as place:
            here = {}
            for i, (name, content) in enumerate(files.items()):
                here[name] = Path(place) / str(i) / Path(name).name
                here[name].parent.mkdir()
                here[name].write_bytes(content)
            names = [str(here.get(name, name)) for name in wanted.names]
            self._asking = opened(wanted._replace(names=names))
        self._lock, self._answered, self._news = Lock(), 0, dict[str, Any]()
        return Ready(self._asking.done.record.fingerprint, versions(), self._asking.free)

    def ask(
        self, number: int, left_out: list[str], bits: Literal[4] | None, known: Mapping[str, Any]
    ) -> tuple[str, dict[str, Any]]:
        """Ask one of those who can be asked; see `Asking.answers`.

        Args:
            number: of it.
            left_out: names of rows that aren't asked.
            bits, known: as there.
        """
        torch.set_num_threads(self._threads)  # of this thread
        self._asking.leave_out(left_out)
        sent = Sent(known, self._told)
        [found] = self._asking.answers([number], bits, silent, self._passed, lambda _: sent)
        return found

    def _passed(self, answered: int) -> None:
        self._answered = answered

    def _told(self, answers: Mapping[str, Any]) -> None:
        with self._lock:
            self._news |= answers

    def so_far(self) -> tuple[int, dict[str, Any]]:
        """Tell how many questions are answered, about, and the answers since this was asked last."""
        with self._lock:
            news, self._news = self._news, {}
        return self._answered, news


@contextmanager
def machines(asking: Asking) -> Iterator[Machines]:
    """Have a mixture and its parts asked on the machines of a cluster that see its folder.

    Args:
        asking: what is wanted.

    Raises:
        LazyMoEError: if a machine can't have what is wanted.
    """
    found = Machines(asking)
    try:
        found.begin()
        yield found
    finally:
        found.end()


class Machines:
    """Those who are asked, spread over the machines of a cluster: `asking.Seated`."""

    def __init__(self, asking: Asking) -> None:
        self._asking, self._rows = asking, [row.name for row in asking.rows]
        self._actors: list[Any] = []
        self.free = 0

    def begin(self) -> None:
        """Begin an actor on each machine that has the mixture's folder."""
        wanted, found = self._asking.wanted, find_token()
        files = {name: absolute(name).read_bytes() for name in wanted.names if name.endswith(OWN)}
        begun = [begin_on(node, Machine, {ASKING: 1}) for node in alive()]
        asked = [actor.begin.remote(wanted, files, torch.get_num_threads(), found and found[0]) for actor in begun]
        ready: list[Ready] = []
        for actor, said in zip(begun, asked, strict=True):
            self._actors.append(actor)
            with suppress(*LOST):
                if (there := hear(said, lambda: None)) and there.fingerprint == self._asking.done.record.fingerprint:
                    check_versions(there.versions)
                    ready.append(there)
                    continue
            ray.kill(self._actors.pop())
        self.free = min((there.free for there in ready), default=0)

    def end(self) -> None:
        """Let the actors go."""
        for actor in self._actors:
            ray.kill(actor)

    def ask(self, bits: Literal[4] | None, progress: Progress) -> dict[str, dict[str, Any]]:
        """Ask all of them, the largest first, one on a machine at a time; see `Seated`.

        Raises:
            ClusterError: if all machines have died.
        """
        asking = self._asking
        left_out = sorted(set(self._rows) - {row.name for row in asking.rows})
        models = [found.open() for found in asking.models]
        kept = [Kept(model.fingerprint) for model in models]
        left = sorted(range(len(models)), key=lambda number: models[number].nbytes)
        idle, busy = list(self._actors), dict[Any, tuple[Any, int]]()
        done, found = dict.fromkeys(left, 0), dict[int, dict[str, Any]]()
        died = Exception("there is none that sees the mixture")

        def tell() -> None:
            progress("evaluate", sum(done.values()), asking.questions * len(models))

        while len(found) < len(models):
            while idle and left:
                actor, number = idle.pop(), left.pop()
                asking_it = actor.ask.options(concurrency_group=ASKING)
                said = asking_it.remote(number, left_out, bits, kept[number].all)
                busy[said] = actor, number
            if not busy:
                raise lost("what asks", "--on", died)
            ready, _ = ray.wait(list(busy), timeout=OFTEN)
            for said, (actor, number) in list(busy.items()):
                try:
                    done[number], news = hear(actor.so_far.remote(), tell)
                    if news:
                        kept[number].add(news)
                    if said in ready:
                        _, found[number] = hear(said, tell)
                        done[number] = asking.questions
                        idle.append(actor)
                        del busy[said]
                except LOST as e:
                    died = e
                    left.append(number)
                    del busy[said]
            tell()
        return {model.name: found[number] for number, model in enumerate(models)}
