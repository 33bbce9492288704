"""What the panels look like: fields with a place for what is wrong with them, messages, buttons, progress.

Colours are the front end's own, and never the only sign. What takes long has a button of its own, see `work`.
"""

from __future__ import annotations

import base64
import html
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ipywidgets as w

from lazymoe.errors import LazyMoEError
from lazymoe.output.folder import PICTURES
from lazymoe.progress import STAGES
from lazymoe.units import counted, gigabytes

SIGNS = {"error": "✕", "warning": "!", "good": "✓", "note": "·"}
REDRAW = 0.1  # seconds between two pictures of the progress of a stage
STYLE = f"<style>{(Path(__file__).parent / 'panel.css').read_text(encoding='utf-8')}</style>"
WIDE = {"width": "auto", "flex": "1 1 auto"}
LABEL = {"description_width": "130px"}


def panel(name: str, *children: w.Widget) -> w.VBox:
    """Make a panel of the notebook, with the style all share.

    Args:
        name: of its class, by which tests and styles find it.
        children: what is in it.
    """
    box = w.VBox([w.HTML(STYLE, layout=w.Layout(display="none")), *children])
    box.add_class("lazymoe")
    box.add_class(f"lazymoe-{name}")
    return box


def card(*children: w.Widget) -> w.VBox:
    """Make a box with a frame.

    Args:
        children: what is in it.
    """
    box = w.VBox(children)
    box.add_class("lazymoe-card")
    return box


def field(kind: type[w.Widget], label: str, name: str = "", **options: Any) -> Any:
    """Make an input with its label, as wide as the panel.

    Args:
        kind: the class of the widget.
        label: what a person reads.
        name: of its class, by which tests and styles find it; made of the label if absent.
        options: of the widget.
    """
    widget = kind(description=label, style=LABEL, layout=w.Layout(**WIDE, **options.pop("layout", {})), **options)
    widget.add_class(f"lazymoe-{name or label.lower().replace(' ', '-')}")
    return widget


def button(label: str, name: str, act: Callable[[], None], style: str = "", **layout: str) -> w.Button:
    """Make a button.

    Args:
        label: what a person reads.
        name: of its class, by which tests and styles find it.
        act: what it does.
        style: as ipywidgets calls it, such as ``primary``.
        layout: of the widget.
    """
    widget = w.Button(description=label, button_style=style, layout=w.Layout(**{"width": "150px", **layout}))
    widget.add_class(f"lazymoe-{name}")
    widget.on_click(lambda _: act())
    return widget


def told(kind: str, text: str) -> str:
    """Write a message as HTML: a sign, a colour, the words.

    Args:
        kind: one of `SIGNS`.
        text: the words.
    """
    sign = f"<b>{SIGNS[kind]}</b><span>{html.escape(text)}</span>"
    return f'<div class="lazymoe-told lazymoe-{kind}" role="status">{sign}</div>'


class Messages(w.HTML):
    """A place for messages."""

    def show(self, kind: str, *texts: object) -> None:
        """Show messages in place of what was there.

        Args:
            kind: one of `SIGNS`.
            texts: a message each.
        """
        self.value = "".join(told(kind, str(text)) for text in texts)

    def add(self, kind: str, *texts: object) -> None:
        """Show messages after what is there.

        Args:
            kind: one of `SIGNS`.
            texts: a message each.
        """
        self.value += "".join(told(kind, str(text)) for text in texts)

    @contextmanager
    def guard(self, again: str = "Press the button again to go on from here.") -> Iterator[None]:
        """Show what goes wrong, in words: an exception in a callback would be lost.

        Args:
            again: what to do after an interrupt.
        """
        try:
            yield
        except LazyMoEError as e:
            self.show("error", *e.problems)
        except KeyboardInterrupt:
            self.show("warning", f"Stopped. {again}")
        except Exception as e:  # a bug of ours, or a library's complaint
            self.show("error", f"{type(e).__name__}: {e}")


class Link(w.HTML):
    """A place for a link that opens a page of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.add_class("lazymoe-link")

    def show(self, url: str | None) -> None:
        """Show a link.

        Args:
            url: its address; None for no link.
        """
        address = html.escape(url or "")
        self.value = f'<a href="{address}" target="_blank" rel="noopener">{address}</a>' if url else ""


class Bars(w.VBox):
    """Progress in the notebook: a line for each stage, with how much, how fast and how long still."""

    def __init__(self) -> None:
        super().__init__()
        self.clear()

    def clear(self) -> None:
        """Remove all lines."""
        self.children: tuple[w.Widget, ...] = ()
        self._began: dict[str, tuple[float, int]] = {}
        self._lines: dict[str, tuple[w.FloatProgress, w.HTML]] = {}
        self._drawn: dict[str, float] = {}  # when, each for itself: stages go on together

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage not in self._lines:
            self._began[stage] = now, done
            bar = w.FloatProgress(max=1.0, description=STAGES[stage][0], style={"description_width": "190px"})
            bar.layout = w.Layout(width="430px")
            bar.add_class(f"lazymoe-bar-{stage}")
            self._lines[stage] = bar, w.HTML()
            self.children = (
                *self.children,
                w.HBox(self._lines[stage], layout=w.Layout(flex_flow="row wrap", align_items="center")),
            )
        elif done < total and now - self._drawn[stage] < REDRAW:
            return
        self._drawn[stage] = now
        bar, text = self._lines[stage]
        bar.value = done / max(total, 1)
        bar.bar_style = "success" if done >= total else ""
        text.value = self._words(stage, done, total, now)

    def _words(self, stage: str, done: int, total: int, now: float) -> str:
        begin, first = self._began[stage]
        unit = STAGES[stage][1]
        rate = (done - first) / max(now - begin, 1e-3)
        if done >= total:
            amount = gigabytes(total) if unit == "B" else counted(total, unit)
            return f"{amount} in {now - begin:.0f} s"
        amount = f"{gigabytes(done)} of {gigabytes(total)}" if unit == "B" else f"{unit} {done} of {total}"
        if not rate:
            return amount
        left = (total - done) / rate
        speed = f", {gigabytes(int(rate))}/s" if unit == "B" else ""
        return f"{amount}{speed}, {int(left) // 60}:{int(left) % 60:02} left"


def pictures(folder: Path, words: str) -> str:
    """Show a routing picture as HTML, the one for light pages or that for dark ones; nothing if there is none.

    Args:
        folder: that has both.
        words: what they show, for who can't see them.
    """
    shown = ""
    for name, dark in PICTURES.items():
        if (folder / name).exists():
            theme = "dark" if dark else "light"
            shown += f'<img class="lazymoe-{theme}" alt="{words}" src="{data_url(folder / name)}">'
    return shown


def data_url(picture: Path) -> str:
    """Write a PNG file as the address of an image.

    Args:
        picture: the file.
    """
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"


def table(rows: dict[str, str]) -> str:
    """Write two columns as HTML: what, and how much.

    Args:
        rows: the first column to the second.
    """
    cells = "".join(f"<tr><th scope='row'>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in rows.items())
    return f"<table>{cells}</table>"
