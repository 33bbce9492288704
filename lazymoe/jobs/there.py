"""What runs on the rented machine: the merge that was asked for, told line by line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from lazymoe.errors import LazyMoEError
from lazymoe.progress import SENT, Telling
from lazymoe.to_hub import merge_to_hub

ASKED, RECIPE = "asked.json", "recipe.yaml"  # what is asked for: the arguments of `merge_to_hub`


def work(folder: str) -> int:
    """Merge to the Hub as a parcel asks for.

    Args:
        folder: where it was unpacked.

    Returns:
        The exit code: 0, or 1 if it failed; the last lines say why.
    """
    place = Path(folder)
    progress = Telling(sys.stdout)
    try:
        asked = json.loads((place / ASKED).read_text(encoding="utf-8"))
        done = merge_to_hub(place / RECIPE, folder=place / "mixture", progress=progress, **asked)
    except LazyMoEError as e:
        for problem in e.problems:
            print(f"error: {problem}", flush=True)
        return 1
    progress(SENT, done.sent, done.sent)
    return 0
