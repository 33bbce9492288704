"""Step 5: which expert takes which word of a text, and a chat with the mixture."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import ipywidgets as w

from lazymoe.notebook import ui
from lazymoe.notebook.session import NO_MIXTURE, SESSION
from lazymoe.notebook.work import Steps, Work
from lazymoe.output.folder import open_finished
from lazymoe.reporting.measuring import trace

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#999999")  # Okabe and Ito
EXAMPLE = "Write a Python function that adds two numbers."
LONGEST = 256  # tokens of an answer


def try_it() -> w.Widget:
    """Make the panel: routing for a text, and a chat box."""
    told, shown = ui.Messages(), w.HTML()
    text = ui.field(w.Textarea, "Text", "try-text", value=EXAMPLE, layout={"height": "60px"})
    chat = Chat()

    def run() -> Steps:
        folder = SESSION.merged
        shown.value = ""
        if not folder:
            told.show("note", NO_MIXTURE)
            return
        told.show("note", "Running the text through the mixture, layer by layer …")
        tokens, experts = yield partial(trace, folder, text.value)
        shown.value = _routing(open_finished(folder).recipe.names, tokens, experts)
        told.value = ""

    def hear() -> None:
        if not work.goes_on:
            told.show("note", "Type a text and press Show routing." if SESSION.merged else NO_MIXTURE)
        if not chat.work.goes_on:
            chat.forget()

    route = ui.button("Show routing", "route-button", lambda: work.begin(run()), style="primary")
    work = Work(route, "route", told, "Press Show routing again.")
    SESSION.listen("try", hear)
    return ui.panel("try", text, work, told, shown, chat.box)


def _routing(names: list[str], tokens: list[str], experts: list[list[int]]) -> str:
    """Show tokens coloured and numbered by the expert most layers chose first, a legend, and each layer's shares."""

    def marked(shown: str, e: int) -> str:
        inside = f"{html.escape(shown)}<sup>{e + 1}</sup>"
        style, title = f"border-color:{_colour(e)}", html.escape(names[e])
        return f'<span class="lazymoe-token-of-text" style="{style}" title="{title}">{inside}</span>'

    legend = " &nbsp; ".join(marked(name, e) for e, name in enumerate(names))
    most = [Counter(layers).most_common(1)[0][0] for layers in zip(*experts, strict=True)]
    runs = groupby(zip(tokens, most, strict=True), key=lambda pair: pair[1])
    words = "".join(marked("".join(token for token, _ in run), e) for e, run in runs)
    bars = "".join(_bar(layer, chosen, names) for layer, chosen in enumerate(experts))
    return (
        f"<p>Experts: {legend}</p><p>{words}</p>"
        f"<details open><summary>Shares of the experts, layer by layer</summary>{bars}</details>"
    )


def _bar(layer: int, chosen: list[int], names: list[str]) -> str:
    """Draw one layer's shares as a bar of colours, with numbers where there is room."""
    parts = ""
    for e, name in enumerate(names):
        if share := chosen.count(e) / len(chosen):
            style, number = f"width:{share:.2%};background:{_colour(e)}", e + 1 if share > 0.05 else ""
            parts += f'<div title="{html.escape(name)}: {share:.0%}" style="{style}">{number}</div>'
    return f'<div class="lazymoe-layer"><span>layer {layer}</span><div>{parts}</div></div>'


def _colour(expert: int) -> str:
    return COLOURS[expert % len(COLOURS)]


class Chat:
    """A chat with the mixture, which is loaded at the first question."""

    def __init__(self) -> None:
        self.log, self.told = w.HTML(), ui.Messages()
        self.question = ui.field(w.Text, "Message", "chat-message", placeholder="Ask something and press Send")
        send = ui.button("Send", "chat-send", lambda: self.work.begin(self._asked()))
        self.work = Work(send, "chat", self.told, "Press Send to go on.", self._draw)
        self.messages: list[dict[str, str]] = []
        self.unfinished = False  # whether the last answer was stopped
        self.loaded: tuple[Any, Any] | None = None
        self.folder: Path | None = None  # of what is loaded
        self.box = ui.card(w.HTML("<b>Chat with it</b>"), self.log, self.question, self.work, self.told)

    def forget(self) -> None:
        """Let the model and the talk go: there is another mixture."""
        self.loaded, self.messages, self.unfinished, self.log.value = None, [], False, ""
        self.told.value = ""

    def _asked(self) -> Steps:
        question, folder = self.question.value.strip(), SESSION.merged
        if not folder or not (question or self.unfinished):
            self.told.show("note", "Type a message." if folder else NO_MIXTURE)
            return
        if folder != self.folder or self.loaded is None:
            self.forget()
            self.told.show("note", "Loading the mixture …")
            from lazymoe.forward.loading import load

            self.loaded, self.folder = (yield partial(load, folder)), folder
        self.told.show("note", "Answering …")
        if question:
            self.question.value = ""
            self.messages += [{"role": "user", "content": question}, {"role": "assistant", "content": ""}]
        self._draw()
        self.unfinished = True
        model, tokenizer = self.loaded
        yield partial(_answer, model, tokenizer, self.messages, self._said)
        self.unfinished = False
        self.told.value = ""

    def _said(self, text: str) -> None:
        self.messages[-1]["content"] += text
        self.work.progress("answer", len(self.messages[-1]["content"]), 0)

    def _draw(self, *_: Any) -> None:
        who = {"user": "You", "assistant": "Mixture"}
        said = (f"<b>{who[m['role']]}:</b> {html.escape(m['content'])}" for m in self.messages)
        self.log.value = "".join(f'<p style="white-space:pre-wrap">{line}</p>' for line in said)


def _answer(model: Any, tokenizer: Any, messages: list[dict[str, str]], said: Callable[[str], None]) -> None:
    """Go on with the last message, which is the mixture's and may be empty; tell the pieces as they come."""
    from transformers import TextStreamer

    class Pieces(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            said(text)

    *before, answer = messages
    if tokenizer.chat_template:
        prompt = tokenizer.apply_chat_template(before, add_generation_prompt=True, tokenize=False)
        inputs = tokenizer(prompt + answer["content"], add_special_tokens=False, return_tensors="pt")
    else:
        inputs = tokenizer(before[-1]["content"] + answer["content"], return_tensors="pt")
    streamer = Pieces(tokenizer, skip_prompt=True, skip_special_tokens=True)
    wanted = {k: v.to(model.device) for k, v in inputs.items() if k in ("input_ids", "attention_mask")}
    model.generate(**wanted, streamer=streamer, max_new_tokens=LONGEST, pad_token_id=tokenizer.eos_token_id)
