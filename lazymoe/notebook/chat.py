"""A chat with the mixture."""

from __future__ import annotations

import html
from functools import partial
from pathlib import Path
from typing import Any

import ipywidgets as w

from lazymoe.forward.answers import answer
from lazymoe.notebook import ui
from lazymoe.notebook.asking import CONTINUES, let_go, load_mixture, question, settle
from lazymoe.notebook.session import NO_MIXTURE, SESSION
from lazymoe.notebook.work import Steps, Work

LONGEST = 256  # tokens of an answer


class Chat:
    """A chat with the mixture, which is loaded at the first question.

    Attributes:
        rival: other work with a model, meanwhile none is loaded here.
    """

    def __init__(self) -> None:
        self.log, self.told = w.HTML(), ui.Messages()
        self.question = question("Message", "chat-message", self._send, placeholder="Ask something and press Enter")
        send = ui.button("Send", "chat-send", self._send)
        self.work = Work(send, "chat", self.told, "Press Send to go on.", self._draw)
        self.rival: Work | None = None
        self.messages: list[dict[str, str]] = []
        self.unfinished = False  # whether the last answer was stopped
        self.loaded: tuple[Any, Any] | None = None
        self.folder: Path | None = None  # of what is loaded
        self.log.add_class("lazymoe-log")
        self.box = ui.card(w.HTML("<h4>Chat with it</h4>"), self.log, self.question, self.work, self.told)

    def forget(self) -> None:
        """Let the model and the talk go: there is another mixture."""
        self.make_room()
        self.messages, self.unfinished, self.log.value = [], False, ""
        self.told.value = ""

    def make_room(self) -> None:
        """Let the model go; the talk stays, and the next question loads it again."""
        if self.loaded:
            self.loaded = None
            let_go()

    def _send(self) -> None:
        self.work.begin(self._asked())

    def _asked(self) -> Steps:
        yield settle
        asked, folder = self.question.value.strip(), SESSION.merged
        if not folder or not (asked or self.unfinished):
            self.told.show("note", "Type a message." if folder else NO_MIXTURE)
            return
        if self.rival and self.rival.goes_on:
            self.told.show("note", "Memory has room for one model: wait for the comparison, or stop it.")
            return
        if folder != self.folder:
            self.forget()
        if self.loaded is None:
            self.told.show("note", "Loading the mixture …")
            self.loaded, self.folder = (yield partial(load_mixture, folder)), folder
        self.told.show("note", "Answering …")
        if asked:
            self.question.value = ""
            self.messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": ""}]
        self._draw()
        self.unfinished = True
        model, tokenizer = self.loaded
        yield partial(answer, model, tokenizer, self.messages, self._said, LONGEST)
        self.unfinished = False
        self.told.value = ""

    def _said(self, text: str) -> None:
        self.messages[-1]["content"] += text
        self.work.progress("answer", len(self.messages[-1]["content"]), 0)

    def _draw(self, *_: Any) -> None:
        who = {"user": "You", "assistant": "Mixture"}
        said = (f"<b>{who[m['role']]}:</b> {html.escape(m['content'])}" for m in self.messages)
        told = "" if self.loaded is None or self.loaded[1].chat_template else ui.told("note", CONTINUES)
        lines = "".join(f"<p class='lazymoe-said'>{line}</p>" for line in said)
        self.log.value = f"{told}<div role='log' aria-label='Chat'>{lines}</div>"
