"""GGUF files that the machines of a cluster write, in a folder that they share: each those of some of the types."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from lazymoe.cluster.writing import Away, Spread, bare
from lazymoe.output.gguf import Export
from lazymoe.planning.plan import Plan
from lazymoe.progress import Progress
from lazymoe.quantizing.importance import Importance

if TYPE_CHECKING:
    from lazymoe.cluster.nodes import Cluster


def spread_export(
    cluster: Cluster, actors: Sequence[Any], plan: Plan, export: Export, threads: int, progress: Progress
) -> Spread:
    """Have GGUF files written, all of a type by one of the actors.

    Args:
        cluster, actors, plan, progress: as `Spread` has them.
        export, threads: as `Places.exporter` has them.

    Raises:
        Interrupted: if a machine dies.
        LazyMoEError: if nothing quantizes on one.
    """
    kinds, slots = list(export.files), bare(export.slots)
    used = actors[: len(kinds)]
    own = [export.only(kinds[i :: len(used)], slots) for i in range(len(used))]
    files = [
        Away(actor, next(iter(some.paths.values()))[0], export.slots, export.sizes, {})
        for actor, some in zip(used, own, strict=True)
    ]
    makes = [partial(_opened, some, threads) for some in own]
    news = partial(_news, export, set(export.importance))
    return Spread(cluster, used, plan, files, makes, progress, "quantize", news=news)


def _opened(export: Export, threads: int) -> list[Export]:
    export.open(threads)
    return [export]


def _news(export: Export, told: set[str]) -> Importance:
    """Give what has been learned of how much columns count since this was asked last."""
    news = {name: counts for name, counts in export.importance.items() if name not in told}
    told.update(news)
    return news
