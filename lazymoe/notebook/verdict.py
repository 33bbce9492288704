"""How good is it? A sentence, a table of losses, and measuring anew on texts that the routers haven't seen."""

from __future__ import annotations

import html
from functools import partial
from pathlib import Path
from typing import Any

import ipywidgets as w

from lazymoe.notebook import ui
from lazymoe.notebook.session import SESSION
from lazymoe.notebook.work import Steps, Work
from lazymoe.output.folder import open_finished, reopen
from lazymoe.recipe.texts import read_file
from lazymoe.reporting.measuring import measure

QUICK = 20e9  # bytes of weights that are read for a verdict without being asked for it
UNSEEN = "Paste texts of each expert's domain that are none of its prompts, one a line, or name a file of them."


class Verdict:
    """The part of the merge panel that tells how good the mixture is."""

    def __init__(self) -> None:
        self.said, self.table, self.told, self.bars = ui.Messages(), w.HTML(), ui.Messages(), ui.Bars()
        self.said.add_class("lazymoe-verdict")
        self.fields: dict[str, w.Textarea] = {}
        self.listed = w.VBox()
        start = ui.button("Measure", "measure-button", lambda: self.work.begin(self._measure()))
        self.work = Work(start, "measure", self.told, "Press Measure again.", self.bars)
        asked = w.VBox([w.HTML(ui.told("note", UNSEEN)), self.listed, self.work, self.bars, self.told])
        self.accordion = w.Accordion([asked])
        self.accordion.set_title(0, "Measure it on texts of your own")
        self.accordion.selected_index = None
        self.box = w.VBox([self.said, self.table, self.accordion])
        self.show(None)

    def show(self, folder: Path | None) -> None:
        """Show what is known of a mixture.

        Args:
            folder: the mixture's; None if there is none, to show nothing.
        """
        if self.work.goes_on:
            return
        self.box.layout.display = None if folder else "none"
        self.said.value = self.table.value = self.told.value = ""
        self.bars.clear()
        if folder is None:
            return
        with self.said.guard():
            done = open_finished(folder)
            if list(self.fields) != done.recipe.names:
                self._list(done.recipe.names)
            report = done.report
            if report.get("losses"):
                self.said.show("warning" if is_bad(report) else "good", report.get("verdict") or "Measured.")
                self.table.value = _losses(report)
            elif report:
                self.said.show("note", "How good it is wasn't measured. That takes a while: press Measure below.")
            said = done.evaluation.get("verdict", "")
            if said and said not in report.get("verdict", ""):  # the report is older
                self.said.add("note", said)

    def _list(self, names: list[str]) -> None:
        """Make a box for each expert."""
        self.fields = {
            name: ui.field(w.Textarea, name, f"unseen-{i}", layout={"height": "60px"}) for i, name in enumerate(names)
        }
        self.listed.children = tuple(self.fields.values())

    def _measure(self) -> Steps:
        folder, lines = SESSION.merged, {name: box.value for name, box in self.fields.items()}
        if folder is None:
            return
        self.bars.clear()
        texts: dict[str | int, list[str]] = {name: _texts(text) for name, text in lines.items()}
        prepared = yield partial(reopen, folder)
        report = yield partial(
            measure, prepared, folder, texts if any(texts.values()) else None, progress=self.work.progress
        )
        report.save(folder)
        self.work.end()
        SESSION.change()


def is_bad(report: dict[str, Any]) -> bool:
    """Tell whether a report says that the mixture is worse than the plain average of its experts.

    Args:
        report: as report.json has it.
    """
    return any(isinstance(p, dict) and p.get("code") == "report.worse" for p in report.get("problems") or [])


def _texts(lines: str) -> list[str]:
    """Read a box: a text in each line, or the name of a file of texts."""
    found: list[str] = []
    for line in filter(None, map(str.strip, lines.splitlines())):
        found += read_file(Path(line).expanduser(), "texts") if Path(line).expanduser().is_file() else [line]
    return found


def _losses(report: dict[str, Any]) -> str:
    """Show the losses as HTML: a row for each model, a column for each domain."""
    names, losses = report["names"], report["losses"]
    on = "texts that it hadn't seen" if report["held_out"] else "the routers' own prompts"
    head = "".join(f"<th scope='col'>{html.escape(name)}</th>" for name in [*names, "mean"])
    rows = ""
    for model, row in losses.items():
        cells = "".join(f"<td>{loss:.3f}</td>" for loss in [*row, sum(row) / len(row)])
        strong = " class='lazymoe-ours'" if model == "mixture" else ""
        rows += f"<tr{strong}><th scope='row'>{html.escape(model)}</th>{cells}</tr>"
    caption = f"<caption>Loss for each token of {on}; lower is better</caption>"
    return f"<table class='lazymoe-losses'>{caption}<tr><td></td>{head}</tr>{rows}</table>"
