"""Finding a model or a data set on the Hub. `ranges` reads parts of its files, `downloading` brings whole ones."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Any

from huggingface_hub import HfApi, HfFileSystem, snapshot_download
from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]  # mypy doesn't follow the export

from lazymoe.errors import HubError
from lazymoe.hub.client import About, ask, explained, is_unreachable, token, without_bars
from lazymoe.hub.ranges import HASH, Ranges

LOST = ("hub.unreachable", "hub.busy", "hub.not-found", "hub.gated")  # for which a copy in the cache will do


@dataclass(frozen=True)
class Repository:
    """A model on the Hub, found.

    Attributes:
        name: its Hub id.
        folder: of the Hub's cache, where its files are or will be.
        commit: what is read of it.
        sizes: of each of its files, in bytes.
        hashes: of its files as the Hub knows them: SHA-256 of a large one, git's SHA-1 of a small one.
        ranges: what reads parts of its files without downloading them; None if it was found in the cache alone.
    """

    name: str
    folder: Path
    commit: str
    sizes: dict[str, int]
    hashes: dict[str, str]
    ranges: Ranges | None


def find_model(name: str, revision: str | None, where: str, patterns: Sequence[str]) -> Repository:
    """Find a model, and bring its small files.

    Args:
        name: its Hub id.
        revision: a branch, tag or commit; the main branch by default.
        where: how messages name the place it was asked for.
        patterns: names of the small files.

    Raises:
        HubError: if there is no such model, no permission, or no network while it isn't in the cache.
    """
    about = About(where, "model", name, revision)
    try:
        return _find(about, patterns)
    except HubError as e:
        cached = _cached(name, revision) if e.problems[0].code in LOST else None
        if cached is None or set(cached.sizes) <= set(filter_repo_objects(cached.sizes, allow_patterns=list(patterns))):
            raise  # without weights it is of no use
        return cached


def _find(about: About, patterns: Sequence[str]) -> Repository:
    """Find a model on the Hub, and bring its small files."""
    name, revision = about.name, about.revision

    def call() -> Any:
        try:
            return HfApi(token=token()).model_info(name, revision=revision, files_metadata=True)
        except Exception as e:
            if is_unreachable(e) and _cached(name, revision):
                raise explained(about, e) from None  # at once: a person without a network need not wait
            raise

    info = ask(about, call)
    # by the name that was asked for, not by commit: only so the cache finds it again without a network
    with without_bars():
        fetch = partial(snapshot_download, name, revision=revision, allow_patterns=list(patterns), token=token())
        folder = Path(ask(about, fetch))
    if folder.name != info.sha:  # there was a commit between the two
        pinned = replace(about, revision=folder.name)
        info = ask(pinned, lambda: HfApi(token=token()).model_info(name, revision=folder.name, files_metadata=True))
    commit, files = folder.name, info.siblings or []
    hashes = {f.rfilename: f.lfs.sha256 if f.lfs else f.blob_id for f in files if f.lfs or f.blob_id}
    sizes = {f.rfilename: f.size or 0 for f in files}
    ranges = Ranges(replace(about, revision=commit), commit, sizes, hashes)
    return Repository(name, folder, commit, sizes, hashes, ranges)


def _cached(name: str, revision: str | None) -> Repository | None:
    """Find a model in the cache alone; None if it isn't there."""
    try:
        folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
    except Exception:  # each client version has its own
        return None
    files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    hashes = {file: Path(os.readlink(p)).name for file, p in files.items() if p.is_symlink()}
    known = {file: name for file, name in hashes.items() if HASH.fullmatch(name)}
    return Repository(name, folder, folder.name, {f: p.stat().st_size for f, p in files.items()}, known, None)


def open_dataset(name: str, revision: str | None, where: str) -> tuple[str, list[str]]:
    """Find a data set: its commit and the names of its files.

    Args:
        name: its Hub id.
        revision: a branch, tag or commit; the main branch by default.
        where: how messages name the place it was asked for.

    Raises:
        HubError: if there is no such data set, no permission, or no network.
    """
    about = About(where, "data set", name, revision)
    info = ask(about, lambda: HfApi(token=token()).dataset_info(name, revision=revision))
    return str(info.sha), [s.rfilename for s in info.siblings or []]


def open_dataset_file(name: str, commit: str, file: str, where: str) -> IO[bytes]:
    """Open a file of a data set for reading; only the ranges that are read are downloaded.

    Args:
        name: the data set's Hub id.
        commit: of the data set.
        file: its name.
        where: how messages name the place it was asked for.

    Raises:
        HubError: if the Hub can't be reached, or refuses.
    """
    about = About(where, "data set", name, commit)
    opened: IO[bytes] = ask(about, lambda: HfFileSystem(token=token()).open(f"datasets/{name}@{commit}/{file}", "rb"))
    return opened
