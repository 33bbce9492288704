"""Step 6: is it better than its parts? Benchmarks, or questions of one's own, for all of them."""

from __future__ import annotations

import html
from functools import partial
from typing import Any

import ipywidgets as w

from lazymoe.errors import LazyMoEError
from lazymoe.evaluating.evaluate import evaluate as evaluate_models
from lazymoe.evaluating.evaluation import Evaluation
from lazymoe.evaluating.suites import AVERAGE, BASE, KINDS, MIXTURE, SUITES
from lazymoe.evaluating.tasks import HARNESS, has_harness
from lazymoe.jobs.calls import evaluation_of
from lazymoe.jobs.orders import evaluating
from lazymoe.notebook import ui
from lazymoe.notebook.destination import Elsewhere, Name
from lazymoe.notebook.installing import install
from lazymoe.notebook.rented import PRICE, Rented
from lazymoe.notebook.session import NO_MIXTURE, NO_TOKEN, OLDER, SESSION
from lazymoe.notebook.work import WORKING, Steps, Work
from lazymoe.output.folder import open_finished, read_record
from lazymoe.units import counted

OWN = "own"
MENU = {  # what a person reads, and the suite
    "Quick: four common tasks": "quick",
    "Open LLM Leaderboard, of 2023": "open-llm-leaderboard",
    "Nous' suite, as far as lm-eval has it": "nous",
    "Questions of my own, or lm-eval's tasks by name": OWN,
}
ASKED = {
    "the mixture, the base model and the plain average": f"{BASE},{AVERAGE},{MIXTURE}",
    "each expert too": ",".join(KINDS),
    "the mixture alone": MIXTURE,
}
LIMIT = 100  # questions of each task, unless somebody wants more
ALL = "The more questions, the smaller a difference that can be told. 0 asks all of them."
THERE = "A rented machine asks the mixture that is on the Hub: send it there in step 4, or publish it in step 7."
TITLES = {BASE: "base model", AVERAGE: "plain average"}


class Evaluate:
    """The panel: what is asked, who is asked and where, a button, its progress, what came out."""

    def __init__(self) -> None:
        self.told, self.bars, self.said, self.table = ui.Messages(), ui.Bars(), ui.Messages(), w.HTML()
        self.suite = ui.field(w.Dropdown, "Tasks", "suite", options=list(MENU.items()))
        self.own = ui.field(w.Text, "Names", "own-tasks", placeholder="questions.jsonl, arc_easy, gsm8k:5")
        self.limit = ui.field(w.BoundedIntText, "Questions each", "limit", value=LIMIT, min=0, max=1_000_000)
        self.who = ui.field(w.Dropdown, "Who is asked", "who", options=list(ASKED.items()))
        self.repo, self.elsewhere = ui.field(Name, "Mixture on the Hub", "evaluated-repo"), Elsewhere("evaluate")
        self.found: dict[str, Any] = {}  # on a rented machine
        asked = {"suite": self.suite, "own": self.own, "limit": self.limit, "who": self.who, "repo": self.repo}
        self.rented = Rented("evaluate", "Evaluate", self.elsewhere.machine, **asked)
        self.suite.observe(self._chosen, "value")
        self._chosen()
        start = ui.button("Evaluate", "evaluate-button", lambda: self.work.begin(self._run()), style="primary")
        again = "Press Evaluate to go on from here."
        self.work = Work(start, "evaluate", self.told, again, self.bars, self.rented.hear)
        form = (self.suite, self.own, self.limit, w.HTML(ui.told("note", ALL)), self.who, self.elsewhere, self.repo)
        shown = (self.work, self.bars, self.told, self.rented, self.said, self.table)
        self.panel = ui.panel("evaluate", *form, *shown)
        SESSION.listen("evaluate", self._hear)

    def _chosen(self, _: object = None) -> None:
        """Ask for names where they are wanted, and tell what a suite is."""
        suite = self.suite.value
        self.own.layout.display = None if suite == OWN else "none"
        self.suite.tooltip = ", ".join(SUITES.get(suite, ()))

    def _run(self) -> Steps:
        self.bars.clear()
        tasks = self.own.value if self.suite.value == OWN else self.suite.value
        asked = {"limit": self.limit.value or None, "models": self.who.value, "source": SESSION.source}
        yield from (self._there if self.elsewhere.chosen else self._here)(tasks, asked)

    def _here(self, tasks: str, asked: dict[str, Any]) -> Steps:
        folder = SESSION.merged
        if not folder:
            self.told.show("note", NO_MIXTURE)
            return
        if not has_harness():
            self.told.show("note", "Installing EleutherAI's lm-eval, once …")
            yield partial(install, [HARNESS], "input.lm-eval")
        self.told.show("note", WORKING)
        found = yield partial(evaluate_models, folder, tasks, **asked, progress=self.work.progress)
        found.save(folder)
        self._tell(found)

    def _there(self, tasks: str, asked: dict[str, Any]) -> Steps:
        if not (repo := self.repo.value.strip()):
            self.told.show("error", THERE)
            return
        try:
            order = yield partial(evaluating, repo, tasks, **asked)
        except LazyMoEError as e:
            if e.problems[0].code not in ("hub.not-found", "input.mixture") or e.problems[0].where != repo:
                raise
            self.told.show("error", *e.problems)
            self.told.add("note", THERE)
            return
        if not (yield from self.rented.rent(order, self.work, self.told)):
            return
        found = yield partial(evaluation_of, order)
        self.found, folder = found.to_dict(), SESSION.merged
        if folder and read_record(folder).fingerprint == found.fingerprint:
            found.save(folder)  # the same mixture is here
        self._tell(found)

    def _tell(self, found: Evaluation) -> None:
        """Show what came out."""
        self.work.end()
        SESSION.change()
        for task, why in found.left_out.items():
            self.told.add("warning", f"{task} is left out: {why}")

    def _hear(self) -> None:
        if self.work.goes_on:
            return
        rented, folder = self.elsewhere.chosen, SESSION.merged
        self.elsewhere.hear()
        self.repo.suggest(SESSION.sent)
        self.repo.layout.display = None if rented else "none"
        self.said.value = self.table.value = ""
        if rented:
            ready, waits, first = SESSION.account is not None, NO_TOKEN, f" {PRICE}"
        else:
            ready, waits = folder is not None, NO_MIXTURE
            first = "" if has_harness() else " EleutherAI's lm-eval is installed first."
        self.work.allow(ready)
        self.told.show("note", f"Choose what is asked, and press Evaluate.{first}" if ready else waits)
        if rented and not self.repo.value:
            self.told.add("note", THERE)
        if SESSION.is_older and not rented:
            self.told.add("warning", OLDER)
        with self.told.guard(""):
            found = self.found if rented else open_finished(folder).evaluation if folder else {}
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
        head += f"<th scope='col'>{task}<br><small>{metric}, {counted(result['n'], 'question')}</small></th>"
    rows = ""
    for name in found["models"]:
        cells = "".join(f"<td>{html.escape(result['spelled'][name])}</td>" for result in found["results"])
        strong = " class='lazymoe-ours'" if name == MIXTURE else ""
        rows += f"<tr{strong}><th scope='row'>{html.escape(TITLES.get(name, name))}</th>{cells}</tr>"
    caption = "<caption>In brackets the interval that holds the true figure in 95 % of cases</caption>"
    table = f"<table class='lazymoe-losses'>{caption}<tr><td></td>{head}</tr>{rows}</table>"
    return f"<div class='lazymoe-wide'>{table}</div>"
