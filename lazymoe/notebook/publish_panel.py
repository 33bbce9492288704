"""Step 6: onto the Hub. The token is kept in memory only; the box it is typed into empties itself at once."""

from __future__ import annotations

import html
from functools import partial
from pathlib import Path
from typing import Any

import ipywidgets as w
from markdown_it import MarkdownIt

from lazymoe.cards.card import card, find_license
from lazymoe.cards.license import KNOWN
from lazymoe.hub.accounts import Account, account, find_token
from lazymoe.hub.client import TOKENS_PAGE
from lazymoe.notebook import ui
from lazymoe.notebook.session import NO_MIXTURE, SESSION
from lazymoe.notebook.work import Steps, Work
from lazymoe.output.folder import PICTURE
from lazymoe.publishing import publish as publish_model


class Publish:
    """The panel."""

    def __init__(self) -> None:
        self.token, self.suggested = "", ""
        self.who: Account | None = None
        self.typed = ui.field(w.Password, "Token", "token", placeholder="hf_…  (write access)", continuous_update=False)
        self.greeting, self.told, self.license_told = ui.Messages(), ui.Messages(), ui.Messages()
        self.repo = ui.field(w.Text, "Repository", "repo", placeholder="your-name/your-model")
        self.license = ui.field(w.Combobox, "License", placeholder="the most restrictive of the sources", options=KNOWN)
        self.private = w.Checkbox(description="Private: only you can see it", indent=False)
        self.private.add_class("lazymoe-private")
        self.card = w.HTML()
        self.preview = w.Accordion([self.card])
        self.preview.set_title(0, "Preview of the model card")
        self.preview.selected_index = None
        self.preview.observe(self._previewed, "selected_index")
        self.bars, self.link = ui.Bars(), w.HTML()
        self.link.add_class("lazymoe-link")
        start = ui.button("Publish", "publish-button", lambda: self.work.begin(self._publish()), style="primary")
        self.work = Work(start, "publish", self.told, "Press Publish to go on from here.", self.bars)
        self.form = w.VBox([self.repo, self.license, self.license_told, self.private, self.preview])
        self.typed.observe(self._received, "value")
        self.panel = ui.panel(
            "publish", self.typed, self.greeting, self.form, self.work, self.bars, self.told, self.link
        )
        self._find()
        SESSION.listen("publish", self._hear)

    def _find(self) -> None:
        """Use a token that is there already, which spares typing one; else ask for one."""
        with self.greeting.guard("Run the cell again."):
            if found := find_token():
                self._use(found[0], f"Your token is from {found[1]}.")
            else:
                words = f"Make a token with write access at {TOKENS_PAGE}, paste it here and press Enter."
                self.greeting.show("note", words)

    def _received(self, change: dict[str, Any]) -> None:
        token = change["new"].strip()
        if not token:
            return
        self.typed.value = ""  # before anything else: the value of a widget can be saved with the notebook
        with self.greeting.guard("Paste it again."):
            self._use(token, "Your token is kept in memory only.")

    def _use(self, token: str, words: str) -> None:
        self.who = account(token)
        self.token = token
        self.greeting.show("good", f"You are {self.who.name}. {words}")
        self.typed.placeholder = "hf_…  (to be someone else)"
        self._suggest()

    def _suggest(self) -> None:
        """Suggest a name for the repository, unless the user has given it one."""
        if self.who and self.repo.value == self.suggested:
            self.repo.value = self.suggested = f"{self.who.name}/{SESSION.name}"

    def _hear(self) -> None:
        self._suggest()
        self.preview.selected_index = None
        self.license_told.value = ""
        words = "Press Publish. You can publish again after a change: only what changed is sent."
        if not self.work.goes_on:
            self.told.show("note", words if SESSION.merged else NO_MIXTURE)
        if SESSION.merged:
            with self.license_told.guard(""):
                self.license_told.show("warning", *find_license(SESSION.merged).problems)

    def _previewed(self, change: dict[str, Any]) -> None:
        if change["new"] is None:
            return
        if not SESSION.merged:
            self.card.value = ui.told("note", NO_MIXTURE)
            return
        with self.told.guard("Open the preview again."):
            text = card(SESSION.merged, self.repo.value, license=self.license.value or None)
            self.card.value = _as_html(text, SESSION.merged)

    def _publish(self) -> Steps:
        self.link.value = ""
        self.bars.clear()
        folder = SESSION.merged
        if not folder or not self.token:
            self.told.show("error", NO_MIXTURE if not folder else "A token is missing: paste it above.")
            return
        options = {"private": self.private.value, "license": self.license.value or None, "token": self.token}
        repo, progress = self.repo.value.strip(), self.work.progress
        url = html.escape((yield partial(publish_model, folder, repo, **options, progress=progress)).url)
        self.told.show("good", "It is on the Hub.")
        self.link.value = f'<a href="{url}" target="_blank" rel="noopener">{url}</a>'


def publish() -> w.Widget:
    """Make the panel: token, name, license, preview, one button, a link."""
    return Publish().panel


def _as_html(card: str, folder: Path) -> str:
    """Show the card as a person will see it, its front matter as text above."""
    _, front, body = card.split("---\n", 2)
    page = MarkdownIt("commonmark", {"html": False}).enable("table").render(body)
    page = page.replace("&lt;br&gt;", "<br>")  # the card's only HTML, between the prompts of an expert
    if f'src="{PICTURE}"' in page:
        page = page.replace(f'src="{PICTURE}"', f'src="{ui.data_url(folder / PICTURE)}"')
    return f"<details><summary>Front matter</summary><pre>{html.escape(front)}</pre></details>{page}"
