"""Work on a rented machine, for each panel that can have some done there: its price and a yes to that, what it says,
found again, stopped."""

from __future__ import annotations

import html
from collections import deque
from collections.abc import Callable, Generator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import ipywidgets as w
from traitlets import TraitError

from lazymoe.errors import LazyMoEError
from lazymoe.hub.jobs import Job
from lazymoe.jobs.offer import Offer
from lazymoe.jobs.orders import Order
from lazymoe.jobs.renting import rent, stop_on_jobs
from lazymoe.notebook import ui
from lazymoe.notebook.session import SESSION
from lazymoe.notebook.work import Work
from lazymoe.publishing import Published

PRICE = "You are told the price first."
LINES = 8  # of what it says that are shown


class Rented(w.VBox):
    """What was offered, and what the machine says."""

    def __init__(self, panel: str, button: str, machine: w.Text, **form: w.Widget) -> None:
        """Show it, and in the form what was last asked for.

        Args:
            panel: whose it is, by which the session knows what was asked for.
            button: the label of what starts it.
            machine: the field that names the kind of machine.
            form: the other fields that say what is wanted; a new notebook finds the job again by the same.
        """
        self._panel, self._button, self._machine = panel, button, machine
        self._form: Mapping[str, Any] = {"machine": machine, **form}
        self._agreed: tuple[str, str] | None = None  # for what, and at which price, if it is pressed again
        self._other = ""  # for what another job is stopped, if it is pressed again
        self._lines: deque[str] = deque(maxlen=LINES)
        self._log = w.HTML()
        for name in ("log", f"{panel}-log"):
            self._log.add_class(f"lazymoe-{name}")
        super().__init__([self._log])
        for name, value in SESSION.rented.get(panel, {}).items():
            with suppress(KeyError, TraitError):  # of an older version
                self._form[name].value = value

    def hear(self, line: str) -> None:
        """Show a line that the machine says, below the last ones."""
        self._lines.append(line)
        self._log.value = f"<pre>{html.escape(chr(10).join(self._lines))}</pre>"

    def rent(self, order: Order, work: Work, told: ui.Messages) -> Generator[Callable[[], Any], Any, Published | None]:
        """Have an order done: at the first press ask for the price, at the second start; follow a job that runs.

        Args:
            order: what is wanted.
            work: whose steps these are.
            told: where it says what it waits for.

        Returns:
            Where it is; None if it waits for a yes, or was stopped.
        """
        SESSION.change(rented=SESSION.rented | {self._panel: {name: field.value for name, field in self._form.items()}})
        offers: list[Offer] = []

        def agree(offer: Offer) -> bool:
            offers.append(offer)
            return self._agreed == (order.fingerprint, str(offer))

        def started(job: Job) -> None:
            self._agreed = None  # a yes is for one machine
            work.say(f"{job.url} does it. It goes on without this notebook; Stop ends it.")

        self._lines.clear()
        self._log.value = ""
        again = f"{self._button} once more to"
        flavor = self._machine.value.strip() or None
        try:
            if self._other == order.fingerprint:
                self._other = ""
                yield from _stop(order.repo)
            done: Published = yield partial(
                rent, order, flavor, agree=agree, started=started, say=work.say, progress=work.progress
            )
        except LazyMoEError as e:
            [problem, *_] = e.problems
            if problem.code == "hub.job-other":
                self._other = order.fingerprint
                remedy = f"Wait until it has ended, or press {again} stop it."
                told.show("warning", f"{problem.where}: {problem.what}. {remedy}")
            elif problem.code == "input.price" and offers:
                self._agreed = order.fingerprint, str(offers[0])
                told.show("warning", f"{offers[0]} Press {again} rent it.")
            else:
                raise
            return None
        except KeyboardInterrupt:
            if not work.pressed:  # a kernel that is shut down is interrupted first
                words = f"A job that runs goes on; press {self._button} to follow it again."
                told.show("warning", f"It isn't followed any more. {words}")
                return None
            told.show("note", "Stopping the job …")
            if not (yield from _stop(order.repo)):
                raise
            told.show("warning", f"Stopped. The job has ended. Press {self._button} to start another.")
            return None
        return done


def _stop(repo: str) -> Generator[Callable[[], Any], Any, bool]:
    """Stop the job of a repository; tell whether there was one."""
    try:
        yield partial(stop_on_jobs, repo)
    except LazyMoEError as e:
        if e.problems[0].code != "hub.job-lost":
            raise
        return False
    return True
