"""What runs on the rented machine: what was asked for, told line by line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lazymoe.errors import LazyMoEError
from lazymoe.progress import SENT, Progress, Telling

ASKED, RECIPE = "asked.json", "recipe.yaml"  # what is asked for: one of `WORKS`, and its arguments
MERGE, GGUF, EVALUATE = "merge", "gguf", "evaluate"


def work(folder: str) -> int:
    """Do what a parcel asks for.

    Args:
        folder: where it was unpacked.

    Returns:
        The exit code: 0, or 1 if it failed; the last lines say why.
    """
    place = Path(folder)
    progress = Telling(sys.stdout)
    try:
        asked = json.loads((place / ASKED).read_text(encoding="utf-8"))
        sent = WORKS[asked.pop("do")](place, progress, **asked)
    except LazyMoEError as e:
        for problem in e.problems:
            print(f"error: {problem}", flush=True)
        return 1
    progress(SENT, sent, sent)
    return 0


def _merge(place: Path, progress: Progress, repo: str, **asked: Any) -> int:
    from lazymoe.to_hub import merge_to_hub

    return merge_to_hub(place / RECIPE, repo, _folder(place, repo), progress=progress, **asked).sent


def _gguf(place: Path, progress: Progress, repo: str, types: list[str], imatrix: str | bool, **asked: Any) -> int:
    from lazymoe.gguf_to_hub import merge_gguf_to_hub

    matrix = imatrix if isinstance(imatrix, bool) else place / imatrix
    folder = _folder(place, repo)
    return merge_gguf_to_hub(place / RECIPE, types, repo, folder, imatrix=matrix, progress=progress, **asked).sent


def _evaluate(place: Path, progress: Progress, repo: str, revision: str, tasks: list[str], **asked: Any) -> int:
    from lazymoe.evaluating.evaluate import evaluate
    from lazymoe.evaluating.questions import OWN
    from lazymoe.jobs.published import bring_mixture, show_evaluation

    folder, license = bring_mixture(repo, revision, progress)
    named = [str(place / task) if task.endswith(OWN) else task for task in tasks]
    found = evaluate(folder, named, progress=progress, **asked)
    found.save(folder)
    show_evaluation(folder, repo, license)
    return 0


def _folder(place: Path, repo: str) -> Path:
    """Give the folder for what is made, by whose name files are called."""
    return place / "made" / repo.rpartition("/")[2]


WORKS: dict[str, Callable[..., int]] = {MERGE: _merge, GGUF: _gguf, EVALUATE: _evaluate}
