"""From a recipe to a checkpoint: prepare, check, download, compute, write, verify.

Running the same merge again goes on from where it stopped and gives the same bytes; `output.folder` says what keeps the
half-made from being taken for a model.
"""

from __future__ import annotations

import os
import zlib
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lazymoe.computing.compute import compute, degenerate
from lazymoe.computing.places import Interrupted
from lazymoe.errors import Problem, failure
from lazymoe.files import SEAL, absolute, read_seal, seal, seal_of, shown, write_whole
from lazymoe.making import (
    connected,
    device_on,
    doubtful,
    dump,
    fingerprint_of,
    places_for,
    record_of,
    routing_of,
    small_files,
    source_on,
    undone,
)
from lazymoe.output.claims import check_sources, claim, clear, discard, is_done, locked, verify
from lazymoe.output.folder import CONFIG, RECORD, WORK
from lazymoe.output.shards import Taker
from lazymoe.planning.checking import judge
from lazymoe.planning.plan import SHARD_SIZE, Plan
from lazymoe.planning.prepared import Prepared, Where, prepare
from lazymoe.progress import Progress, silent
from lazymoe.recipe.schema import Recipe
from lazymoe.units import billions

if TYPE_CHECKING:
    from lazymoe.computing.places import Places

OTHERS = "others"  # a folder among what is half-made: small files of a mixture whose weights don't stay


@dataclass(frozen=True)
class Merged:
    """A finished merge.

    Attributes:
        folder: where the mixture is, absolute.
        plan: what it was made by.
        warnings: what a user should know about it.
    """

    folder: Path
    plan: Plan
    warnings: tuple[Problem, ...]

    def to_dict(self) -> dict[str, Any]:
        """Give its fields by name, for programs: figures in bytes or numbers of parameters."""
        warnings = [problem.to_dict() for problem in self.warnings]
        return {"folder": str(self.folder), **self.plan.to_dict(), "warnings": warnings}

    def __str__(self) -> str:
        plan = self.plan
        return (
            f"{shown(self.folder)} holds a {plan.architecture} with {plan.experts} experts, "
            f"{plan.top_k} of them for each token.\n"
            f"It has {billions(plan.parameters)} parameters, {billions(plan.active_parameters)} active per token; "
            "every tensor was checked against the plan."
        )


def merge(
    recipe: Recipe | str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    seed: int = 0,
    shard_size: int = SHARD_SIZE,
    allow_pickle: bool = False,
    device: str | None = None,
    source: Where = "auto",
    on: str | None = None,
    progress: Progress = silent,
) -> Merged:
    """Make the mixture of experts that a recipe describes.

    Args:
        recipe: what is wanted: a recipe, its file, or the name of a ready-made one.
        folder: for the mixture: a new or empty one, or one where the same merge was interrupted.
        seed: of random routers and of the experts' noise.
        shard_size: the most bytes of tensors in one file.
        allow_pickle: also take ``.bin`` weights.
        device: where routers and shared weights are computed, as torch names it; a CUDA device if there is one by
            default.
        source: where the weights of models on the Hub are read: ``local`` downloads them into the cache, ``remote``
            reads only what is needed, where it is, and keeps none of it, ``auto`` does that if the disk has no room for
            the downloads. Both give the same bytes, and one goes on where the other stopped.
        on: the cluster whose machines read the models: ``ray`` for the one that this machine is part of, or
            ``ray:ADDRESS``; none of it by default.
        progress: called with (stage, done, total); stages are ``download`` (bytes), ``route`` and ``sweep`` (layers)
            and ``write`` (bytes). What it raises stops the merge.

    Returns:
        What was made, where, and what a user should know about it.

    Raises:
        LazyMoEError: with everything that is wrong, as the subclass of its kind if it is of one; nothing was written
            then. If the disk fills up or the merge is interrupted, complete files stay for a rerun to go on from.

    Example:
        >>> merge("recipe.yaml", "my-moe").plan.parameters  # doctest: +SKIP
    """
    source = source_on(on, source)
    prepared = prepare(recipe, shard_size=shard_size, allow_pickle=allow_pickle, source=source)
    return carry_out(prepared, absolute(folder), seed=seed, device=device, on=on, progress=progress)


def carry_out(
    prepared: Prepared,
    folder: Path,
    *,
    seed: int = 0,
    device: str | None = None,
    on: str | None = None,
    progress: Progress = silent,
    taker: Taker | None = None,
) -> Merged:
    """Make the mixture of a prepared recipe.

    Args:
        prepared: the recipe.
        folder: as `merge` has it, absolute.
        seed, device, on, progress: as in `merge`.
        taker: is given each file of weights when it is finished, and then the folder of the others: none of it stays.

    Raises:
        LazyMoEError: as `merge`; or of the taker's.
    """
    device = device_on(on, device)
    found = judge(prepared, folder, to_hub=taker is not None)
    if found.errors:
        raise failure(found.errors)
    assert found.way  # or there would be an error
    plan, away = prepared.sound_plan, found.way.remote
    fingerprint = fingerprint_of(prepared, seed)
    if is_done(folder, fingerprint, plan):
        return Merged(folder, plan, found.warnings)

    with connected(on):
        prepared.fetch(progress, remote=away is not None)
        work = claim(folder, fingerprint, plan)
        with locked(work), places_for(prepared, plan, away, work, on, progress) as places:
            made = _fill(prepared, plan, folder, fingerprint, seed, device, progress, taker, places)
            warnings = (*found.warnings, *made)
            if taker:
                taker.finish(work / OTHERS)
    clear(work)
    return Merged(folder, plan, warnings)


def _fill(
    prepared: Prepared,
    plan: Plan,
    folder: Path,
    fingerprint: str,
    seed: int,
    device: str | None,
    progress: Progress,
    taker: Taker | None,
    places: Places,
) -> list[Problem]:
    """Compute, write, verify and finish, in a folder that is claimed; give the warnings.

    Raises:
        LazyMoEError: as `merge`; what was written is removed, but for a full disk or the like.
    """
    work = folder / WORK
    with undone(folder, lambda: discard(plan, folder)):
        doubts = doubtful(prepared, plan)
        while True:
            with suppress(Interrupted), closing(places.writer(plan, folder, work, seed, taker, progress)) as writer:
                compute(prepared, plan, writer, work, seed, device, progress, places=places)
                writer.finish()
                break
        if taker is None:
            verify(plan, folder)
        check_sources(folder, plan)
        routing, others = routing_of(prepared, plan, work), folder if taker is None else work / OTHERS
        if routing:
            routing.write(others)
        _finish(prepared, plan, others, fingerprint, seed, work)
    return [*doubts, *(routing.problems() if routing else degenerate(plan, work))]


def _finish(prepared: Prepared, plan: Plan, folder: Path, fingerprint: str, seed: int, work: Path) -> None:
    """Write the other files, the record and config.json last: only they make the folder a finished model."""
    small = {name: s.encode() if isinstance(s, str) else s for name, s in small_files(prepared, plan)}
    files = {name: seal(len(s), zlib.crc32(s)) for name, s in small.items()}
    for name, _ in plan.shards:
        files[name] = read_seal(work / f"{name}{SEAL}") or seal_of(folder / name)
    record = record_of(prepared, plan, fingerprint, seed, files)
    for name, content in small.items():
        if name == CONFIG:
            write_whole(folder / RECORD, dump(record.model_dump()))
        write_whole(folder / name, content)
