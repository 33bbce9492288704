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

from lazymoe.errors import Problem
from lazymoe.files import absolute, existing
from lazymoe.planning.duration import Measured, with_times
from lazymoe.planning.plan import SHARD_SIZE, Plan
from lazymoe.planning.prepared import Prepared, Where, prepare
from lazymoe.planning.ways import Gguf, Way, among, choose, find_ways
from lazymoe.recipe.schema import STREAMED, Recipe
from lazymoe.units import billions, gigabytes

AS_DOWNLOADS = "Uploads are counted at the rate of downloads, which was measured; sending may be slower."


@dataclass(frozen=True)
class Check:
    """What `check` found; all sizes in bytes.

    Attributes:
        errors: why it can't work; empty if it can.
        warnings: why it may work badly.
        notes: what is no defect, but good to know.
        plan: the output; None where errors leave nothing to plan.
        ways: in which it can be made, with what each takes of this machine; the best one first if it fits.
        way: the one that is chosen of them: the first that fits, of those that were asked for; None if none does.
        disk_free: free where the output goes.
        memory_free: free memory.
        gguf: what is made, if not a checkpoint.
    """

    errors: tuple[Problem, ...]
    warnings: tuple[Problem, ...]
    notes: tuple[str, ...]
    plan: Plan | None
    ways: tuple[Way, ...]
    way: Way | None
    disk_free: int
    memory_free: int
    gguf: Gguf | None = None

    def to_dict(self) -> dict[str, Any]:
        """Give its fields by name, for programs: figures in bytes or numbers of parameters."""
        found = {
            "ok": not self.errors,
            "errors": [p.to_dict() for p in self.errors],
            "warnings": [p.to_dict() for p in self.warnings],
            "notes": list(self.notes),
            "ways": [{**way.to_dict(), "chosen": way is self.way} for way in self.ways],
            "free_disk_bytes": self.disk_free,
            "free_memory_bytes": self.memory_free,
        }
        found |= self.plan.to_dict() if self.plan else {}
        return found | ({"gguf_bytes": dict(self.gguf.files)} if self.gguf else {})

    def figures(self) -> dict[str, str]:
        """Say what will be made, and of what, name to words; empty where errors leave nothing to plan."""
        if not (plan := self.plan):
            return {}
        total, active = billions(plan.parameters), billions(plan.active_parameters)
        made = {
            "weights": f"{gigabytes(plan.nbytes)} in {plan.config['dtype']}, {len(plan.shards)} file(s)",
            "memory to run": f"{gigabytes(plan.bytes_16bit)} in 16 bit, {gigabytes(plan.bytes_4bit)} in 4 bit; "
            "and 1 to 2 GB for the context",
        }
        if self.gguf:
            sizes = ", ".join(f"{kind} {gigabytes(nbytes)}" for kind, nbytes in self.gguf.files.items())
            made = {"GGUF": sizes, "memory to run": "that of a file, and 1 to 2 GB for the context"}
        return {
            "model": f"{plan.architecture}, {plan.layers} layers, hidden size {plan.hidden_size}",
            "experts": f"{plan.experts}, {plan.top_k} for each token",
            "parameters": f"{total} in total, {active} active per token",
            **made,
            "free here": f"{gigabytes(self.disk_free)} of disk, {gigabytes(self.memory_free)} of memory",
        }

    def __str__(self) -> str:
        """Write out the table, the ways side by side, then a line for each problem."""
        lines = [f"{name:<17}{value}" for name, value in self.figures().items()]
        lines += ["", *_side_by_side(self.ways, self.way), ""] * bool(self.ways)
        lines += [AS_DOWNLOADS] * any(way.upload_seconds for way in self.ways)
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"warning: {p}" for p in self.warnings] + [f"error: {p}" for p in self.errors]
        return "\n".join([*lines, *([f"This can be merged{_verdict(self.way)}."] if not self.errors else [])])


def _side_by_side(ways: tuple[Way, ...], chosen: Way | None) -> Iterator[str]:
    """Yield the lines of a table with a column for each way."""
    columns = [
        {"--source": way.source, "--to": "USER/NAME" * way.to_hub, **way.figures()}
        | ({"fits": f"{way.figures()['fits']}, chosen"} if way is chosen else {})
        for way in ways
    ]
    widths = [max(map(len, column.values())) + 2 for column in columns]
    for name in columns[0] if columns else ():
        cells = [column[name] for column in columns]
        if any(cells):
            yield f"{name:<17}{''.join(map(str.ljust, cells, widths))}".rstrip()


def _verdict(way: Way | None) -> str:
    """Say how it can be merged, with the option that it takes."""
    return f"{way.how}{': with --to USER/NAME' * way.to_hub}" if way else ""


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


def examine(prepared: Prepared, folder: Path, gguf: Gguf | None = None) -> Check:
    """Check a prepared recipe, with an estimate of the time, for which network, disk and processor are tried out.

    Args:
        prepared: the recipe.
        folder: where the output will go, absolute.
        gguf: what is made, if not a checkpoint.
    """
    found = judge(prepared, folder, gguf=gguf)
    if found.plan is None or found.way is None or found.errors:
        return found
    ways = with_times(found.ways, prepared, found.plan, Measured(prepared.sources, folder), gguf)
    return replace(found, ways=ways, way=ways[found.ways.index(found.way)])


def judge(prepared: Prepared, folder: Path, to_hub: bool | None = None, gguf: Gguf | None = None) -> Check:
    """Hold what a prepared recipe takes against what this machine has, and choose the way.

    Args:
        prepared: the recipe.
        folder: where the output will go, absolute.
        to_hub: whether it goes straight to the Hub; None to leave that open.
        gguf: what is made, if not a checkpoint.
    """
    plan = prepared.plan
    errors, warnings = list(prepared.errors), list(prepared.warnings)
    ways: tuple[Way, ...] = ()
    way = None
    if plan:
        ways = find_ways(prepared, plan, folder, gguf=gguf)
        asked = among(ways, prepared.source, to_hub)
        way = choose(asked)
        nearest = way or min(asked, key=lambda way: way.lacking)
        errors += _disk(nearest, choose(among(ways, "auto", to_hub)) or choose(ways))
        warnings += _memory(nearest, prepared.recipe, plan)
    free = shutil.disk_usage(existing(folder)).free, psutil.virtual_memory().available
    return Check(tuple(errors), tuple(warnings), prepared.notes, plan, ways, way, *free, gguf)


def _disk(way: Way, other: Way | None) -> Iterator[Problem]:
    """Yield where a way finds no room, and another one that does."""
    for need in way.needs:
        if need.lacking:
            remedy = "Free some space, or choose another disk."
            fits = f" Or {other.instead}." if other else ""
            yield Problem("output.no-room", str(need.place), str(need), remedy + fits)


def _memory(way: Way, recipe: Recipe, plan: Plan) -> Iterator[Problem]:
    """Yield whether a way may find too little memory."""
    if way.memory > way.memory_free:
        what = f"the merge takes {gigabytes(way.memory)} and {gigabytes(way.memory_free)} are free"
        less = "'shared_weights: average'" if plan.shared == "regmean" else "'gate_mode: cheap_embed'"
        streamed = recipe.gate_mode in STREAMED or plan.shared == "regmean"
        remedy = f"Close other programs, or use {less}." if streamed else "Close other programs."
        yield Problem("output.memory", "memory", what, remedy)
