"""Step 4: make it. Stops cleanly on the kernel's interrupt, and goes on from there."""

from __future__ import annotations

from pathlib import Path

import ipywidgets as w

from lazymoe.merging import carry_out
from lazymoe.notebook import ui
from lazymoe.notebook.session import MISTAKES, NO_RECIPE, SESSION
from lazymoe.output.folder import PICTURES, REPORT
from lazymoe.recipe.schema import PROMPTED
from lazymoe.reporting.measuring import measure
from lazymoe.units import billions


def merge() -> w.Widget:
    """Make the panel: a button, its progress, and what came out."""
    told, bars, result = ui.Messages(), ui.Bars(), w.HTML()

    def run() -> None:
        bars.clear()
        result.value = ""
        recipe = SESSION.recipe
        if recipe is None:
            told.show("error", MISTAKES)
            return
        told.show("note", "Working. To stop, interrupt the kernel (■): nothing that is done gets lost.")
        with told.guard("Press Merge to go on from here."):
            prepared = SESSION.prepare(recipe)
            done = carry_out(prepared, SESSION.out, progress=bars)
            warnings = list(done.warnings)
            if not (SESSION.out / REPORT).exists() and recipe.gate_mode in PROMPTED:
                measured = measure(prepared, SESSION.out, losses=False, progress=bars)
                measured.save(SESSION.out)
                warnings += measured.problems()
            SESSION.change()
            total, active = billions(done.plan.parameters), billions(done.plan.active_parameters)
            told.show("good", f"{SESSION.name} is ready: {total} parameters, {active} active per token.")
            told.add("warning", *warnings)

    def hear() -> None:
        result.value = _picture(SESSION.merged) if SESSION.merged else ""
        if SESSION.merged:
            told.show("good", f"{SESSION.name} is ready. To make another, change the recipe and its output name.")
        elif SESSION.recipe:
            told.show("note", f"Press Merge. It will be made in the folder {SESSION.name}.")
        else:
            told.show("note", NO_RECIPE)

    start = ui.button("Merge", "merge-button", run, style="primary")
    SESSION.listen("merge", hear)
    return ui.panel("merge", start, bars, told, result)


def _picture(folder: Path) -> str:
    """Show the routing picture as HTML, for light and dark pages, if the routing was measured."""
    words = "Which expert the tokens of each domain go to, and what each expert gets in each layer"
    shown = ""
    for name, dark in PICTURES.items():
        if (folder / name).exists():
            theme = "dark" if dark else "light"
            shown += f'<img class="lazymoe-{theme}" alt="{words}" src="{ui.data_url(folder / name)}">'
    return shown
