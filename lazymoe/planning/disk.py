"""The disk that a merge takes: what it holds at most at a time, and what of that is there already."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from lazymoe.checkpoint.safetensors import open_file
from lazymoe.files import existing
from lazymoe.planning.memory import kept_states
from lazymoe.planning.plan import WORK, Plan
from lazymoe.recipe.schema import Recipe
from lazymoe.units import gigabytes


class Need(NamedTuple):
    """What is needed of one disk, in bytes, and what is free there.

    Attributes:
        place: a folder on it.
    """

    place: Path
    nbytes: int
    free: int

    @property
    def lacking(self) -> int:
        return max(0, self.nbytes - self.free)

    def __str__(self) -> str:
        return f"{gigabytes(self.nbytes)} of disk are needed and {gigabytes(self.free)} are free"


def held(recipe: Recipe, plan: Plan, to_hub: bool) -> int:
    """Count the most bytes that the output takes while it is made, with what is kept beside it.

    Args:
        recipe: what is wanted, with the texts of its prompts.
        plan: what it comes to.
        to_hub: whether each file leaves when it is finished: one is sent while the next is made.
    """
    output = min(plan.nbytes, 2 * plan.largest_file) if to_hub else plan.nbytes
    return output + kept_states(recipe, plan)


def written(plan: Plan, folder: Path) -> int:
    """Count the bytes that are there already, of this plan's own shards, complete or half-made.

    Args:
        plan: what is made.
        folder: of the output.
    """
    found = 0
    for name, outputs in plan.shards:
        for path in (folder / name, folder / WORK / name):
            own = {o.name for o in outputs}
            if path.is_file() and _tensors(path) in (set(), own):  # of a half-made one the end is missing
                found += min(path.stat().st_size, sum(o.nbytes for o in outputs))
                break
    return found


def by_disk(needs: Iterable[tuple[Path, int]], free: int | None = None) -> tuple[Need, ...]:
    """Add up what is needed of each disk.

    Args:
        needs: bytes by the folder that takes them, which need not exist.
        free: bytes, on every disk; those that are free there by default.
    """
    found: dict[int, Need] = {}
    for folder, nbytes in needs:
        place = existing(folder)
        before = found.get(device := place.stat().st_dev)
        room = shutil.disk_usage(place).free if free is None else free
        found[device] = before._replace(nbytes=before.nbytes + nbytes) if before else Need(place, nbytes, room)
    return tuple(found.values())


def _tensors(path: Path) -> set[str]:
    """Name the tensors of a safetensors file; none if it can't be opened."""
    try:
        return set(open_file(path))
    except (ValueError, OSError):
        return set()
