"""Step 4: make it, and see how good it is. It can be stopped, and goes on from there."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import ipywidgets as w

from lazymoe.errors import LazyMoEError
from lazymoe.merging import carry_out
from lazymoe.notebook import ui
from lazymoe.notebook.session import MISTAKES, NO_RECIPE, OLDER, SESSION
from lazymoe.notebook.verdict import QUICK, Verdict
from lazymoe.notebook.work import Steps, Work
from lazymoe.output.folder import REPORT, read_record
from lazymoe.planning.prepared import Prepared
from lazymoe.recipe.schema import PROMPTED
from lazymoe.reporting.measuring import measure
from lazymoe.units import billions

ROUTED = "Which expert the tokens of each domain go to, and what each expert gets in each layer"


def merge() -> w.Widget:
    """Make the panel: a button, its progress, what came out, and how good that is."""
    told, bars, result, verdict = ui.Messages(), ui.Bars(), w.HTML(), Verdict()
    known: object = None  # which mixture, as measured, is shown

    def run() -> Steps:
        bars.clear()
        recipe, yaml = SESSION.recipe, SESSION.yaml
        if recipe is None:
            told.show("error", MISTAKES)
            return
        if SESSION.is_older:
            SESSION.change(name=SESSION.free_name)  # the older one stays
        out = SESSION.out
        prepared = yield partial(SESSION.prepare, recipe)
        try:
            done = yield partial(carry_out, prepared, out, progress=work.progress)
        except LazyMoEError as e:
            if e.problems[0].code != "output.taken":
                raise
            SESSION.change(name=SESSION.free_name)
            words = f"{out.name} holds something else, which stays. Press Merge to make this one as {SESSION.name}."
            told.show("warning", words)
            return
        doubts = list(done.warnings)
        if not (out / REPORT).exists() and recipe.gate_mode in PROMPTED:
            losses = _bytes_to_read(prepared) < QUICK
            report = yield partial(measure, prepared, out, losses=losses, progress=work.progress)
            report.save(out)
            doubts += report.problems()
        work.end()
        SESSION.finish(out.name, yaml, list(map(str, doubts)))

    def hear() -> None:
        nonlocal known
        if work.goes_on:
            return
        work.allow(SESSION.recipe is not None)
        folder = SESSION.merged
        if known != (known := (SESSION.mixture, SESSION.measured)):  # not at every key: pictures are read
            result.value = ui.pictures(folder, ROUTED) if folder else ""
            verdict.show(folder)
        if SESSION.is_older:
            again = f"Press Merge to make the new one as {SESSION.free_name}; {SESSION.name} stays."
            told.show("warning", f"{OLDER} {again if SESSION.recipe else NO_RECIPE}")
        elif folder:
            with told.guard():
                told.show("good", _ready(folder))
        elif SESSION.recipe:
            told.show("note", f"Press Merge. It will be made in the folder {SESSION.name}.{SESSION.volume}")
        else:
            told.show("note", NO_RECIPE)
        if folder and SESSION.name in SESSION.made:
            told.add("warning", *SESSION.made[SESSION.name][1])

    start = ui.button("Merge", "merge-button", lambda: work.begin(run()), style="primary")
    work = Work(start, "merge", told, "Press Merge to go on from here.", bars)
    SESSION.listen("merge", hear)
    return ui.panel("merge", work, bars, told, result, verdict.box)


def _bytes_to_read(prepared: Prepared) -> int:
    """Count the bytes of weights that measuring reads: of each model, of the experts again for their average."""
    base, *experts = (sum(source.weights.values()) for source in prepared.sources)
    return base + 2 * sum(experts) + prepared.sound_plan.nbytes


def _ready(folder: Path) -> str:
    record = read_record(folder)
    total, active = billions(record.parameters), billions(record.active_parameters)
    return f"{folder.name} is ready: {total} parameters, {active} active per token."
