"""A merge on a rented machine: its price and a yes to that, what it says, found again, stopped."""

from __future__ import annotations

import html
from collections import deque
from collections.abc import Callable, Generator
from functools import partial
from typing import Any

import ipywidgets as w

from lazymoe.errors import LazyMoEError
from lazymoe.hub.jobs import Job
from lazymoe.jobs.offer import Offer
from lazymoe.jobs.orders import merging
from lazymoe.jobs.renting import rent, stop_on_jobs
from lazymoe.notebook import ui
from lazymoe.notebook.session import SESSION
from lazymoe.notebook.work import Steps, Work
from lazymoe.planning.prepared import Prepared
from lazymoe.publishing import Published

PRICE = "You are told the price first."
LEFT = "It isn't followed any more. A job that runs goes on; press Merge to follow it again."
LINES = 8  # of what it says that are shown


class Rented(w.VBox):
    """What was offered, and what the machine says."""

    def __init__(self) -> None:
        self._agreed: tuple[str, str] | None = None  # for what, and at which price, if it is pressed again
        self._lines: deque[str] = deque(maxlen=LINES)
        self._log = w.HTML()
        self._log.add_class("lazymoe-rented-log")
        super().__init__([self._log])

    def hear(self, line: str) -> None:
        """Show a line that the machine says, below the last ones."""
        self._lines.append(line)
        self._log.value = f"<pre>{html.escape(chr(10).join(self._lines))}</pre>"

    def rent(
        self, prepared: Prepared, repo: str, private: bool, work: Work, told: ui.Messages
    ) -> Generator[Callable[[], Any], Any, Published | None]:
        """Have a mixture made: at the first press ask for the price, at the second start; follow a job that runs.

        Args:
            prepared: the recipe.
            repo: its Hub id.
            private: whether a new repository is to be seen by its owner only.
            work: whose steps these are.
            told: where it says what it waits for.

        Returns:
            Where the mixture is; None if it waits for a yes, or was stopped.
        """
        SESSION.change(rented=(repo, private))  # a new notebook finds it again
        order = yield partial(merging, prepared, repo, private=private)
        offers: list[Offer] = []

        def agree(offer: Offer) -> bool:
            offers.append(offer)
            return self._agreed == (order.fingerprint, str(offer))

        def started(job: Job) -> None:
            self._agreed = None  # a yes is for one machine
            work.say(f"{job.url} makes it. It goes on without this notebook; Stop ends it.")

        self._lines.clear()
        self._log.value = ""
        try:
            done: Published = yield partial(
                rent, order, agree=agree, started=started, say=work.say, progress=work.progress
            )
        except LazyMoEError as e:
            if not offers or e.problems[0].code != "input.price":
                raise
            self._agreed = order.fingerprint, str(offers[0])
            told.show("warning", f"{offers[0]} Press Merge once more to rent it.")
            return None
        except KeyboardInterrupt:
            if not work.pressed:  # a kernel that is shut down is interrupted first
                told.show("warning", LEFT)
                return None
            told.show("note", "Stopping the job …")
            yield from _stop(repo)
            told.show("warning", "Stopped. The job has ended. Press Merge to start another.")
            return None
        return done


def _stop(repo: str) -> Steps:
    """Stop the job of a repository.

    Raises:
        KeyboardInterrupt: if there is none yet.
    """
    try:
        yield partial(stop_on_jobs, repo)
    except LazyMoEError as e:
        if e.problems[0].code != "hub.job-lost":
            raise
        raise KeyboardInterrupt from None
