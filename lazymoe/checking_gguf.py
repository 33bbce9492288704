"""What GGUF files of a recipe hold and what they take, laid out and checked before anything is made."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from lazymoe.errors import LazyMoEError, Problem, failure
from lazymoe.exporting import LARGEST, check_goal, gains, kinds_of, threads_of
from lazymoe.files import absolute, write_whole
from lazymoe.making import fingerprint_of, small_files
from lazymoe.output.gguf import Export
from lazymoe.output.parts import slots_of
from lazymoe.output.quantized import ENDING
from lazymoe.planning.checking import Check, examine, judge
from lazymoe.planning.prepared import Prepared, Where, prepare
from lazymoe.planning.ways import Gguf
from lazymoe.quantizing.description import doubts
from lazymoe.quantizing.file_types import PLAIN
from lazymoe.quantizing.importance import Importance, digest, read_importance
from lazymoe.quantizing.scheme import make_scheme
from lazymoe.recipe.schema import Recipe


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
        recipe, types, out, imatrix, allow_pickle, source, largest: as in `lazymoe.merge_to_gguf`.

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
        export.find()
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


def weighted(prepared: Prepared, kinds: Sequence[str], imatrix: object) -> Prepared:
    """Have it found out how much columns count, if that is wanted, a type gains by it and there are prompts.

    Args:
        prepared, kinds, imatrix: as in `merging_to_gguf.carry_to_gguf`.
    """
    prompted = any(expert.positive for expert in prepared.prompts.experts)
    if prepared.plan and imatrix is True and prompted and gains(kinds):
        return replace(prepared, plan=replace(prepared.plan, weighted=True))
    return prepared


def known(imatrix: str | os.PathLike[str] | bool) -> Importance | bool:
    """Read an importance matrix, if it is a file.

    Args:
        imatrix: as in `lazymoe.merge_to_gguf`.

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
        prepared, kinds, goal, imatrix, seed, largest: as in `merging_to_gguf.carry_to_gguf`.

    Raises:
        LazyMoEError: if the recipe can't work, llama.cpp has no such model or tokenizer, a type is no good without an
            importance matrix, the folder is taken by something else, or nothing here quantizes.
    """
    plan = prepared.sound_plan
    check_goal(goal, fingerprint_of(prepared, seed))
    shapes = {output.name: output.shape for output in plan.outputs}
    scheme = make_scheme(plan.host, plan.config, shapes, kinds, bool(imatrix) or plan.weighted, goal)
    export = Export(scheme, slots_of(plan.outputs, plan.references, seed), imatrix)
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
