"""From a recipe to GGUF: each tensor is quantized as soon as it is there, and no checkpoint is written between."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path

from lazymoe.checking_gguf import doubtful_gguf, known, lay, name_of, weighted
from lazymoe.computing.compute import compute, degenerate
from lazymoe.computing.places import Interrupted
from lazymoe.errors import error, failure
from lazymoe.exporting import LARGEST, Exported, kinds_of, threads_of, write_layers
from lazymoe.files import absolute
from lazymoe.forward.inputs import Inputs
from lazymoe.making import (
    chats,
    connected,
    device_on,
    doubtful,
    fingerprint_of,
    places_for,
    record_of,
    routing_of,
    source_on,
    undone,
)
from lazymoe.output.claims import check_sources, claim, clear, locked
from lazymoe.output.folder import RECORD, WORK
from lazymoe.output.quantized import MATRIX, describe
from lazymoe.planning.checking import judge
from lazymoe.planning.plan import Plan
from lazymoe.planning.prepared import Prepared, Where, prepare
from lazymoe.planning.ways import Gguf
from lazymoe.progress import Progress, silent
from lazymoe.quantizing.gguf_file import DONE, RECORDS, note_whole
from lazymoe.quantizing.importance import Importance, Squares, digest, gathered, write_importance
from lazymoe.recipe.schema import Recipe


def merge_to_gguf(
    recipe: Recipe | str | os.PathLike[str],
    types: str | Sequence[str],
    out: str | os.PathLike[str],
    *,
    imatrix: str | os.PathLike[str] | bool = True,
    seed: int = 0,
    allow_pickle: bool = False,
    device: str | None = None,
    source: Where = "auto",
    on: str | None = None,
    threads: int | None = None,
    largest: int = LARGEST,
    progress: Progress = silent,
) -> Exported:
    """Make the mixture that a recipe describes as GGUF, one file for each type, without a checkpoint between.

    With the same importance matrix, or with none, the files are those that `lazymoe.to_gguf` makes of the finished
    mixture, to the byte. Again after an interruption: it goes on from the last layer.

    Args:
        recipe, seed, allow_pickle, device, source, on: as in `lazymoe.merge`.
        types, imatrix, threads, largest: as in `lazymoe.to_gguf`; on a cluster so many threads on each machine.
        out: the folder for the files, which are called as it is, without ``-GGUF`` at its end.
        progress: as in `lazymoe.merge`, but for ``write``; and ``quantize`` (bytes of the mixture).

    Returns:
        Where the files are, and what a user should know about the mixture.

    Raises:
        LazyMoEError: as `lazymoe.merge` and `lazymoe.to_gguf`.

    Example:
        >>> merge_to_gguf("recipe.yaml", "Q4_K_M", "my-moe-GGUF").files  # doctest: +SKIP
    """
    kinds, threads = kinds_of(types), threads_of(threads)
    return carry_to_gguf(
        prepare(recipe, allow_pickle=allow_pickle, source=source_on(on, source)),
        kinds,
        absolute(out),
        imatrix=known(imatrix),
        seed=seed,
        device=device,
        on=on,
        threads=threads,
        largest=largest,
        progress=progress,
    )


def carry_to_gguf(
    prepared: Prepared,
    kinds: Sequence[str],
    goal: Path,
    *,
    imatrix: Importance | bool = True,
    seed: int = 0,
    device: str | None = None,
    on: str | None = None,
    threads: int = 1,
    largest: int = LARGEST,
    progress: Progress = silent,
) -> Exported:
    """Make the mixture of a prepared recipe as GGUF.

    Args:
        prepared: the recipe.
        kinds: the types of files, as `exporting.kinds_of` gives them.
        goal: the folder for the files, absolute.
        imatrix: how much columns count; or whether that is to be found out on the way, where a type gains by it.
        seed, device, on, threads, largest, progress: as in `merge_to_gguf`.

    Raises:
        LazyMoEError: as `merge_to_gguf`.
    """
    device = device_on(on, device)
    prepared = weighted(prepared, kinds, imatrix)
    importance = {} if isinstance(imatrix, bool) else imatrix
    export = lay(prepared, kinds, goal, importance, seed, largest)
    export.find()
    found = judge(prepared, goal, to_hub=False, gguf=Gguf(export.sizes_by_type, export.room))
    if found.errors:
        raise failure(found.errors)
    if on and export.copies:
        what = "GGUF files of these types would be copied as they are, and no machine of a cluster reads them so"
        raise error("input.usage", "--on", what, "Leave --on out: copying takes no computing.")
    assert found.way  # or there would be an error
    plan, away = prepared.sound_plan, found.way.remote
    warnings = [*found.warnings, *doubtful_gguf(prepared, export, kinds, goal)]
    if export.whole and not (goal / WORK / RECORD).exists():  # nor anything that is still to be done
        return Exported(export.paths, tuple(warnings))

    work = goal / WORK

    def undo() -> None:
        export.discard()
        clear(work, RECORDS)
        with suppress(OSError):
            goal.rmdir()  # if nothing else is in it

    with connected(on):
        prepared.fetch(progress, remote=away is not None)
        claim(goal, f"{fingerprint_of(prepared, seed)} as GGUF", plan)
        there = places_for(prepared, plan, away, work, on, progress)
        with locked(work), there as places, undone(goal, undo), closing(export):
            warnings += doubtful(prepared, plan)
            weights = _Weights(plan, importance) if plan.weighted else None
            weigh = weights.learn if weights else None
            while True:
                with suppress(Interrupted), closing(places.exporter(export, work, threads, progress)) as writer:
                    compute(prepared, plan, writer, work, seed, device, progress, weigh, places)
                    write_layers(writer, plan.layers)
                    break
            if weights:
                weights.write(goal / f"{name_of(goal)}{MATRIX}")
            check_sources(goal, plan)
            routing = routing_of(prepared, plan, work)
            if routing:
                routing.write(goal)
            record = record_of(prepared, plan, fingerprint_of(prepared, seed), seed, {})
            describe(goal, *prepared.kept, record, plan.config, chats(plan))
            warnings += routing.problems() if routing else degenerate(plan, work)
    clear(work, RECORDS)
    return Exported(export.paths, tuple(warnings))


class _Weights:
    """How much columns count, learned while a mixture is made."""

    def __init__(self, plan: Plan, importance: Importance) -> None:
        self._plan, self._importance = plan, importance
        self._found: dict[str, Squares] = {}
        self._tokens: list[int] = []

    def learn(self, inputs: Inputs) -> None:
        """Take what maps have read so far."""
        self._found |= gathered(self._plan, inputs)
        self._importance |= {name: squares.means for name, squares in self._found.items()}
        self._tokens = inputs.tokens

    def write(self, file: Path) -> None:
        """Write it beside the GGUF files, for others, if anything was learned."""
        if self._found:
            write_importance(file, self._found, "the recipe's prompts", self._tokens)
            note_whole(file, file.parent / WORK / f"{file.name}{DONE}", digest(self._importance))
