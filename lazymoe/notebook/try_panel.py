"""Step 5: which expert takes which word of a text, three models' answers side by side, and a chat with the mixture."""

from __future__ import annotations

from functools import partial

import ipywidgets as w

from lazymoe.notebook import ui
from lazymoe.notebook.chat import Chat
from lazymoe.notebook.comparison import Comparison
from lazymoe.notebook.routing import show
from lazymoe.notebook.session import NO_MIXTURE, OLDER, SESSION
from lazymoe.notebook.work import Steps, Work
from lazymoe.output.folder import open_finished
from lazymoe.reporting.measuring import trace

EXAMPLE = "Write a Python function that adds two numbers."


def try_it() -> w.Widget:
    """Make the panel: routing for a text, a comparison, and a chat."""
    older, told, shown = ui.Messages(), ui.Messages(), w.HTML()
    text = ui.field(w.Textarea, "Text", "try-text", value=EXAMPLE, layout={"height": "60px"})
    chat = Chat()
    comparison = Comparison(chat)
    chat.rival = comparison.work
    known: object = ()  # which mixture they talk of

    def run() -> Steps:
        folder = SESSION.merged
        shown.value = ""
        if not folder:
            told.show("note", NO_MIXTURE)
            return
        told.show("note", "Running the text through the mixture, layer by layer …")
        tokens, experts = yield partial(trace, folder, text.value)
        shown.value = show(open_finished(folder).recipe.names, tokens, experts)
        told.value = ""

    def hear() -> None:
        nonlocal known
        for each in (work, chat.work, comparison.work):
            each.allow(SESSION.merged is not None)
        older.value = ui.told("warning", OLDER) if SESSION.is_older else ""
        if SESSION.mixture == known or chat.work.goes_on or comparison.work.goes_on or work.goes_on:
            return
        known, shown.value = SESSION.mixture, ""
        told.show("note", "Type a text and press Show routing." if known else NO_MIXTURE)
        chat.forget()
        comparison.offer(SESSION.merged)

    route = ui.button("Show routing", "route-button", lambda: work.begin(run()), style="primary")
    work = Work(route, "route", told, "Press Show routing again.")
    SESSION.listen("try", hear)
    routing = ui.card(w.HTML("<h4>Which expert takes which word</h4>"), text, work, told, shown)
    return ui.panel("try", older, routing, comparison.box, chat.box)
