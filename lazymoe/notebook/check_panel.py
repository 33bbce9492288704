"""Step 3: can it work, and what will it take? Before anything large is downloaded."""

from __future__ import annotations

from functools import partial

import ipywidgets as w

from lazymoe.notebook import ui
from lazymoe.notebook.destination import Ways
from lazymoe.notebook.session import MISTAKES, NO_RECIPE, NO_ROOM, SESSION
from lazymoe.notebook.work import Steps, Work
from lazymoe.planning.checking import AS_DOWNLOADS, Check, examine


def check() -> w.Widget:
    """Make the panel: a button, what it found, and the ways to choose from."""
    result, ways, told = w.HTML(), Ways(), ui.Messages()
    checked = ""

    def run() -> Steps:
        nonlocal checked
        checked = SESSION.yaml
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
        SESSION.checked = SESSION.yaml, found
        work.end()
        SESSION.change()

    def hear() -> None:
        work.allow(SESSION.recipe is not None)
        if work.goes_on:
            return
        ways.hear()
        found = SESSION.found
        result.value = ui.table(found.figures()) if found else ""
        if found:
            _tell(told, found)
        elif not checked or checked != SESSION.yaml:
            told.show("note", "Press Check." if SESSION.recipe else NO_RECIPE)

    start = ui.button("Check", "check-button", lambda: work.begin(run()), style="primary")
    work = Work(start, "check", told, "Press Check again.")
    SESSION.listen("check", hear)
    return ui.panel("check", work, told, result, ways)


def _tell(told: ui.Messages, found: Check) -> None:
    """Say what was found, and whether it fits in the way that is chosen."""
    told.value = ""
    told.add("error", *found.errors)
    told.add("warning", *found.warnings)
    told.add("note", *found.notes)
    if any(way.upload_seconds for way in found.ways):
        told.add("note", AS_DOWNLOADS)
    if SESSION.has_no_room:
        told.add("warning", NO_ROOM)
    elif SESSION.way:
        told.add("good", f"This can be merged{SESSION.way.how}{', with these doubts' if found.warnings else ''}.")
