"""Step 5: which expert takes which word of a text, and a chat with the mixture."""

from __future__ import annotations

import html
from collections import Counter
from itertools import groupby
from threading import Thread
from typing import Any

import ipywidgets as w

from lazymoe.notebook import ui
from lazymoe.notebook.session import NO_MIXTURE, SESSION
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

    def run() -> None:
        folder = SESSION.merged
        shown.value = ""
        if not folder:
            hear()
            return
        with told.guard("Press Show routing again."):
            told.show("note", "Running the text through the mixture, layer by layer …")
            tokens, experts = trace(folder, text.value)
            shown.value = _routing(open_finished(folder).recipe.names, tokens, experts)
            told.value = ""

    def hear() -> None:
        told.show("note", "Type a text and press Show routing." if SESSION.merged else NO_MIXTURE)
        chat.forget()

    route = ui.button("Show routing", "route-button", run, style="primary")
    SESSION.listen("try", hear)
    return ui.panel("try", text, route, told, shown, chat.box)


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
        self.send = ui.button("Send", "chat-send", self._asked)
        self.messages: list[dict[str, str]] = []
        self.loaded: tuple[Any, Any] | None = None
        self.box = ui.card(w.HTML("<b>Chat with it</b>"), self.log, self.question, self.send, self.told)

    def forget(self) -> None:
        """Let the model and the talk go: there is another mixture."""
        self.loaded, self.messages, self.log.value = None, [], ""
        self.told.value = ""

    def _asked(self) -> None:
        question = self.question.value.strip()
        if not SESSION.merged or not question:
            self.told.show("note", "Type a message." if SESSION.merged else NO_MIXTURE)
            return
        with self.told.guard("Press Send again."):
            if self.loaded is None:
                self.told.show("note", "Loading the mixture …")
                import torch

                from lazymoe import load

                self.loaded = load(SESSION.merged, bits=4 if torch.cuda.is_available() else None)
            self.told.value = ""
            self.question.value = ""
            self.messages.append({"role": "user", "content": question})
            self.messages.append({"role": "assistant", "content": ""})
            for piece in _answer(*self.loaded, self.messages[:-1]):
                self.messages[-1]["content"] += piece
                self._draw()

    def _draw(self) -> None:
        who = {"user": "You", "assistant": "Mixture"}
        said = (f"<b>{who[m['role']]}:</b> {html.escape(m['content'])}" for m in self.messages)
        self.log.value = "".join(f'<p style="white-space:pre-wrap">{line}</p>' for line in said)


def _answer(model: Any, tokenizer: Any, messages: list[dict[str, str]]) -> Any:
    """Yield pieces of the answer as they come. Only the model runs in a thread; the page is changed from here."""
    from transformers import TextIteratorStreamer

    if tokenizer.chat_template:
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
    else:
        inputs = tokenizer(messages[-1]["content"], return_tensors="pt")
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    wanted = {k: v.to(model.device) for k, v in inputs.items() if k in ("input_ids", "attention_mask")}
    failed: list[BaseException] = []

    def generate() -> None:
        try:
            model.generate(**wanted, streamer=streamer, max_new_tokens=LONGEST, pad_token_id=tokenizer.eos_token_id)
        except BaseException as e:
            failed.append(e)
            streamer.end()

    Thread(target=generate, daemon=True).start()
    yield from streamer
    if failed:
        raise failed[0]
