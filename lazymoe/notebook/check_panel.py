"""Step 3: can it work, and what will it take? Before anything large is downloaded."""

from __future__ import annotations

from functools import partial

import ipywidgets as w

from lazymoe.notebook import ui
from lazymoe.notebook.session import MISTAKES, NO_RECIPE, SESSION
from lazymoe.notebook.work import Steps, Work
from lazymoe.planning.checking import examine


def check() -> w.Widget:
    """Make the panel: a button, and what it found."""
    result, told = w.HTML(), ui.Messages()
    checked = ""

    def run() -> Steps:
        nonlocal checked
        checked, result.value = SESSION.yaml, ""
        recipe, out = SESSION.recipe, SESSION.out
        if recipe is None:
            told.show("error", MISTAKES)
            return
        told.show("note", "Looking at configs and headers …")
        prepared = yield partial(SESSION.prepare, recipe)
        found = yield partial(examine, prepared, out)
        if checked != SESSION.yaml:
            told.show("note", "The recipe has changed since. Press Check again.")
            return
        result.value = ui.table(found.figures())
        told.value = ""
        told.add("error", *found.errors)
        told.add("warning", *found.warnings)
        told.add("note", *found.notes)
        if found.plan:
            SESSION.checked = SESSION.yaml, found
            work.end()
            SESSION.change()
        if not found.errors:
            told.add("good", f"This can be merged{', with these doubts' if found.warnings else ''}.")

    def hear() -> None:
        work.allow(SESSION.recipe is not None)
        if work.goes_on or (checked and checked == SESSION.yaml):
            return
        result.value = ""
        told.show("note", "Press Check." if SESSION.recipe else NO_RECIPE)

    start = ui.button("Check", "check-button", lambda: work.begin(run()), style="primary")
    work = Work(start, "check", told, "Press Check again.")
    SESSION.listen("check", hear)
    return ui.panel("check", work, told, result)
