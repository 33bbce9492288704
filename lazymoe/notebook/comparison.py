"""One question, answered by the base model, by an expert and by the mixture, side by side."""

from __future__ import annotations

import html
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import ipywidgets as w
import torch

from lazymoe.checkpoint.opening import fetch, open_source
from lazymoe.checkpoint.source import Source
from lazymoe.errors import LazyMoEError
from lazymoe.forward.answers import answer
from lazymoe.forward.loading import load_dense
from lazymoe.forward.tokens import load_tokenizer
from lazymoe.notebook import ui
from lazymoe.notebook.asking import CONTINUES, let_go, load_mixture, question, settle
from lazymoe.notebook.chat import Chat
from lazymoe.notebook.session import NO_MIXTURE, SESSION
from lazymoe.notebook.work import Steps, Work
from lazymoe.output.folder import Finished, open_finished
from lazymoe.recipe.schema import Model

LONGEST = 64  # tokens of an answer
EXAMPLE = "What is a list?"
AHEAD = "Loads one model after the other: with large ones that takes minutes."


@dataclass
class Column:
    """What one model answers.

    Attributes:
        title: what it is to the mixture.
        name: of the model.
        loaded: gives the model and its tokenizer.
        text: of its answer so far.
        told: what is to be said of it.
    """

    title: str
    name: str
    loaded: Callable[[], tuple[Any, Any]]
    text: str = ""
    told: str = ""

    def html(self) -> str:
        """Write it as HTML."""
        head = f"<h5>{html.escape(self.title)}<small>{html.escape(self.name)}</small></h5>"
        said = f"<p class='lazymoe-said'>{html.escape(self.text.strip())}</p>"
        return f"<section class='lazymoe-answer'>{head}{said}<footer>{html.escape(self.told)}</footer></section>"


class Comparison:
    """The panel. One model at a time is in memory, so it works where the mixture alone fits."""

    def __init__(self, chat: Chat) -> None:
        """Show it, at rest.

        Args:
            chat: whose model is let go before others are loaded.
        """
        self.chat, self.told, self.shown, self.bars = chat, ui.Messages(), w.HTML(), ui.Bars()
        self.question = question("Question", "compare-question", self._begin, value=EXAMPLE)
        self.expert = ui.field(w.Dropdown, "Expert", "compare-expert", options=[])
        start = ui.button("Compare", "compare-button", self._begin)
        self.work = Work(start, "compare", self.told, "Press Compare to begin anew.", self._draw)
        self.columns: list[Column] = []
        title = w.HTML("<h4>Compare base model, expert and mixture</h4>")
        self.box = ui.card(title, self.question, self.expert, self.work, self.told, self.bars, self.shown)

    def offer(self, folder: Path | None) -> None:
        """Offer the experts of a mixture, and forget what others said.

        Args:
            folder: the mixture's; None if there is none.
        """
        self.columns, self.shown.value, self.told.value = [], "", ""
        with self.told.guard():
            names = open_finished(folder).recipe.names if folder else []
            self.expert.options = [(f"{i} · {name}", i) for i, name in enumerate(names, 1)]
            self.expert.value = 1 if names else None
            self.told.show("note", AHEAD if folder else NO_MIXTURE)

    def _begin(self) -> None:
        self.work.begin(self._compared())

    def _compared(self) -> Steps:
        yield settle
        asked, folder = self.question.value.strip(), SESSION.merged
        self.bars.clear()
        if not folder or not asked:
            self.told.show("note", "Type a question." if folder else NO_MIXTURE)
            return
        if self.chat.work.goes_on:
            self.told.show("note", "Memory has room for one model: wait for the chat, or stop it.")
            return
        self.chat.make_room()
        self.columns = []
        for column in self._models(open_finished(folder)):
            self.columns.append(column)
            self.told.show("note", f"{column.title}: loading and answering …")
            self._draw_answers()
            try:
                yield partial(self._answer, column, asked)
            except (LazyMoEError, OSError, ValueError, RuntimeError, ImportError) as e:  # the others may do
                column.told = f"Can't be compared: {e}"
            self._draw_answers()
        self.told.value = ""

    def _models(self, done: Finished) -> Sequence[Column]:
        """List who is asked."""
        number = self.expert.value
        base, expert = done.recipe.models[0], done.recipe.models[number]
        return (
            Column("Base model", base.reference.short_name, partial(self._load, done, base)),
            Column(f"Expert {number}", done.recipe.names[number - 1], partial(self._load, done, expert)),
            Column("Mixture", done.folder.name, partial(load_mixture, done.folder)),
        )

    def _load(self, done: Finished, model: Model) -> tuple[Any, Any]:
        """Load one of the recipe's models, in the mixture's dtype, with its own tokenizer, or else the mixture's."""
        source = open_source(model.reference, model.where, done.record.allow_pickle)
        fetch([(source, model.where)], self.work.progress)
        if not torch.cuda.is_available():
            return load_dense(source, _dtype(done)), _tokenizer(source, done)
        bits: Literal[4] | None = 4 if find_spec("bitsandbytes") else None
        return load_dense(source, torch.float16, bits, "cuda"), _tokenizer(source, done)

    def _answer(self, column: Column, asked: str) -> None:
        """Let a model answer, and let it go."""
        messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": ""}]

        def said(text: str) -> None:
            column.text += text
            self.work.progress("answer", len(column.text), 0)

        try:
            self._let_answer(column, messages, said)
        finally:
            let_go()

    def _let_answer(self, column: Column, messages: list[dict[str, str]], said: Callable[[str], None]) -> None:
        model, tokenizer = column.loaded()
        began = time.monotonic()
        answer(model, tokenizer, messages, said, LONGEST, do_sample=False)
        column.told = f"{time.monotonic() - began:.1f} s." + ("" if tokenizer.chat_template else f" {CONTINUES}")

    def _draw(self, stage: str, done: int, total: int) -> None:
        if stage == "answer":
            self._draw_answers()
        else:
            self.bars(stage, done, total)

    def _draw_answers(self) -> None:
        self.shown.value = f"<div class='lazymoe-answers'>{''.join(column.html() for column in self.columns)}</div>"


def _dtype(done: Finished) -> torch.dtype:
    named = str(done.config.get("dtype") or done.config.get("torch_dtype")).removeprefix("torch.")
    found = getattr(torch, named, None)
    return found if isinstance(found, torch.dtype) else torch.bfloat16


def _tokenizer(source: Source, done: Finished) -> Any:
    try:
        return load_tokenizer(source)
    except LazyMoEError:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(done.folder, trust_remote_code=False)
