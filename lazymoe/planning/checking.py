"""Can this recipe work, and what will it take? Answered before anything large is downloaded.

Errors mean that it can't work; warnings, that it may work badly. `merge` asks the same questions first.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from lazymoe.checkpoint.safetensors import open_file
from lazymoe.errors import Problem
from lazymoe.files import absolute, existing
from lazymoe.planning.duration import merge_seconds
from lazymoe.planning.memory import RANGES, RUNTIME, kept_states, merge_memory
from lazymoe.planning.plan import SHARD_SIZE, WORK, Plan
from lazymoe.planning.prepared import Prepared, Where, prepare
from lazymoe.planning.remote import Remote, remote
from lazymoe.recipe.schema import STREAMED, Recipe
from lazymoe.units import billions, gigabytes, minutes


@dataclass(frozen=True)
class Check:
    """What `check` found; all sizes in bytes.

    Attributes:
        errors: why it can't work; empty if it can.
        warnings: why it may work badly.
        notes: what is no defect, but good to know.
        plan: the output; None where errors leave nothing to plan.
        download: still to be downloaded.
        remote: what is read of weights that stay on the Hub; None if all of them are downloaded, or here.
        disk_free: free where the output goes.
        memory_free: free memory.
        memory_merge: memory that the merge takes at most, about.
        seconds: that the merge takes here, about, downloads included; None if it wasn't estimated or can't be.
    """

    errors: tuple[Problem, ...]
    warnings: tuple[Problem, ...]
    notes: tuple[str, ...]
    plan: Plan | None
    download: int
    remote: Remote | None
    disk_free: int
    memory_free: int
    memory_merge: int
    seconds: float | None

    def to_dict(self) -> dict[str, Any]:
        """Give its fields by name, for programs: figures in bytes or numbers of parameters."""
        found = {
            "ok": not self.errors,
            "errors": [p.to_dict() for p in self.errors],
            "warnings": [p.to_dict() for p in self.warnings],
            "notes": list(self.notes),
            "download_bytes": self.download,
            "remote_bytes": self.remote.nbytes if self.remote else 0,
            "free_disk_bytes": self.disk_free,
            "free_memory_bytes": self.memory_free,
            "merge_memory_bytes": self.memory_merge,
            "merge_seconds": self.seconds,
        }
        return found | self.plan.to_dict() if self.plan else found

    def figures(self) -> dict[str, str]:
        """Say what will be made and what it takes, name to words; empty where errors leave nothing to plan."""
        if not (plan := self.plan):
            return {}
        total, active = billions(plan.parameters), billions(plan.active_parameters)
        return {
            "model": f"{plan.architecture}, {plan.layers} layers, hidden size {plan.hidden_size}",
            "experts": f"{plan.experts}, {plan.top_k} for each token",
            "parameters": f"{total} in total, {active} active per token",
            "on disk": f"{gigabytes(plan.nbytes)} in {plan.config['dtype']}, {len(plan.shards)} file(s)",
            "to download": gigabytes(self.download) if self.download else "nothing",
            **({"to read remotely": gigabytes(self.remote.nbytes)} if self.remote else {}),
            "free disk": gigabytes(self.disk_free),
            "memory to merge": f"{gigabytes(self.memory_merge)}, of {gigabytes(self.memory_free)} free here",
            "time to merge": f"{minutes(self.seconds)} on this machine" if self.seconds else "not known",
            "memory to run": f"{gigabytes(plan.bytes_16bit)} in 16 bit, {gigabytes(plan.bytes_4bit)} in 4 bit; "
            "and 1 to 2 GB for the context",
        }

    def takes(self, straight: bool = False) -> str:
        """Say in a sentence what it moves; nothing where errors leave nothing to plan.

        Args:
            straight: whether it goes straight to the Hub.
        """
        if not (plan := self.plan):
            return ""
        down, size = gigabytes(self.download) if self.download else "nothing", gigabytes(plan.nbytes)
        down = f"To read on the Hub: {gigabytes(self.remote.nbytes)}" if self.remote else f"To download: {down}"
        here = gigabytes(_staying(plan))
        up = f"to upload: {size}, at most {here} of it here at a time" if straight else f"to write: {size}"
        took = f", {minutes(self.seconds)} here{', and the upload' * straight}" if self.seconds else ""
        return f"{down}; {up}{took}."

    def __str__(self) -> str:
        """Write out the table, then a line for each problem."""
        lines = [f"{name:<17}{value}" for name, value in self.figures().items()]
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"warning: {p}" for p in self.warnings] + [f"error: {p}" for p in self.errors]
        return "\n".join(lines if self.errors else [*lines, "This can be merged."])


def check(
    recipe: Recipe | str | os.PathLike[str],
    folder: str | os.PathLike[str] = ".",
    *,
    shard_size: int = SHARD_SIZE,
    allow_pickle: bool = False,
    source: Where = "auto",
) -> Check:
    """Find out whether a recipe can be merged and what it takes, from configs and headers.

    Args:
        recipe: what is wanted: a recipe, its file, or the name of a ready-made one.
        folder: where the output will go, to measure the free disk.
        shard_size: the most bytes of tensors in one output file.
        allow_pickle: also accept ``.bin`` weights.
        source: where the weights of models on the Hub are read, as `merge` has it.

    Returns:
        What was found. What is wrong with prompts, models and the machine is not raised; it is the ``errors``.

    Raises:
        RecipeError: if it isn't a recipe.
    """
    prepared = prepare(recipe, shard_size=shard_size, allow_pickle=allow_pickle, source=source)
    return examine(prepared, absolute(folder))


def examine(prepared: Prepared, folder: Path) -> Check:
    """Check a prepared recipe, with an estimate of the time, for which network, disk and processor are tried out.

    Args:
        prepared: the recipe.
        folder: where the output will go, absolute.
    """
    found = judge(prepared, folder)
    if found.plan is None or found.errors:
        return found
    download = found.download + (found.remote.nbytes if found.remote else 0)
    return replace(found, seconds=merge_seconds(prepared, found.plan, folder, download))


def judge(prepared: Prepared, folder: Path, stays: bool = True) -> Check:
    """Hold what a prepared recipe takes against what this machine has.

    Args:
        prepared: the recipe.
        folder: where the output will go, absolute.
        stays: whether it stays there; otherwise it goes to the Hub file by file.
    """
    plan, download = prepared.plan, sum(prepared.missing.values())
    away: Remote | None = None
    errors, warnings, notes = list(prepared.errors), list(prepared.warnings), list(prepared.notes)
    memory_free, memory_merge = psutil.virtual_memory().available, RUNTIME
    if plan:
        full, away = _room(prepared, plan, folder, download, stays)
        errors += full
        if away:
            why = "" if prepared.source == "remote" else ", as the disk has no room for the downloads"
            notes.append(f"{gigabytes(away.nbytes)} of weights are read on the Hub while it merges{why}")
            download = 0
        memory_merge = merge_memory(prepared.prompts, plan) + (RANGES + away.memory if away else 0)
        if memory_merge > memory_free:
            what = f"the merge takes {gigabytes(memory_merge)} and {gigabytes(memory_free)} are free"
            less = "'shared_weights: average'" if plan.shared == "regmean" else "'gate_mode: cheap_embed'"
            streamed = prepared.recipe.gate_mode in STREAMED or plan.shared == "regmean"
            remedy = f"Close other programs, or use {less}." if streamed else "Close other programs."
            warnings.append(Problem("output.memory", "memory", what, remedy))
    disk_free = shutil.disk_usage(existing(folder)).free
    figures = download, away, disk_free, memory_free, memory_merge
    return Check(tuple(errors), tuple(warnings), tuple(notes), plan, *figures, None)


def _room(
    prepared: Prepared, plan: Plan, folder: Path, download: int, stays: bool
) -> tuple[list[Problem], Remote | None]:
    """Choose whether models on the Hub stay there: give where there is no room then, and what is read there."""
    states = kept_states(prepared.prompts, plan)
    full = list(_disk(plan, folder, download, stays, states))
    if not download or (not full and prepared.source != "remote"):
        return full, None
    away = remote(prepared.prompts, plan)
    still = list(_disk(plan, folder, 0, stays, states, away.disk))
    if prepared.source != "local":
        return still, away
    fits = "" if still else " Or leave the models where they are, which fits: --source remote."
    return [replace(p, remedy=p.remedy + fits) for p in full], None


def _written(plan: Plan, folder: Path) -> int:
    """Count the bytes that are there already, of this plan's own shards, complete or half-made."""
    written = 0
    for name, outputs in plan.shards:
        for path in (folder / name, folder / WORK / name):
            own = {o.name for o in outputs}
            if path.is_file() and _tensors(path) in (set(), own):  # a half-made one can't be opened
                written += min(path.stat().st_size, sum(o.nbytes for o in outputs))
                break
    return written


def _tensors(path: Path) -> set[str]:
    """Name the tensors of a safetensors file; none if it can't be opened."""
    try:
        return set(open_file(path))
    except (ValueError, OSError):
        return set()


def _staying(plan: Plan) -> int:
    """Count the bytes that are here at a time where it goes straight to the Hub: one file is sent, the next is made."""
    return min(plan.nbytes, 2 * plan.largest_file)


def _disk(plan: Plan, folder: Path, download: int, stays: bool, states: int, room: int = 0) -> Iterator[Problem]:
    """Yield where there is no room for the output and what is held beside it, or for the downloads where they go."""
    output = plan.nbytes if stays else _staying(plan)
    needs = [(existing(folder), max(0, output - _written(plan, folder)) + states + room)]
    needs += [(existing(source.folder), download) for source in plan.sources if download and source.missing][:1]
    by_disk: dict[int, int] = {}
    for place, n in needs:
        by_disk[place.stat().st_dev] = by_disk.get(place.stat().st_dev, 0) + n
    for place, _ in needs:
        n, free = by_disk.pop(place.stat().st_dev, 0), shutil.disk_usage(place).free
        if n > free:
            what = f"{gigabytes(n)} of disk are needed and {gigabytes(free)} are free"
            spared = plan.nbytes - _staying(plan) if stays else 0
            straight = f", or merge straight to the Hub, which takes {gigabytes(spared)} less" if spared > 0 else ""
            yield Problem("output.no-room", str(place), what, f"Free some space, or choose another disk{straight}.")
