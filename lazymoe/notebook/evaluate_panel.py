"""Step 6: is it better than its parts? Benchmarks, or questions of one's own, for all of them."""

from __future__ import annotations

import html
from functools import partial
from typing import Any

import ipywidgets as w

from lazymoe.evaluating.evaluate import evaluate as evaluate_models
from lazymoe.evaluating.suites import AVERAGE, BASE, KINDS, MIXTURE, SUITES
from lazymoe.evaluating.tasks import HARNESS, has_harness
from lazymoe.notebook import ui
from lazymoe.notebook.installing import install
from lazymoe.notebook.session import NO_MIXTURE, OLDER, SESSION
from lazymoe.notebook.work import WORKING, Steps, Work
from lazymoe.output.folder import open_finished

OWN = "own"
MENU = {  # what a person reads, and the suite
    "Quick: four common tasks": "quick",
    "Open LLM Leaderboard, of 2023": "open-llm-leaderboard",
    "Nous' suite, as far as lm-eval has it": "nous",
    "Questions of my own, or lm-eval's tasks by name": OWN,
}
ASKED = {
    "the mixture, the base model and the plain average": (BASE, AVERAGE, MIXTURE),
    "each expert too": KINDS,
    "the mixture alone": (MIXTURE,),
}
LIMIT = 100  # questions of each task, unless somebody wants more
ALL = "The more questions, the smaller a difference that can be told. 0 asks all of them."
TITLES = {BASE: "base model", AVERAGE: "plain average"}


class Evaluate:
    """The panel: what is asked, who is asked, a button, its progress, what came out."""

    def __init__(self) -> None:
        self.told, self.bars, self.said, self.table = ui.Messages(), ui.Bars(), ui.Messages(), w.HTML()
        self.suite = ui.field(w.Dropdown, "Tasks", "suite", options=list(MENU.items()))
        self.own = ui.field(w.Text, "Names", "own-tasks", placeholder="questions.jsonl, arc_easy, gsm8k:5")
        self.limit = ui.field(w.BoundedIntText, "Questions each", "limit", value=LIMIT, min=0, max=1_000_000)
        self.who = ui.field(w.Dropdown, "Who is asked", "who", options=list(ASKED.items()))
        self.suite.observe(self._chosen, "value")
        self._chosen()
        start = ui.button("Evaluate", "evaluate-button", lambda: self.work.begin(self._run()), style="primary")
        self.work = Work(start, "evaluate", self.told, "Press Evaluate to go on from here.", self.bars)
        form = (self.suite, self.own, self.limit, w.HTML(ui.told("note", ALL)), self.who)
        self.panel = ui.panel("evaluate", *form, self.work, self.bars, self.told, self.said, self.table)
        SESSION.listen("evaluate", self._hear)

    def _chosen(self, _: object = None) -> None:
        """Ask for names where they are wanted, and tell what a suite is."""
        suite = self.suite.value
        self.own.layout.display = None if suite == OWN else "none"
        self.suite.tooltip = ", ".join(SUITES.get(suite, ()))

    def _run(self) -> Steps:
        folder, tasks = SESSION.merged, self.own.value if self.suite.value == OWN else self.suite.value
        limit, models, progress = self.limit.value or None, self.who.value, self.work.progress
        source = SESSION.source
        if not folder:
            self.told.show("note", NO_MIXTURE)
            return
        self.bars.clear()
        if not has_harness():
            self.told.show("note", "Installing EleutherAI's lm-eval, once …")
            yield partial(install, [HARNESS], "input.lm-eval")
        self.told.show("note", WORKING)
        asked = partial(evaluate_models, folder, tasks, limit=limit, models=models, source=source)
        found = yield partial(asked, progress=progress)
        found.save(folder)
        self.work.end()
        SESSION.change()
        for task, why in found.left_out.items():
            self.told.add("warning", f"{task} is left out: {why}")

    def _hear(self) -> None:
        if self.work.goes_on:
            return
        folder = SESSION.merged
        self.work.allow(folder is not None)
        self.said.value = self.table.value = ""
        first = "" if has_harness() else " EleutherAI's lm-eval is installed first."
        self.told.show("note", f"Choose what is asked, and press Evaluate.{first}" if folder else NO_MIXTURE)
        if SESSION.is_older:
            self.told.add("warning", OLDER)
        if folder:
            with self.told.guard(""):
                found = open_finished(folder).evaluation
                if found:
                    self.said.show("good", found["verdict"] or "Evaluated.")
                    self.table.value = _table(found)


def evaluate() -> w.Widget:
    """Make the panel: a menu of tasks, who is asked, a button, a table."""
    return Evaluate().panel


def _table(found: dict[str, Any]) -> str:
    """Show an evaluation as HTML: a row for each model, a column for each task."""
    head = ""
    for result in found["results"]:
        task, metric = html.escape(result["task"]), html.escape(result["metric"])
        how = f", in {result['bits']} bit" if result["bits"] else ""
        head += f"<th scope='col'>{task}<br><small>{metric}, {result['n']} questions{how}</small></th>"
    rows = ""
    for name in found["models"]:
        cells = "".join(f"<td>{html.escape(result['spelled'][name])}</td>" for result in found["results"])
        strong = " class='lazymoe-ours'" if name == MIXTURE else ""
        rows += f"<tr{strong}><th scope='row'>{html.escape(TITLES.get(name, name))}</th>{cells}</tr>"
    caption = "<caption>In brackets the interval that holds the true figure in 95 % of cases</caption>"
    table = f"<table class='lazymoe-losses'>{caption}<tr><td></td>{head}</tr>{rows}</table>"
    return f"<div class='lazymoe-wide'>{table}</div>"
