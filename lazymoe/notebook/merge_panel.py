"""Step 4: make it, and see how good it is. It can be stopped, and goes on from there."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import ipywidgets as w

from lazymoe.errors import LazyMoEError
from lazymoe.jobs.orders import merging
from lazymoe.merging import carry_out
from lazymoe.notebook import ui
from lazymoe.notebook.destination import Destination
from lazymoe.notebook.rented import PRICE, Rented
from lazymoe.notebook.session import MISTAKES, NO_RECIPE, NO_ROOM, OLDER, SESSION
from lazymoe.notebook.verdict import QUICK, Verdict
from lazymoe.notebook.work import WORKING, Steps, Work
from lazymoe.output.folder import read_record, read_report
from lazymoe.planning.checking import examine
from lazymoe.planning.prepared import Prepared
from lazymoe.publishing import Published
from lazymoe.recipe.schema import PROMPTED
from lazymoe.reporting.measuring import measure
from lazymoe.reporting.report import illustrate
from lazymoe.to_hub import carry_to_hub
from lazymoe.units import billions

ROUTED = "Which expert the tokens of each domain go to, and what each expert gets in each layer"


class Merge:
    """The panel: where it goes, a button, its progress, what came out, and how good that is."""

    def __init__(self) -> None:
        self.told, self.bars, self.link = ui.Messages(), ui.Bars(), ui.Link()
        self.result, self.verdict = w.HTML(), Verdict()
        self.known: object = None  # which mixture, as measured, is shown
        self.sent: tuple[str, str] | None = None  # what went straight to the Hub: its recipe, its page
        self.destination = Destination()
        self.rented = Rented("merge", "Merge", self.destination.machine, **self.destination.repository.fields)
        start = ui.button("Merge", "merge-button", lambda: self.work.begin(self._run()), style="primary")
        again = "Press Merge to go on from here."
        self.work = Work(start, "merge", self.told, again, self.bars, self.rented.hear)
        shown = (self.destination, self.work, self.bars, self.told, self.rented, self.link, self.result)
        self.panel = ui.panel("merge", *shown, self.verdict.box)
        SESSION.listen("merge", self._hear)

    def _run(self) -> Steps:
        self.bars.clear()
        recipe, yaml, source, place = SESSION.recipe, SESSION.yaml, SESSION.source, SESSION.place
        if recipe is None:
            self.told.show("error", MISTAKES)
            return
        if SESSION.is_older and place != "rented":
            SESSION.change(name=SESSION.free_name)  # the older one stays
        prepared = yield partial(SESSION.prepare, recipe)
        if place == "rented":
            yield from self._elsewhere(replace(prepared, source=source), yaml)
            return
        if not SESSION.found or SESSION.found.errors:
            SESSION.checked = yaml, (yield partial(examine, prepared, SESSION.out))
        self.told.show("note", f"{WORKING}{_takes()}")
        try:
            yield from (self._to_hub if place == "hub" else self._to_folder)(replace(prepared, source=source), yaml)
        except LazyMoEError as e:
            if e.problems[0].code != "output.taken":
                raise
            taken = SESSION.name
            SESSION.change(name=SESSION.free_name)
            words = f"{taken} holds something else, which stays. Press Merge to make this one as {SESSION.name}."
            self.told.show("warning", words)

    def _to_folder(self, prepared: Prepared, yaml: str) -> Steps:
        out, recipe, progress = SESSION.out, prepared.recipe, self.work.progress
        done = yield partial(carry_out, prepared, out, progress=progress)
        doubts, known = list(done.warnings), read_report(out)
        losses = _bytes_to_read(prepared) < QUICK
        if recipe.gate_mode in PROMPTED and not (known.get("losses") if losses else known):
            report = yield partial(measure, prepared, out, losses=losses, progress=progress)
            report.save(out)
            doubts = [doubt for doubt in doubts if not doubt.code.startswith("report.")] + list(report.problems())
        yield partial(illustrate, out)
        self.work.end()
        SESSION.finish(out.name, yaml, list(map(str, doubts)))

    def _to_hub(self, prepared: Prepared, yaml: str) -> Steps:
        name, private = self.destination.repository.name, self.destination.repository.private
        done = yield partial(carry_to_hub, prepared, name, SESSION.out, private=private, progress=self.work.progress)
        self._show(name, done, yaml)

    def _elsewhere(self, prepared: Prepared, yaml: str) -> Steps:
        name, private = self.destination.repository.name, self.destination.repository.private
        order = yield partial(merging, prepared, name, private=private)
        done = yield from self.rented.rent(order, self.work, self.told)
        if done:
            self._show(name, done, yaml)

    def _show(self, name: str, done: Published, yaml: str) -> None:
        self.sent = yaml, done.url
        self.work.end()
        SESSION.change(sent=name)

    def _hear(self) -> None:
        if self.work.goes_on:
            return
        self.destination.hear()
        self.work.allow(SESSION.recipe is not None and self.destination.is_ready)
        folder = SESSION.merged
        if self.known != (known := (SESSION.mixture, SESSION.measured)):  # not at every key: pictures are read
            self.known = known
            self.result.value = ui.pictures(folder, ROUTED) if folder else ""
            self.verdict.show(folder)
        sent = self.sent[1] if SESSION.to_hub and self.sent and self.sent[0] == SESSION.yaml else None
        self.link.show(sent)
        if SESSION.is_older:
            again = f"Press Merge to make the new one as {SESSION.free_name}; {SESSION.name} stays."
            self.told.show("warning", f"{OLDER} {again if SESSION.recipe else NO_RECIPE}")
        elif sent:
            self.told.show("good", "It is on the Hub.")
        elif folder:
            with self.told.guard():
                self.told.show("good", _ready(folder))
        elif SESSION.has_no_room:
            self.told.show("warning", NO_ROOM)
        elif SESSION.recipe:
            goes = {"here": f"It goes into the folder {SESSION.name}.", "hub": "It goes straight to the Hub."}
            self.told.show("note", f"Press Merge. {goes.get(SESSION.place, PRICE)}{_takes()}")
        else:
            self.told.show("note", NO_RECIPE)
        if folder and SESSION.name in SESSION.made:
            self.told.add("warning", *SESSION.made[SESSION.name][1])


def merge() -> w.Widget:
    """Make the panel that makes the mixture."""
    return Merge().panel


def _takes() -> str:
    """Say how much the chosen way moves, as a sentence after another; nothing if that isn't known."""
    return f" {SESSION.way}" if SESSION.way else ""


def _bytes_to_read(prepared: Prepared) -> int:
    """Count the bytes of weights that measuring reads: of each model, of the experts again for their average."""
    base, *experts = (sum(source.weights.values()) for source in prepared.sources)
    return base + 2 * sum(experts) + prepared.sound_plan.nbytes


def _ready(folder: Path) -> str:
    record = read_record(folder)
    total, active = billions(record.parameters), billions(record.active_parameters)
    return f"{folder.name} is ready: {total} parameters, {active} active per token."
