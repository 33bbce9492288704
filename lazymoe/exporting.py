"""A finished mixture for llama.cpp, Ollama and LM Studio: GGUF files of one or several types, from one reading."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lazymoe.architectures.records import LAYER
from lazymoe.checkpoint.tensors import TensorInfo
from lazymoe.errors import LazyMoEError, Problem, error
from lazymoe.files import absolute, shown, unwritten
from lazymoe.output.claims import locked
from lazymoe.output.folder import AGAIN, CONFIG, INDEX, WORK, Finished, is_finished, open_finished, open_weights, reopen
from lazymoe.output.gguf import Export
from lazymoe.output.parts import Slot
from lazymoe.output.quantized import ENDING, MATRIX, describe, is_quantized, open_quantized
from lazymoe.output.writer import Sink, Writer
from lazymoe.planning.disk import by_disk
from lazymoe.planning.plan import Output, Piece
from lazymoe.planning.prepared import Prepared
from lazymoe.progress import Progress, silent
from lazymoe.quantizing.description import doubts
from lazymoe.quantizing.file_types import UNWEIGHTED, file_type
from lazymoe.quantizing.gguf_file import is_whole, note_whole
from lazymoe.quantizing.importance import Importance, digest, read_importance
from lazymoe.quantizing.scheme import make_scheme
from lazymoe.units import gigabytes

LARGEST = 48 * 10**9  # bytes of a file; the Hub takes none over 50 GB


@dataclass(frozen=True)
class Exported:
    """A mixture's GGUF files.

    Attributes:
        files: those of each type, by its name; several where one would be too large.
        warnings: what llama.cpp does otherwise than transformers.
    """

    files: dict[str, list[Path]]
    warnings: tuple[Problem, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Give its fields by name, for programs."""
        return {
            "files": [
                {"type": kind, "path": str(path), "bytes": path.stat().st_size}
                for kind, paths in self.files.items()
                for path in paths
            ],
            "warnings": [problem.to_dict() for problem in self.warnings],
        }

    def __str__(self) -> str:
        return "\n".join(
            f"{shown(path)} ({gigabytes(path.stat().st_size)})" for paths in self.files.values() for path in paths
        )


def to_gguf(
    folder: str | os.PathLike[str],
    types: str | Sequence[str],
    out: str | os.PathLike[str] | None = None,
    *,
    imatrix: str | os.PathLike[str] | bool = True,
    threads: int | None = None,
    largest: int = LARGEST,
    device: str | None = None,
    progress: Progress = silent,
) -> Exported:
    """Write a finished mixture as GGUF, one file for each type. Again after an interruption: it goes on.

    Args:
        folder: the mixture's.
        types: as `llama-quantize` names them, such as ``Q4_K_M``; several with commas between, or in a list.
        out: the folder for the files; by default one beside the mixture's, with ``-GGUF`` after its name.
        imatrix: whether to make an importance matrix of the recipe's prompts where a type gains by one; it is written
            beside the files. Where the recipe's models can't be reached there is none, and a warning. Or a file with
            one, as llama.cpp's `llama-imatrix` makes it.
        threads: how many quantize; by default all that this process may use.
        largest: the most bytes of tensors in a file; what is larger is cut, as llama.cpp cuts it.
        device: where the importance matrix is computed; a CUDA device if there is one by default.
        progress: told of the layers that prompts went through, stage ``imatrix``, and of the bytes of the mixture that
            were read, stage ``quantize``.

    Returns:
        Where the files are.

    Raises:
        OutputError: if the folder isn't a finished mixture, llama.cpp has no such model or tokenizer, or nothing can be
            written.
        RecipeError: if the recipe in the folder can't be read.
        LazyMoEError: if there is no such type, it is no good without an importance matrix, the importance matrix can't
            be read or made, or what quantizes isn't installed.
    """
    kinds, threads = kinds_of(types), threads_of(threads)
    done = open_finished(absolute(folder))
    goal = absolute(out) if out else done.folder.with_name(f"{done.folder.name}{ENDING}")
    check_goal(goal, done.record.fingerprint)
    weights = {} if isinstance(imatrix, bool) else read_importance(absolute(imatrix))
    matrix = _matrix(done, goal) if imatrix is True and gains(kinds) else None
    prepared, warnings = None, doubts(done.host, done.config, done.folder)
    if matrix and not matrix.whole:
        prepared, lacking = _reopened(done)
        if lacking:
            matrix, warnings = None, [*warnings, lacking]
    export = _export(done, _tensors(done), kinds, bool(weights or matrix), weights)
    counts = matrix.made_of if matrix else digest(weights)
    export.lay(done.folder, done.folder.name, goal, largest, done.record.fingerprint + counts)
    export.find()
    _check_room(export, goal)
    try:
        (goal / WORK).mkdir(parents=True, exist_ok=True)
        with locked(goal / WORK), closing(export):
            if matrix and prepared:
                matrix.make(prepared, done.folder, device, progress)
            if matrix:
                weights |= read_importance(matrix.path)
            export.open(threads)
            with closing(Writer([export], progress, "quantize")) as writer:
                write_layers(writer, done.config["num_hidden_layers"])
            describe(goal, done.recipe, done.texts, done.record, done.config, done.chats)
    except OSError as e:
        raise unwritten(e, goal, "writing stopped", "run it again: it goes on from there.") from None
    return Exported(export.paths, tuple(warnings))


def kinds_of(types: str | Sequence[str]) -> list[str]:
    """Read types of files, each once, in capitals.

    Args:
        types: with commas between, or in a list.

    Raises:
        LazyMoEError: if there is no such type, or the gguf package isn't installed.
    """
    names = [name.strip().upper() for name in (types.split(",") if isinstance(types, str) else types)]
    for name in names:
        file_type(name)
    try:
        import gguf  # noqa: F401
    except ImportError:
        what = "writing GGUF takes the gguf package"
        raise error("input.quantizer", "gguf", what, "Install it: pip install 'gguf>=0.17'.") from None
    return list(dict.fromkeys(names))


def gains(kinds: Sequence[str]) -> bool:
    """Tell whether one of these types gains by an importance matrix.

    Args:
        kinds: the types of files.
    """
    return not set(kinds) <= set(UNWEIGHTED)


def threads_of(given: int | None) -> int:
    """Say how many threads quantize.

    Args:
        given: so many; by default all processors that this process may use.

    Raises:
        LazyMoEError: if there can't be so many.
    """
    if given is not None and given < 1:
        raise error("input.usage", "--threads", f"there can't be {given}", "Give 1 or more.")
    return given or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def check_goal(goal: Path, fingerprint: str) -> None:
    """Look whether a mixture's GGUF files can go into a folder: all in it are of one mixture.

    Args:
        goal: the folder, which need not exist.
        fingerprint: of the mixture.

    Raises:
        OutputError: if it is a file, or holds a mixture or another's GGUF files.
    """
    if goal.exists() and not goal.is_dir():
        raise error("output.taken", goal, "this is a file", "Name another output folder.")
    if is_finished(goal):
        raise error("output.taken", goal, "this folder holds a mixture", "Name another folder for its GGUF files.")
    if is_quantized(goal) and open_quantized(goal).mixture.record.fingerprint != fingerprint:
        what = "this folder holds the GGUF files of another mixture"
        raise error("output.taken", goal, what, "Name another output folder, or delete this one.")


def write_layers(writer: Sink[Any], layers: int) -> None:
    """Write what isn't there yet, so that a rerun goes on from the last layer.

    Args:
        writer: that writes it.
        layers: of the mixture.
    """
    for layer in range(layers):
        writer.finish(LAYER.format(layer=layer))
        writer.keep()
    writer.finish()


def sizes(folder: str | os.PathLike[str], types: Sequence[str]) -> dict[str, int]:
    """Count the bytes of a finished mixture's GGUF files, by type.

    Args:
        folder: the mixture's.
        types: as `to_gguf` takes them.

    Raises:
        OutputError: if the folder isn't a finished mixture, or llama.cpp has no such model.
        RecipeError: if the recipe in the folder can't be read.
        LazyMoEError: if the gguf package isn't installed.
    """
    kinds, done = kinds_of(types), open_finished(absolute(folder))
    shapes = {name: tensor.shape for name, tensor in _tensors(done).items()}
    scheme = make_scheme(done.host, done.config, shapes, kinds, True, done.folder)
    return {kind: sum(scheme.sizes(kind).values()) for kind in kinds}


@dataclass(frozen=True)
class _Matrix:
    """The importance matrix that is made of a mixture's prompts: where it is, where that is noted, and of what."""

    path: Path
    record: Path
    made_of: str

    @property
    def whole(self) -> bool:
        return is_whole(self.path, self.record, self.made_of)

    def make(self, prepared: Prepared, folder: Path, device: str | None, progress: Progress) -> None:
        from lazymoe.computing.calibration import calibrate
        from lazymoe.forward.device import pick_device

        calibrate(prepared, folder, self.path, pick_device(device), progress)
        note_whole(self.path, self.record, self.made_of)


def _matrix(done: Finished, goal: Path) -> _Matrix | None:
    """Say where the importance matrix of a mixture is or goes; None if its recipe has no prompts."""
    if not any(expert.positive_prompts for expert in done.recipe.experts):
        return None
    name = f"{done.folder.name}{MATRIX}"
    made_of = hashlib.sha256(f"{done.record.fingerprint}{done.recipe.to_yaml()}".encode()).hexdigest()
    return _Matrix(goal / name, goal / WORK / f"{name}.json", made_of)


def _reopened(done: Finished) -> tuple[Prepared | None, Problem | None]:
    """Prepare a mixture's recipe again, for its prompts and what its models' headers say; or tell why that can't be."""
    try:
        prepared = reopen(done.folder)
        assert prepared.sound_plan
        return prepared, None
    except LazyMoEError as e:
        what = f"no importance matrix was made: that takes the recipe's models and prompts, and {e.problems[0].what}"
        remedy = "Rounding is a little coarser so. Give one with --imatrix FILE, or make the files where these are."
        return None, Problem("output.unweighted", e.problems[0].where, what, remedy)


def _tensors(done: Finished) -> dict[str, TensorInfo]:
    """List a mixture's tensors in the order in which they lie.

    Raises:
        OutputError: if a file of weights isn't as the merge wrote it.
    """
    tensors: dict[str, TensorInfo] = {}
    for path in done.weights:
        tensors |= open_weights(done, path, AGAIN)
    if tensors.keys() != done.weight_map.keys():
        raise error("output.damaged", done.folder, f"its tensors aren't those that its {INDEX} names", AGAIN)
    return tensors


def _export(
    done: Finished, tensors: Mapping[str, TensorInfo], kinds: Sequence[str], weighted: bool, importance: Importance
) -> Export:
    """Work out what goes where.

    Raises:
        OutputError: if llama.cpp has no such model, or the mixture's config.json isn't of its weights.
        LazyMoEError: if a type is no good without importance, or nothing here quantizes.
    """
    outputs = [Output(name, t.dtype, t.shape, (Piece(0, t, 0, t.elements),)) for name, t in tensors.items()]
    shapes = {output.name: output.shape for output in outputs}
    try:
        scheme = make_scheme(done.host, done.config, shapes, kinds, weighted, done.folder)
        return Export(scheme, [Slot(output, 0, 0, done.folder) for output in outputs], importance)
    except (LookupError, TypeError, ValueError, StopIteration) as e:
        what = f"its {CONFIG} doesn't fit its weights ({type(e).__name__}: {e})"
        raise error("output.damaged", done.folder, what, AGAIN) from None


def _check_room(export: Export, goal: Path) -> None:
    """Look whether the disk has room for the files.

    Raises:
        OutputError: if it hasn't.
    """
    [need] = by_disk([(goal, export.room)])
    if need.lacking:
        raise error("output.no-room", goal, str(need), "Free some space, or choose another disk.")
