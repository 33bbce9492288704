"""Step 3: can it work, and what will it take? Before anything large is downloaded."""

from __future__ import annotations

import ipywidgets as w

from lazymoe.notebook import ui
from lazymoe.notebook.session import MISTAKES, NO_RECIPE, SESSION
from lazymoe.planning.checking import judge


def check() -> w.Widget:
    """Make the panel: a button, and what it found."""
    result, told = w.HTML(), ui.Messages()
    checked = ""

    def run() -> None:
        nonlocal checked
        checked, result.value = SESSION.yaml, ""
        recipe = SESSION.recipe
        if recipe is None:
            told.show("error", MISTAKES)
            return
        told.show("note", "Looking at configs and headers …")
        with told.guard("Press Check again."):
            found = judge(SESSION.prepare(recipe), SESSION.out)
            result.value = ui.table(found.figures())
            told.value = ""
            told.add("error", *found.errors)
            told.add("warning", *found.warnings)
            told.add("note", *found.notes)
            if not found.errors:
                told.add("good", f"This can be merged{', with these doubts' if found.warnings else ''}.")

    def hear() -> None:
        if checked and checked == SESSION.yaml:
            return
        result.value = ""
        told.show("note", "Press Check." if SESSION.recipe else NO_RECIPE)

    start = ui.button("Check", "check-button", run, style="primary")
    SESSION.listen("check", hear)
    return ui.panel("check", start, told, result)
