"""How far, how fast, how long still. Functions that take long call ``progress(stage, done, total)``; this shows it."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from threading import Lock
from typing import TextIO

from lazymoe.units import counted, gigabytes

Progress = Callable[[str, int, int], None]  # stage, done, total

STAGES = {  # what a user reads, and the unit
    "download": ("Downloading", "B"),
    "route": ("Computing routers", "layer"),
    "sweep": ("Computing layers", "layer"),
    "write": ("Writing", "B"),
    "imatrix": ("Importance matrix", "layer"),
    "quantize": ("Quantizing", "B"),
    "upload": ("Uploading", "B"),
    "train": ("Training tiny models", "step"),
    "measure": ("Measuring", "model"),
    "evaluate": ("Evaluating", "question"),
}
SENT = "sent"  # no stage: what a process says at its end, bytes that went to the Hub
NARROW = 100  # columns under which a bar leaves out all but the figures
SELDOM = 10.0  # seconds between two lines in a pipe
OFTEN = 2.0  # seconds between two lines for another process
TOLD = re.compile(r"\[lazymoe\] (\w+) (\d{1,18})/(\d{1,18})")


def silent(stage: str, done: int, total: int) -> None:
    """Show no progress."""


@contextmanager
def bars(quiet: bool = False) -> Iterator[Progress]:
    """Show progress: on a terminal a bar for each stage, with rate and time left; in a pipe now and then a plain line.

    Stages may take turns or go on together, in several threads: a rate is the mean since its stage began, which counts
    the turns of the others.

    Args:
        quiet: show nothing.
    """
    if quiet:
        yield silent
    elif sys.stderr.isatty():
        with _terminal() as progress:
            yield progress
    else:
        yield _Lines(sys.stderr)


@contextmanager
def _terminal() -> Iterator[Progress]:
    from tqdm import tqdm

    shown: dict[str, tqdm] = {}  # type: ignore[type-arg]  # generic in its stubs only
    lock = Lock()

    def progress(stage: str, done: int, total: int) -> None:
        with lock:
            move(stage, done, total)

    def move(stage: str, done: int, total: int) -> None:
        if stage not in shown:
            label, unit = STAGES[stage]
            narrow = 0 < os.get_terminal_size(sys.stderr.fileno()).columns < NARROW
            shown[stage] = tqdm(
                desc=label.split()[0] if narrow else label,
                bar_format="{desc}: {percentage:3.0f}% {rate_fmt}, {remaining} left" if narrow else None,
                total=total, initial=done,  # what was there before says nothing of the rate
                unit=unit, unit_scale=unit == "B", mininterval=0.2, smoothing=0, dynamic_ncols=True,
            )  # fmt: skip
        shown[stage].update(done - shown[stage].n)

    try:
        yield progress
    finally:
        for bar in shown.values():
            bar.close()


def without_loading_bars() -> AbstractContextManager[None]:
    """Keep transformers from drawing bars while it loads."""
    from transformers.utils import logging

    return switched_off(logging.is_progress_bar_enabled(), logging.disable_progress_bar, logging.enable_progress_bar)


@contextmanager
def switched_off(drawn: bool, off: Callable[[], object], on: Callable[[], object]) -> Iterator[None]:
    """Keep a library from drawing bars of its own.

    Args:
        drawn: whether it draws them.
        off, on: what tells it not to, and to again.
    """
    off()
    try:
        yield
    finally:
        if drawn:
            on()


class Telling:
    """Progress for another process: lines that `heard` reads, not too many of them."""

    def __init__(self, out: TextIO) -> None:
        """Tell it.

        Args:
            out: where the lines go.
        """
        self._out = out
        self._told: dict[str, float] = {}  # when each stage last said something

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Tell how far a stage is: at its end always, else now and then."""
        now = time.monotonic()
        if done < total and now - self._told.get(stage, -OFTEN) < OFTEN:
            return
        self._told[stage] = now
        print(f"[lazymoe] {stage} {done}/{total}", file=self._out, flush=True)


def heard(line: str) -> tuple[str, int, int] | None:
    """Read a line of `Telling`: the stage, how far it is, of how much; None if it is another.

    Args:
        line: of what a process said.
    """
    match = TOLD.fullmatch(line.rstrip())
    return (match[1], int(match[2]), int(match[3])) if match and match[1] in (*STAGES, SENT) else None


class _Lines:
    """Progress as plain lines: one when a stage begins, one now and then, one when it is done."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._told: dict[str, float] = {}  # when each stage last said something

    def __call__(self, stage: str, done: int, total: int) -> None:
        now, label = time.monotonic(), STAGES[stage][0]
        begins, ends = stage not in self._told, done >= total
        if self._told.get(stage) == float("inf") or not (begins or ends or now - self._told[stage] > SELDOM):
            return
        self._told[stage] = float("inf") if ends else now
        unit = STAGES[stage][1]
        amount = gigabytes(total) if unit == "B" else counted(total, unit)
        print(f"{label}: {done / max(total, 1):.0%} of {amount}", file=self._out, flush=True)
