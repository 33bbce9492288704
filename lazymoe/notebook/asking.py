"""Asking a model in a panel: a box whose Enter is heard, and the one model that memory has room for."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ipywidgets as w
import psutil

from lazymoe.notebook import ui
from lazymoe.output.folder import open_finished

CONTINUES = "It has no chat template: it continues your text."
settle = partial(time.sleep, 0.2)  # a step: Enter is told a moment before what was typed


def question(label: str, name: str, ask: Callable[[], None], **options: Any) -> w.Text:
    """Make a box for a question.

    Args:
        label: what a person reads.
        name: of its class, by which tests and styles find it.
        ask: called at Enter; what was typed is there after `settle`.
        options: of the widget.
    """
    box: w.Text = ui.field(w.Text, label, name, continuous_update=False, **options)
    box.on_msg(lambda _, content, buffers: ask() if content.get("event") == "submit" else None)
    return box


def let_go() -> None:
    """Give back the memory of a model that nothing names any more."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def load_mixture(folder: Path) -> tuple[Any, Any]:
    """Load a mixture and its tokenizer: in 4 bit on a GPU, or where its own dtype wouldn't fit.

    Args:
        folder: the mixture's.
    """
    import torch

    from lazymoe.forward.loading import load

    fits = open_finished(folder).record.bytes_16bit < psutil.virtual_memory().available
    return load(folder, bits=None if fits and not torch.cuda.is_available() else 4)
