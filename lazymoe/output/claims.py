"""Whose a folder is: claimed by a merge, finished by it, still whole, and of sources that are still the same.

What is half-made lies in ``.lazymoe`` beside a record of the merge, so that another one doesn't take it for its own.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lazymoe.checkpoint.safetensors import open_file
from lazymoe.errors import OutputError, error
from lazymoe.files import SEAL, is_sealed, readable, shown, write_whole
from lazymoe.output.folder import (
    CONFIG,
    INDEX,
    RECIPE,
    RECORD,
    SHARD,
    WORK,
    Record,
    is_unchanged,
    read_record,
)
from lazymoe.planning.plan import Output, Plan

LOCK = "lock"


def is_done(folder: Path, fingerprint: str, plan: Plan) -> bool:
    """Tell whether this very merge has been finished here, and is still whole: what isn't is made anew.

    Raises:
        SourceError: if a source was changed since.
        OutputError: if the folder holds anything but this merge, finished or not, or a small file in it was changed.
    """
    if folder.exists() and not folder.is_dir():
        raise error("output.taken", folder, "this is a file", "Name another output folder.")
    names = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
    if names <= {WORK} and not (folder / WORK / RECORD).exists():
        return False
    if (folder / WORK / RECORD).exists():
        if readable(folder / WORK / RECORD).get("fingerprint") == fingerprint:
            return False
    elif (folder / RECORD).exists():
        if readable(folder / RECORD).get("fingerprint") == fingerprint:
            record = read_record(folder)
            _compare([source.stamps for source in record.sources], plan, "this mixture was made of it")
            return _is_whole(folder, plan, record)
    elif not any(SHARD.fullmatch(name) for name in names):
        what = "this folder isn't empty, and what is in it isn't this merge"
        raise error("output.taken", folder, what, "Name another output folder.")
    remedy = "Name another output folder, or delete this one."
    raise error("output.taken", folder, "this folder holds another merge", remedy)


def _is_whole(folder: Path, plan: Plan, record: Record) -> bool:
    """Tell whether a finished folder's files are those that were written; else it is half-made from now on.

    Raises:
        OutputError: if a small file isn't, which may be the user's own doing.
    """
    shards = {name for name, _ in plan.shards}
    for name in set(record.files) - shards:
        if (folder / name).exists() and not is_sealed(folder / name, record.files[name]):
            remedy = "Delete it to have it made anew; if you changed it, the mixture is finished as it is."
            raise error("output.edited", folder / name, "this isn't what the merge wrote", remedy)
    there = all((folder / name).is_file() for name in (CONFIG, INDEX, RECIPE, *record.files))
    sound = [name for name, outputs in plan.shards if _is_sound(folder / name, outputs, record)]
    if there and len(sound) == len(shards):
        return True
    _reopen(folder, plan, record, sound)
    return False


def _is_sound(file: Path, outputs: Sequence[Output], record: Record) -> bool:
    """Tell whether a file of weights is the one that was written."""
    try:
        verify_shard(file, outputs)
    except OutputError:
        return False
    return is_unchanged(file, record.files.get(file.name))


def _reopen(folder: Path, plan: Plan, record: Record, sound: Sequence[str]) -> None:
    """Make a finished folder, in which something is damaged, one that is half-made: sound files of weights stay."""
    _begin(folder, record.fingerprint, plan)
    for name in sound:
        if name in record.files:
            write_whole(folder / WORK / f"{name}{SEAL}", record.files[name])
    for name in (CONFIG, RECORD):
        (folder / name).unlink(missing_ok=True)


def _compare(known: list[Any], plan: Plan, since: str) -> None:
    """Compare the sources' files with what was known of them.

    Args:
        known: the stamps of each source, as `Source.stamps` gave them.
        plan: whose sources they are.
        since: when they were known, for the message.

    Raises:
        SourceError: if one was changed.
    """
    for before, source in zip(known, plan.sources, strict=False):
        stamps = source.stamps
        for file, stamp in before.items() if isinstance(before, dict) else ():
            if stamps.get(file) != stamp:
                what = f"{file} of {source.reference} has changed since {since}"
                remedy = "Delete that folder and start anew, or name another output folder."
                raise error("source.changed", source.folder, what, remedy)


def check_sources(folder: Path, plan: Plan) -> None:
    """Compare the sources' files with what they were when the merge into a folder began.

    Raises:
        SourceError: if one was changed.
    """
    known = readable(folder / WORK / RECORD).get("stamps")
    _compare(known if isinstance(known, list) else [], plan, f"the merge into {shown(folder)} began")


def claim(folder: Path, fingerprint: str, plan: Plan) -> Path:
    """Mark the folder as this merge's, and give the folder for what is half-made.

    Raises:
        SourceError: if a source was changed since the merge began here.
        OutputError: if another merge began here, or nothing can be written.
    """
    work = folder / WORK
    try:
        if (work / RECORD).exists():
            if readable(work / RECORD).get("fingerprint") != fingerprint:
                remedy = f"Name another output folder, or delete {work.name} in this one."
                raise error("output.taken", folder, "another merge was interrupted in this folder", remedy)
            check_sources(folder, plan)
        else:
            _begin(folder, fingerprint, plan)
    except OSError as e:
        what = f"this folder can't be written: {e.strerror}"
        raise error("output.unwritable", folder, what, "Name another output folder.") from None
    return work


def _begin(folder: Path, fingerprint: str, plan: Plan) -> None:
    stamps = [source.stamps for source in plan.sources]
    write_whole(folder / WORK / RECORD, json.dumps({"fingerprint": fingerprint, "stamps": stamps}))


@contextmanager
def locked(work: Path) -> Iterator[None]:
    """Hold a folder of half-made files for this process alone. A process that is killed lets go of it.

    Raises:
        OutputError: if another process has it.
    """
    lock = FileLock(work / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        what = "another process is at work in this folder"
        raise error("output.busy", work.parent, what, "Wait for it, or stop it first.") from None
    except (OSError, NotImplementedError):  # a file system without locks, such as some network drives
        yield
        return
    try:
        yield
    finally:
        lock.release()


def verify(plan: Plan, folder: Path) -> None:
    """Read the shards back and hold them against the plan, before anything makes the folder a model.

    Raises:
        OutputError: if they aren't what was planned.
    """
    for name, outputs in plan.shards:
        verify_shard(folder / name, outputs)


def verify_shard(file: Path, outputs: Sequence[Output]) -> None:
    """Hold the header and the size of one file against the plan.

    Args:
        file: of weights.
        outputs: the tensors that it should hold.

    Raises:
        OutputError: if it can't be read, or isn't what was planned.
    """
    try:
        found = {t.name: (t.dtype, t.shape) for t in open_file(file).values()}
    except (OSError, ValueError) as e:
        what = f"what was written can't be read back ({e})"
        raise error("output.damaged", file, what, "Look at this disk, and merge again.") from None
    if found != {o.name: (o.dtype, o.shape) for o in outputs}:
        what = "what was written isn't what was planned"
        raise error("output.damaged", file, what, "Please report this as a bug of LazyMoE.")


def clear(work: Path, but: str = "") -> None:
    """Remove what is half-made. The folder may be a link to another disk, or a mount point: then it stays, empty.

    Args:
        work: the folder of it.
        but: a pattern of names of files that stay.
    """
    (work / RECORD).unlink(missing_ok=True)  # first: without it nothing else there counts
    for path in work.iterdir():
        if but and path.match(but):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()
    with suppress(OSError):
        work.rmdir()


def discard(plan: Plan, folder: Path) -> None:
    """Remove what this merge wrote, and nothing else."""
    clear(folder / WORK)
    for name, _ in plan.shards:
        (folder / name).unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()
