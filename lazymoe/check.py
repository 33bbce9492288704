"""Can this recipe work, and what will it take? Answered before anything large is downloaded.

Errors mean that it can't work; warnings, that it may work badly. `merge` asks the same questions first.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from lazymoe.errors import LazyMoEError, Problem
from lazymoe.families import find
from lazymoe.fit import adapters, differences, misfits, same_tokens, unusable
from lazymoe.plan import Plan, make_plan
from lazymoe.prompts import read_prompts
from lazymoe.recipe import Recipe, Reference, Texts
from lazymoe.source import Source, nowhere, open_source

STREAMED = ("fit", "hidden", "hidden_avg", "hidden_last")  # gate modes that run models, a layer at a time
PROMPTED = (*STREAMED, "cheap_embed")  # those that read the prompts
FEW = 20  # words of prompts under which routers are the worse for it (benchmarks/router.py: keywords)
RUNTIME = 350_000_000  # bytes: Python with torch, and the buffers of a merge


@dataclass(frozen=True)
class Check:
    """What `check` found; all sizes in bytes.

    Attributes:
        errors: why it can't work; empty if it can.
        warnings: why it may work badly.
        plan: the output; None where errors leave nothing to plan.
        download: still to be downloaded.
        disk_free: free where the output goes.
        memory_free: free memory.
        memory_merge: memory that the merge takes, about.
    """

    errors: tuple[Problem, ...]
    warnings: tuple[Problem, ...]
    plan: Plan | None
    download: int
    disk_free: int
    memory_free: int
    memory_merge: int

    def to_dict(self) -> dict[str, Any]:
        """For programs: figures in bytes or numbers of parameters, problems as text."""
        found = {
            "ok": not self.errors,
            "errors": [str(p) for p in self.errors],
            "warnings": [str(p) for p in self.warnings],
            "download_bytes": self.download,
            "free_disk_bytes": self.disk_free,
            "free_memory_bytes": self.memory_free,
            "merge_memory_bytes": self.memory_merge,
        }
        if plan := self.plan:
            found |= {
                "architecture": plan.config["architectures"][0],
                "layers": plan.layers,
                "experts": plan.experts,
                "experts_per_token": plan.top_k,
                "parameters": plan.parameters,
                "active_parameters": plan.active_parameters,
                "dtype": plan.config["dtype"],
                "output_bytes": plan.nbytes,
                "run_memory_16bit_bytes": plan.bytes_16bit,
                "run_memory_4bit_bytes": plan.bytes_4bit,
            }
        return found

    def figures(self) -> dict[str, str]:
        """What will be made and what it takes, in words; empty where errors leave nothing to plan."""
        if not (plan := self.plan):
            return {}
        total, active = billions(plan.parameters), billions(plan.active_parameters)
        return {
            "model": f"{plan.config['architectures'][0]}, {plan.layers} layers, hidden size {plan.hidden_size}",
            "experts": f"{plan.experts}, {plan.top_k} for each token",
            "parameters": f"{total} in total, {active} active per token",
            "on disk": f"{gigabytes(plan.nbytes)} in {plan.config['dtype']}, {len(plan.shards)} file(s)",
            "to download": gigabytes(self.download) if self.download else "nothing",
            "free disk": gigabytes(self.disk_free),
            "memory to merge": f"{gigabytes(self.memory_merge)}, of {gigabytes(self.memory_free)} free here",
            "memory to run": f"{gigabytes(plan.bytes_16bit)} in 16 bit, {gigabytes(plan.bytes_4bit)} in 4 bit; "
            "and 1 to 2 GB for the context",
        }

    def __str__(self) -> str:
        """The table, then a line for each problem."""
        lines = [f"{name:<17}{value}" for name, value in self.figures().items()]
        lines += [f"warning: {p}" for p in self.warnings] + [f"error: {p}" for p in self.errors]
        return "\n".join(lines if self.errors else [*lines, "This can be merged."])


def billions(parameters: int) -> str:
    """A number of parameters as people say it."""
    return f"{parameters / 1e9:.1f}B" if parameters >= 1e9 else f"{parameters / 1e6:.1f}M"


def gigabytes(n: int) -> str:
    """A number of bytes as people say it."""
    return f"{n / 1e9:.1f} GB" if n >= 1e8 else f"{n / 1e6:.1f} MB"


def check(
    recipe: Recipe, out: str | Path = ".", *, shard_size: int = 4_000_000_000, allow_pickle: bool = False
) -> Check:
    """Find out whether a recipe can be merged and what it takes, from configs and headers.

    Args:
        recipe: what is wanted.
        out: where the output will go, to measure the free disk.
        shard_size: the most bytes of tensors in one output file.
        allow_pickle: also accept ``.bin`` weights.

    Returns:
        What was found. A recipe's mistakes are not raised; they are its ``errors``.
    """
    out = absolute(out)
    errors: list[Problem] = []
    try:
        recipe = read_prompts(recipe)
    except LazyMoEError as e:
        errors += e.problems
    errors += _unsupported(recipe)
    warnings = list(_doubtful(recipe))
    sources = _open_all(recipe, allow_pickle, errors)
    plan = _plan(recipe, sources, shard_size, errors, warnings) if sources else None
    download = sum({s.folder / f: n for s in sources for f, n in s.missing.items()}.values())
    memory_free, memory_merge = psutil.virtual_memory().available, RUNTIME
    if plan:
        errors += _disk(plan, out, download)
        if recipe.gate_mode in STREAMED:
            memory_merge += plan.dense_layer_bytes
        if plan.shared == "regmean":
            memory_merge += plan.dense_layer_bytes + (plan.experts + 4) * 4 * plan.hidden_size**2
        if memory_merge > memory_free:
            what = f"the merge takes {gigabytes(memory_merge)} and {gigabytes(memory_free)} are free"
            warnings.append(Problem("memory", what, "Close other programs, or use 'gate_mode: cheap_embed'."))
    disk_free = shutil.disk_usage(_existing(out)).free
    return Check(tuple(errors), tuple(warnings), plan, download, disk_free, memory_free, memory_merge)


def review(recipe: Recipe) -> tuple[list[Problem], list[Problem]]:
    """Errors and warnings that the recipe alone tells, without a look at any model: quick enough for every key."""
    errors = list(_unsupported(recipe))
    for where, name in recipe.models():
        errors += filter(None, [nowhere(Reference.parse(name), where)])
    return errors, list(_doubtful(recipe))


def _unsupported(recipe: Recipe) -> Iterator[Problem]:
    """What can't be made, as far as the recipe alone can tell."""
    for i, expert in enumerate(recipe.experts):
        if recipe.gate_mode in PROMPTED and not any(
            isinstance(p, Texts) or p.strip() for p in expert.positive_prompts or []
        ):
            what = f"gate_mode '{recipe.gate_mode}' needs prompts"
            remedy = "Write a few texts that this expert should answer, or use 'gate_mode: random'."
            yield Problem(recipe.place(i, "positive_prompts"), what, remedy)


def _doubtful(recipe: Recipe) -> Iterator[Problem]:
    """What works, but hardly as meant, as far as the recipe alone can tell."""
    n = len(recipe.experts)
    if recipe.experts_per_token > n:
        what = f"{recipe.experts_per_token} is more than the number of experts, {n}"
        yield Problem("experts_per_token", what, f"{n} will be used; lower it or add experts.")
    prompts = [(e.positive_prompts or [], e.negative_prompts or []) for e in recipe.experts]
    models = [e.source_model for e in recipe.experts]
    for i in range(n):
        if recipe.gate_mode in PROMPTED and (twin := prompts.index(prompts[i])) < i:
            what = f"the prompts are those of expert {twin + 1}, so the router can't tell the two apart"
            yield Problem(recipe.place(i, "positive_prompts"), what, "Give each its own.")
        if recipe.gate_mode in PROMPTED:
            yield from _contradictions(recipe, i)
        words = sum(len(p.split()) for p in recipe.experts[i].positive)
        if recipe.gate_mode == "fit" and 0 < words < FEW:
            what = f"{words} word{'s' * (words > 1)} say little about what this expert is for"
            remedy = "Add whole sentences of that kind, or better, samples: '{file: texts.jsonl, field: text}'."
            yield Problem(recipe.place(i, "positive_prompts"), what, remedy)
        if (twin := models.index(models[i])) < i:
            what = f"this is the same model as expert {twin + 1}"
            remedy = "Right if you will train the mixture (sparse upcycling); otherwise name another model."
            yield Problem(recipe.place(i, "source_model"), what, remedy)


def _contradictions(recipe: Recipe, i: int) -> Iterator[Problem]:
    """Single prompts of an expert that pull in two directions; each is told once."""
    own = recipe.experts[i]
    for prompt in dict.fromkeys(p for p in own.positive if p in own.negative):
        what = f"'{_short(prompt)}' is both a positive and a negative prompt of this expert"
        yield Problem(recipe.place(i, "negative_prompts"), what, "Remove it from one of the two.")
    for j, other in enumerate(recipe.experts[:i]):
        both = [p for p in own.positive if p in other.positive]
        if both and own.positive != other.positive:
            what = f"'{_short(both[0])}' is also a prompt of expert {j + 1}, so it says nothing about either"
            yield Problem(recipe.place(i, "positive_prompts"), what, "Give it to one of them.")


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 40 else text[:39] + "…"


def _open_all(recipe: Recipe, allow_pickle: bool, errors: list[Problem]) -> list[Source]:
    """The base model and each expert, every model opened once; nothing if one of them is unusable."""
    opened: dict[str, Source] = {}
    before = len(errors)
    for name in dict.fromkeys(model for _, model in recipe.models()):
        where = next(place for place, model in recipe.models() if model == name)
        try:
            opened[name] = open_source(name, where, allow_pickle)
        except LazyMoEError as e:
            errors += e.problems
        else:
            errors += filter(None, [unusable(where, opened[name])])
    if len(errors) > before:
        return []
    return [opened[name] for _, name in recipe.models()]


def _plan(
    recipe: Recipe, sources: list[Source], shard_size: int, errors: list[Problem], warnings: list[Problem]
) -> Plan | None:
    try:
        dense, family = find(sources[0].config, recipe)
    except LazyMoEError as e:
        errors += e.problems
        return None
    if problems := list(misfits(recipe, sources, dense, family)):
        errors += problems
        return None
    warnings += differences(recipe, sources, dense)
    shared = recipe.shared_weights or ("regmean" if recipe.gate_mode == "fit" else "base")
    experts = sources[1 : 1 + len(recipe.experts)]
    strangers = [i for i, s in enumerate(experts) if shared != "base" and not same_tokens(sources[0], s)]
    if strangers:
        where, what = recipe.place(strangers[0], "source_model"), "its tokens aren't the base model's"
        remedy = "So attention, norms and embeddings are taken from the base model alone."
        warnings.append(Problem(where, what, remedy))
    shared = "base" if strangers else shared
    warnings += adapters(recipe, sources, dense, shared)
    return make_plan(recipe, sources, dense, family, shared, shard_size)


def _disk(plan: Plan, out: Path, download: int) -> Iterator[Problem]:
    """Is there room for the output, and for the downloads where they go?"""
    written = sum(p.stat().st_size for p in out.glob("**/model-*.safetensors")) if out.is_dir() else 0
    needs = [(_existing(out), plan.nbytes - written + plan.computed_bytes)]
    needs += [(_existing(source.folder), download) for source in plan.sources if source.missing][:1]
    by_disk: dict[int, int] = {}
    for place, n in needs:
        by_disk[place.stat().st_dev] = by_disk.get(place.stat().st_dev, 0) + n
    for place, _ in needs:
        n, free = by_disk.pop(place.stat().st_dev, 0), shutil.disk_usage(place).free
        if n > free:
            what = f"{gigabytes(n)} of disk are needed and {gigabytes(free)} are free"
            yield Problem(str(place), what, "Free some space, or choose another disk.")


def absolute(path: str | Path) -> Path:
    """A path as a user gives it, from the root on: the folder that a program works in is no part of it any more."""
    return Path(os.path.expanduser(path)).absolute()


def _existing(path: Path) -> Path:
    """The nearest folder, at or above a path, that exists."""
    path = path.resolve()
    while not path.is_dir():
        path = path.parent
    return path
