"""How far, how fast, how long still. Functions that take long call ``progress(stage, done, total)``; this shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[str, int, int], None]  # stage, done, total

STAGES = {  # what a user reads, and the unit
    "share": ("Merging shared weights", "layer"),
    "route": ("Computing routers", "layer"),
    "write": ("Writing", "B"),
    "upload": ("Uploading", "B"),
    "train": ("Training tiny models", "step"),
    "measure": ("Measuring", "model"),
}


def silent(stage: str, done: int, total: int) -> None:
    """For callers that show no progress."""


@contextmanager
def bars() -> Iterator[Progress]:
    """A line in the terminal for each stage, with rate and time left."""
    from tqdm import tqdm

    shown: dict[str, tqdm] = {}

    def progress(stage: str, done: int, total: int) -> None:
        if stage not in shown:
            label, unit = STAGES[stage]
            shown[stage] = tqdm(desc=label, total=total, unit=unit, unit_scale=unit == "B", mininterval=0.2)
        shown[stage].update(done - shown[stage].n)

    try:
        yield progress
    finally:
        for bar in shown.values():
            bar.close()
