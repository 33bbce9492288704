"""Step 4: make it. It can be stopped, and goes on from there."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import ipywidgets as w

from lazymoe.merging import carry_out
from lazymoe.notebook import ui
from lazymoe.notebook.session import MISTAKES, NO_RECIPE, SESSION
from lazymoe.notebook.work import Steps, Work
from lazymoe.output.folder import PICTURES, REPORT
from lazymoe.recipe.schema import PROMPTED
from lazymoe.reporting.measuring import measure
from lazymoe.units import billions


def merge() -> w.Widget:
    """Make the panel: a button, its progress, and what came out."""
    told, bars, result = ui.Messages(), ui.Bars(), w.HTML()

    def run() -> Steps:
        bars.clear()
        result.value = ""
        recipe, out = SESSION.recipe, SESSION.out
        if recipe is None:
            told.show("error", MISTAKES)
            return
        prepared = yield partial(SESSION.prepare, recipe)
        done = yield partial(carry_out, prepared, out, progress=work.progress)
        warnings = list(done.warnings)
        if not (out / REPORT).exists() and recipe.gate_mode in PROMPTED:
            measured = yield partial(measure, prepared, out, losses=False, progress=work.progress)
            measured.save(out)
            warnings += measured.problems()
        SESSION.change()
        result.value = _picture(out)
        total, active = billions(done.plan.parameters), billions(done.plan.active_parameters)
        told.show("good", f"{out.name} is ready: {total} parameters, {active} active per token.")
        told.add("warning", *warnings)

    def hear() -> None:
        if work.goes_on:
            return
        result.value = _picture(SESSION.merged) if SESSION.merged else ""
        if SESSION.merged:
            told.show("good", f"{SESSION.name} is ready. To make another, change the recipe and its output name.")
        elif SESSION.recipe:
            told.show("note", f"Press Merge. It will be made in the folder {SESSION.name}.")
        else:
            told.show("note", NO_RECIPE)

    start = ui.button("Merge", "merge-button", lambda: work.begin(run()), style="primary")
    work = Work(start, "merge", told, "Press Merge to go on from here.", bars)
    SESSION.listen("merge", hear)
    return ui.panel("merge", work, bars, told, result)


def _picture(folder: Path) -> str:
    """Show the routing picture as HTML, for light and dark pages, if the routing was measured."""
    words = "Which expert the tokens of each domain go to, and what each expert gets in each layer"
    shown = ""
    for name, dark in PICTURES.items():
        if (folder / name).exists():
            theme = "dark" if dark else "light"
            shown += f'<img class="lazymoe-{theme}" alt="{words}" src="{ui.data_url(folder / name)}">'
    return shown
