"""What files the machines of a cluster write, in a folder that they share: shards each its own, GGUF files those of
some of the types."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lazymoe.checkpoint.tensors import InMemory
from lazymoe.cluster.writing import Away, Spread
from lazymoe.output.gguf import Export
from lazymoe.output.parts import Slot, slots_of
from lazymoe.output.shards import Shard, Taker
from lazymoe.planning.plan import Output, Piece, Plan
from lazymoe.progress import Progress
from lazymoe.quantizing.importance import Importance

if TYPE_CHECKING:
    from lazymoe.cluster.nodes import Cluster

NOTHING = InMemory(torch.empty(0))  # reads a tensor that is handed over where it is written


def spread_shards(
    cluster: Cluster,
    actors: Sequence[Any],
    plan: Plan,
    out: Path,
    work: Path,
    seed: int,
    taker: Taker | None,
    progress: Progress,
) -> Spread:
    """Have the shards of a mixture written, each by one of the actors.

    Args:
        cluster, actors, progress: as `Spread` has them.
        plan, out, work, seed, taker: as `shards_of` has them.

    Raises:
        Interrupted: if a machine dies.
    """
    files: list[Away] = []
    for (name, outputs), actor in zip(plan.shards, cycle(actors)):
        slots = slots_of(outputs, plan.references, seed)
        sizes = [slot.nbytes for slot in slots]
        files.append(Away(actor, out / name, slots, sizes, {}, gone=bool(taker and taker.has(name))))
    makes = [
        partial(_shards, [(f.path.name, _bare(f.slots)) for f in files if f.actor is actor and not f.gone], out, work)
        for actor in actors
    ]
    return Spread(cluster, actors, plan, files, makes, progress, taker=taker)


def _shards(files: Sequence[tuple[str, list[Slot]]], out: Path, work: Path) -> list[Shard]:
    return [Shard(name, slots, out, work) for name, slots in files]


def spread_export(
    cluster: Cluster, actors: Sequence[Any], plan: Plan, export: Export, threads: int, progress: Progress
) -> Spread:
    """Have GGUF files written, all of a type by one of the actors.

    Args:
        cluster, actors, plan, progress: as `Spread` has them; no more actors than types.
        export, threads: as `Places.exporter` has them.

    Raises:
        Interrupted: if a machine dies.
        LazyMoEError: if nothing quantizes on one.
    """
    kinds, slots = list(export.files), _bare(export.slots)
    own = [export.only(kinds[i :: len(actors)], slots) for i in range(len(actors))]
    files = [
        Away(actor, next(iter(some.paths.values()))[0], export.slots, export.sizes, {})
        for actor, some in zip(actors, own, strict=True)
    ]
    makes = [partial(_opened, some, threads) for some in own]
    news = partial(_news, export, set(export.importance))
    return Spread(cluster, actors, plan, files, makes, progress, "quantize", news=news)


def _opened(export: Export, threads: int) -> list[Export]:
    export.open(threads)
    return [export]


def _news(export: Export, told: set[str]) -> Importance:
    """Give what has been learned of how much columns count since this was asked last."""
    news = {name: counts for name, counts in export.importance.items() if name not in told}
    told.update(news)
    return news


def _bare(slots: Sequence[Slot]) -> list[Slot]:
    """Give parts without what reads them: that doesn't travel."""
    outputs: dict[str, Output] = {}
    for output in (slot.output for slot in slots if not slot.number):
        parts = (
            replace(part, tensor=replace(part.tensor, reader=NOTHING)) if isinstance(part, Piece) else part
            for part in output.parts
        )
        outputs[output.name] = replace(output, parts=tuple(parts))
    return [slot._replace(output=outputs[slot.output.name]) for slot in slots]
