"""From a recipe to GGUF: each tensor is quantized as soon as it is there, and no checkpoint is written between."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from lazymoe.computing.compute import compute, degenerate
from lazymoe.errors import LazyMoEError, Problem, failure
from lazymoe.exporting import (
    LARGEST,
    STAGE,
    Exported,
    check_goal,
    gains,
    kinds_of,
    threads_of,
    write_layers,
)
from lazymoe.files import absolute, write_whole
from lazymoe.forward.device import pick_device
from lazymoe.forward.inputs import Inputs
from lazymoe.making import (
    chats,
    doubtful,
    fingerprint_of,
    reading,
    record_of,
    routing_of,
    small_files,
    undone,
)
from lazymoe.output.claims import check_sources, claim, clear, locked
from lazymoe.output.folder import RECORD, WORK
from lazymoe.output.gguf import Export
from lazymoe.output.parts import slots_of
from lazymoe.output.quantized import ENDING, MATRIX, describe
from lazymoe.output.writer import Writer
from lazymoe.planning.checking import Check, examine, judge
from lazymoe.planning.plan import Plan
from lazymoe.planning.prepared import Prepared, Where, at_commits, prepare
from lazymoe.planning.ways import Gguf
from lazymoe.progress import Progress, silent
from lazymoe.quantizing.description import doubts
from lazymoe.quantizing.file_types import PLAIN
from lazymoe.quantizing.gguf_file import DONE, RECORDS, note_whole
from lazymoe.quantizing.importance import Importance, Squares, digest, gathered, read_importance, write_importance
from lazymoe.quantizing.scheme import make_scheme
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
    threads: int | None = None,
    largest: int = LARGEST,
    progress: Progress = silent,
) -> Exported:
    """Make the mixture that a recipe describes as GGUF, one file for each type, without a checkpoint between.

    The files are those that `lazymoe.to_gguf` makes of the finished mixture, to the byte. Again after an interruption:
    it goes on from the last layer.

    Args:
        recipe, seed, allow_pickle, device, source: as in `lazymoe.merge`.
        types, imatrix, threads, largest: as in `lazymoe.to_gguf`.
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
        prepare(recipe, allow_pickle=allow_pickle, source=source),
        kinds,
        absolute(out),
        imatrix=known(imatrix),
        seed=seed,
        device=device,
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
        seed, device, threads, largest, progress: as in `merge_to_gguf`.

    Raises:
        LazyMoEError: as `merge_to_gguf`.
    """
    if device:
        pick_device(device)  # before the downloads, if it isn't there
    prepared = weighted(prepared, kinds, imatrix)
    importance = {} if isinstance(imatrix, bool) else imatrix
    export = lay(prepared, kinds, goal, importance, seed, largest)
    found = judge(prepared, goal, to_hub=False, gguf=Gguf(export.sizes_by_type, export.room))
    if found.errors:
        raise failure(found.errors)
    assert found.way  # or there would be an error
    plan, away = prepared.sound_plan, found.way.remote
    warnings = [*found.warnings, *doubtful_gguf(prepared, export, kinds, goal)]
    if export.whole and not (goal / WORK / RECORD).exists():  # nor anything that is still to be done
        return Exported(export.paths, tuple(warnings))

    prepared.fetch(progress, remote=away is not None)
    work = claim(goal, f"{fingerprint_of(prepared, seed)} as GGUF", plan)

    def undo() -> None:
        export.discard()
        clear(work, RECORDS)
        with suppress(OSError):
            goal.rmdir()  # if nothing else is in it

    with locked(work), reading(plan, away, work, progress), undone(goal, undo), closing(export):
        warnings += doubtful(prepared, plan)
        export.open(threads)
        with closing(Writer([export], progress, STAGE)) as writer:
            if plan.weighted:
                weights = _Weights(plan, importance)
                compute(prepared, plan, writer, work, seed, device, progress, weights.learn)
                weights.write(goal / f"{name_of(goal)}{MATRIX}")
            else:
                compute(prepared, plan, writer, work, seed, device, progress)
            write_layers(writer, plan.layers)
        check_sources(goal, plan)
        routing = routing_of(prepared, plan, work)
        if routing:
            routing.write(goal)
        record = record_of(prepared, plan, fingerprint_of(prepared, seed), seed, {})
        describe(goal, at_commits(prepared.recipe, plan.sources), record, plan.config, chats(plan))
        warnings += routing.problems() if routing else degenerate(plan, work)
    clear(work, RECORDS)
    return Exported(export.paths, tuple(warnings))


def check_gguf(
    recipe: Recipe | str | os.PathLike[str],
    types: str | Sequence[str],
    out: str | os.PathLike[str] = ".",
    *,
    imatrix: str | os.PathLike[str] | bool = True,
    allow_pickle: bool = False,
    source: Where = "auto",
    largest: int = LARGEST,
) -> Check:
    """Tell whether a recipe can be made as GGUF and what it takes, before anything large is downloaded.

    Args:
        recipe, types, out, imatrix, allow_pickle, source, largest: as in `merge_to_gguf`.

    Returns:
        What was found, as `lazymoe.check` has it.

    Raises:
        RecipeError: if it isn't a recipe.
        LazyMoEError: if there is no such type, or a package is missing.
    """
    kinds, goal, matrix = kinds_of(types), absolute(out), known(imatrix)
    importance = {} if isinstance(matrix, bool) else matrix
    prepared = weighted(prepare(recipe, allow_pickle=allow_pickle, source=source), kinds, imatrix)
    if prepared.errors:
        return judge(prepared, goal)
    try:
        export = lay(prepared, kinds, goal, importance, 0, largest)
    except LazyMoEError as e:
        found = judge(prepared, goal)
        return replace(found, errors=(*found.errors, *e.problems))
    gguf = Gguf(export.sizes_by_type, export.room, export.seconds(threads_of(None)))
    found = examine(prepared, goal, gguf)
    notes = [
        f"{prepared.recipe.models[number].where}: its feed-forward matrices are copied as they are into {kind}"
        for kind in kinds
        for number, (_, anew) in export.requantized(kind).items()
        if not anew
    ]
    warnings = (*found.warnings, *doubtful_gguf(prepared, export, kinds, goal))
    return replace(found, warnings=warnings, notes=(*found.notes, *notes))


def doubtful_gguf(prepared: Prepared, export: Export, kinds: Sequence[str], goal: Path) -> Iterator[Problem]:
    """Yield what is lost in GGUF files beside what their types say.

    Args:
        prepared, kinds, goal: as in `carry_to_gguf`.
        export: the files.
    """
    plan = prepared.sound_plan
    yield from doubts(plan.host, plan.config, goal)
    for kind in kinds:
        for number, (taken, anew) in export.requantized(kind).items():
            if anew and kind not in PLAIN:
                what = (
                    f"{anew} of {taken} matrices that are taken of its GGUF file are quantized a second time for {kind}"
                )
                remedy = f"Name its {kind} file and leave it unchanged, or name the model that it was made from."
                yield Problem("source.requantized", prepared.recipe.models[number].where, what, remedy)


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


def weighted(prepared: Prepared, kinds: Sequence[str], imatrix: object) -> Prepared:
    """Have it found out how much columns count, if that is wanted, a type gains by it and there are prompts.

    Args:
        prepared, kinds, imatrix: as in `carry_to_gguf`.
    """
    prompted = any(expert.positive for expert in prepared.prompts.experts)
    if prepared.plan and imatrix is True and prompted and gains(kinds):
        return replace(prepared, plan=replace(prepared.plan, weighted=True))
    return prepared


def known(imatrix: str | os.PathLike[str] | bool) -> Importance | bool:
    """Read an importance matrix, if it is a file.

    Args:
        imatrix: as in `merge_to_gguf`.

    Raises:
        LazyMoEError: if it can't be read as one.
    """
    return imatrix if isinstance(imatrix, bool) else read_importance(absolute(imatrix))


def name_of(goal: Path) -> str:
    """Say what GGUF files in a folder are called.

    Args:
        goal: the folder.
    """
    return goal.name.removesuffix(ENDING)


def lay(
    prepared: Prepared, kinds: Sequence[str], goal: Path, imatrix: Importance, seed: int, largest: int = LARGEST
) -> Export:
    """Work out what GGUF files of a prepared recipe hold. Nothing is written.

    Args:
        prepared, kinds, goal, imatrix, seed, largest: as in `carry_to_gguf`.

    Raises:
        LazyMoEError: if the recipe can't work, llama.cpp has no such model or tokenizer, a type is no good without an
            importance matrix, the folder is taken by something else, or nothing here quantizes.
    """
    plan = prepared.sound_plan
    check_goal(goal, fingerprint_of(prepared, seed))
    shapes = {output.name: output.shape for output in plan.outputs}
    scheme = make_scheme(plan.host, plan.config, shapes, kinds, bool(imatrix) or plan.weighted, goal)
    export = Export(scheme, slots_of(plan.outputs, plan.sources, seed), imatrix)
    counts = "prompts" if plan.weighted else digest(imatrix)
    made_of = json.dumps([fingerprint_of(prepared, seed), [s.stamps for s in plan.sources], counts])
    name = name_of(goal)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / name
        for file, content in small_files(prepared, plan):
            write_whole(folder / file, content)
        try:
            export.lay(folder, name, goal, largest, hashlib.sha256(made_of.encode()).hexdigest())
        except LazyMoEError as e:  # which names a folder that nobody knows
            raise failure([replace(p, where=str(plan.sources[0].reference)) for p in e.problems]) from None
    return export
