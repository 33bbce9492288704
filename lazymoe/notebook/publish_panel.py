"""Step 7: onto the Hub, by the token of step 1. What is bad is said once more before it goes there."""

from __future__ import annotations

import html
from functools import partial
from pathlib import Path
from typing import Any

import ipywidgets as w
from markdown_it import MarkdownIt

from lazymoe.cards.card import card, find_license
from lazymoe.cards.license import KNOWN
from lazymoe.notebook import ui
from lazymoe.notebook.destination import Repository
from lazymoe.notebook.gguf_panel import Gguf
from lazymoe.notebook.session import NO_MIXTURE, NO_TOKEN, OLDER, SESSION
from lazymoe.notebook.verdict import is_bad
from lazymoe.notebook.work import Steps, Work
from lazymoe.output.folder import PICTURE, open_finished, read_report
from lazymoe.publishing import publish as publish_model
from lazymoe.recipe.beside import along
from lazymoe.units import gigabytes


class Publish:
    """The panel."""

    def __init__(self) -> None:
        self.mixture: tuple[Path, int] | None = None  # that is shown
        self.sure = False  # whether the user was told how bad it is
        self.doubts, self.told, self.license_told = ui.Messages(), ui.Messages(), ui.Messages()
        self.repository = Repository("repo")
        self.license = ui.field(
            w.Combobox, "Licence", "license", placeholder="the most restrictive of the sources", options=KNOWN
        )
        self.card = w.HTML()
        self.preview = w.Accordion([self.card])
        self.preview.set_title(0, "Preview of the model card")
        self.preview.selected_index = None
        self.preview.observe(self._previewed, "selected_index")
        self.bars, self.link = ui.Bars(), ui.Link()
        start = ui.button("Publish", "publish-button", lambda: self.work.begin(self._publish()), style="primary")
        self.work = Work(start, "publish", self.told, "Press Publish to go on from here.", self.bars)
        self.form = w.VBox([self.repository, self.license, self.license_told, self.preview])
        self.gguf = Gguf(self.license)
        self.panel = ui.panel("publish", self.form, self.doubts, self.work, self.bars, self.told, self.link, self.gguf)
        SESSION.listen("publish", self._hear)

    def _hear(self) -> None:
        self.gguf.hear()
        if self.work.goes_on:
            return
        self.repository.suggest()
        self.work.allow(bool(SESSION.merged and SESSION.account))
        if self.mixture != SESSION.mixture:  # nothing of another one stays
            self.mixture, self.sure = SESSION.mixture, False
            self.preview.selected_index = None
            self.license_told.value = ""
            self.link.show(None)
            self.bars.clear()
            self._doubt()
        done = "It is on the Hub" if self.link.value else "Press Publish"
        words = f"{done}. You can publish again after a change: only what changed is sent."
        words = words if SESSION.account else NO_TOKEN
        self.told.show("note", words if SESSION.merged else NO_MIXTURE)
        if SESSION.is_older:
            self.told.add("warning", OLDER)

    def _doubt(self) -> None:
        """Repeat the worst that is known of the mixture."""
        self.doubts.value = ""
        if folder := SESSION.merged:
            with self.license_told.guard(""):
                self.license_told.show("warning", *find_license(folder).problems)
            report, (_, doubts) = read_report(folder), SESSION.made.get(SESSION.name, ("", []))
            worst = report.get("verdict") if is_bad(report) else next(iter(doubts), None)
            self.doubts.show("warning", *filter(None, [worst]))
            with self.told.guard(""):
                self.doubts.add("note", *along(open_finished(folder).carried))

    def _previewed(self, change: dict[str, Any]) -> None:
        if change["new"] is None:
            return
        if not SESSION.merged:
            self.card.value = ui.told("note", NO_MIXTURE)
            return
        with self.told.guard("Open the preview again."):
            text = card(SESSION.merged, self.repository.name, license=self.license.value or None)
            self.card.value = _as_html(text, SESSION.merged)

    def _publish(self) -> Steps:
        self.link.show(None)
        self.bars.clear()
        folder = SESSION.merged
        if not folder:
            self.told.show("error", NO_MIXTURE)
            return
        if is_bad(read_report(folder)) and not self.sure:
            self.sure = True
            self.told.show("warning", "It is worse than the plain average. Press once more to publish it all the same.")
            return
        repo, license, progress = self.repository, self.license.value or None, self.work.progress
        done = yield partial(publish_model, folder, repo.name, private=repo.private, license=license, progress=progress)
        sent = (
            f"{gigabytes(done.sent)} of weights were sent." if done.sent else "Its weights were there: nothing changed."
        )
        SESSION.change(sent=repo.name)
        self.told.show("good", f"It is on the Hub. {sent}")
        self.link.show(done.url)


def publish() -> w.Widget:
    """Make the panel: name, licence, preview, one button, a link."""
    return Publish().panel


def _as_html(card: str, folder: Path) -> str:
    """Show the card as a person will see it, its front matter as text above."""
    _, front, body = card.split("---\n", 2)
    page = MarkdownIt("commonmark", {"html": False}).enable("table").render(body)
    page = page.replace("&lt;br&gt;", "<br>")  # the card's only HTML, between the prompts of an expert
    if f'src="{PICTURE}"' in page:
        page = page.replace(f'src="{PICTURE}"', f'src="{ui.data_url(folder / PICTURE)}"')
    return f"<details><summary>Front matter</summary><pre>{html.escape(front)}</pre></details>{page}"
