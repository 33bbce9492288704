"""From a recipe to GGUF files on the Hub, with no checkpoint between: made in a folder, shown there, then let go."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from lazymoe.checking_gguf import known, lay, weighted
from lazymoe.exporting import LARGEST, gains, kinds_of, threads_of
from lazymoe.files import absolute, write_whole
from lazymoe.hub.uploading import Upload
from lazymoe.making import fingerprint_of, source_on
from lazymoe.merging_to_gguf import carry_to_gguf
from lazymoe.output.claims import clear
from lazymoe.output.folder import RECIPE, REPORT, WORK
from lazymoe.output.quantized import GGUF, MATRIX, QUALITY, is_quantized, open_quantized
from lazymoe.planning.prepared import Prepared, Where, prepare
from lazymoe.progress import Progress, silent
from lazymoe.publishing import Published, open_repository, publish
from lazymoe.quantizing.importance import Importance
from lazymoe.recipe.beside import files_beside
from lazymoe.recipe.schema import Recipe

PASSING = "passing"  # a file among what is half-made: the folder's GGUF files are for the Hub alone


def merge_gguf_to_hub(
    recipe: Recipe | str | os.PathLike[str],
    types: str | Sequence[str],
    repo: str,
    folder: str | os.PathLike[str] | None = None,
    *,
    private: bool = False,
    license: str | None = None,
    template: str | os.PathLike[str] | None = None,
    token: str | None = None,
    imatrix: str | os.PathLike[str] | bool = True,
    seed: int = 0,
    allow_pickle: bool = False,
    device: str | None = None,
    source: Where = "auto",
    on: str | None = None,
    threads: int | None = None,
    largest: int = LARGEST,
    progress: Progress = silent,
) -> Published:
    """Make the mixture that a recipe describes as GGUF, and put that on the Hub with its card.

    A GGUF file can be sent when it is whole; one commit shows all of them. If it breaks off, the same call goes on.

    Args:
        recipe, types, imatrix, seed, allow_pickle, device, source, on, threads, largest: as in `merge_to_gguf`.
        repo, private, license, template, token: as in `publish`. The right to write there is looked at first.
        folder: for the files until they are there; by default one by the repository's name. Nothing of it stays, unless
            it held GGUF files before.
        progress: as in `merge_to_gguf`; and ``upload`` (bytes of weights).

    Returns:
        Where it is, and how many bytes of weights were sent.

    Raises:
        LazyMoEError: as `merge_to_gguf` and `publish`.
    """
    kinds, threads = kinds_of(types), threads_of(threads)
    return carry_gguf_to_hub(
        prepare(recipe, allow_pickle=allow_pickle, source=source_on(on, source)),
        kinds,
        repo,
        absolute(folder or repo.rpartition("/")[2]),
        private=private,
        license=license,
        template=template,
        token=token,
        imatrix=known(imatrix),
        seed=seed,
        device=device,
        on=on,
        threads=threads,
        largest=largest,
        progress=progress,
    )


def carry_gguf_to_hub(
    prepared: Prepared,
    kinds: Sequence[str],
    repo: str,
    goal: Path,
    *,
    private: bool = False,
    license: str | None = None,
    template: str | os.PathLike[str] | None = None,
    token: str | None = None,
    imatrix: Importance | bool = True,
    seed: int = 0,
    device: str | None = None,
    on: str | None = None,
    threads: int = 1,
    largest: int = LARGEST,
    progress: Progress = silent,
) -> Published:
    """Put the mixture of a prepared recipe on the Hub as GGUF.

    Args:
        prepared: the recipe.
        kinds, goal, imatrix, seed, device, on, threads, largest: as in `carry_to_gguf`.
        repo, private, license, template, token, progress: as in `merge_gguf_to_hub`.

    Raises:
        LazyMoEError: as `merge_gguf_to_hub`.
    """
    asked = weighted(prepared, kinds, imatrix)
    lay(asked, kinds, goal, {} if isinstance(imatrix, bool) else imatrix, seed, largest)  # before a repository is made
    upload, sent = open_repository(repo, token, private, GGUF), 0
    if isinstance(imatrix, dict) or not is_there(upload, asked, kinds, fingerprint_of(prepared, seed)):
        passing = not is_quantized(goal) or (goal / WORK / PASSING).exists()
        carry_to_gguf(
            prepared,
            kinds,
            goal,
            imatrix=imatrix,
            seed=seed,
            device=device,
            on=on,
            threads=threads,
            largest=largest,
            progress=progress,
        )
        if passing:
            write_whole(goal / WORK / PASSING, repo)
        sent = publish(
            goal, repo, private=private, license=license, template=template, token=token, progress=progress
        ).sent
    if (goal / WORK / PASSING).exists():
        _let_go(goal)
    return Published(upload.url, sent)


def is_there(upload: Upload, asked: Prepared, kinds: Sequence[str], fingerprint: str) -> bool:
    """Tell whether a repository has a mixture's files of all these types, made with a matrix of its prompts or with
    none, as it is asked.

    Args:
        upload: to it.
        asked: the recipe, as `weighted` gives it.
        kinds: the types.
        fingerprint: of the mixture.
    """
    about = upload.read(GGUF)
    record, files = about.get("record"), about.get("files")
    if not isinstance(record, dict) or not isinstance(files, dict):
        return False
    has_matrix = any(name.endswith(MATRIX) for name in upload.remote)
    same = not gains(kinds) or has_matrix == asked.sound_plan.weighted
    return same and record.get("fingerprint") == fingerprint and set(kinds) <= files.keys()


def _let_go(goal: Path) -> None:
    """Delete what is on the Hub now, and the folder, if nothing else is in it."""
    if is_quantized(goal):
        found = open_quantized(goal)
        for path in (*(p for files in found.files.values() for p in files), *filter(None, [found.matrix])):
            path.unlink()
        for name in (REPORT, QUALITY, RECIPE, GGUF, *files_beside(found.mixture.recipe)):
            (goal / name).unlink(missing_ok=True)
    clear(goal / WORK)
    with suppress(OSError):
        goal.rmdir()
