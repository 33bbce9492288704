"""Finding a model or a data set on the Hub, reading ranges of its files, downloading what a merge needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from huggingface_hub import HfApi, HfFileSystem, snapshot_download

from lazymoe.hub.client import About, ask, is_unreachable


@dataclass(frozen=True)
class Repository:
    """A model on the Hub, found.

    Attributes:
        folder: of the Hub's cache, where its files are or will be.
        commit: what is read of it.
        sizes: of each of its files, in bytes.
        read: ``read(file, offset, n)`` gives n bytes of a file without downloading it.
    """

    folder: Path
    commit: str
    sizes: dict[str, int]
    read: Callable[[str, int, int], bytes]


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
    info = _model_info(about)
    if info is None:  # no network, but the cache has it
        folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
        sizes = {p.relative_to(folder).as_posix(): p.stat().st_size for p in folder.rglob("*") if p.is_file()}
        return Repository(folder, folder.name, sizes, _unreachable)
    # by the name that was asked for, not by commit: only so the cache finds it again without a network
    folder = Path(ask(about, lambda: snapshot_download(name, revision=revision, allow_patterns=list(patterns))))
    if folder.name != info.sha:  # there was a commit between the two
        pinned = replace(about, revision=folder.name)
        info = ask(pinned, lambda: HfApi().model_info(name, revision=folder.name, files_metadata=True))
    commit = folder.name

    def read(file: str, offset: int, length: int) -> bytes:
        path = f"{name}@{commit}/{file}"
        return bytes(ask(about, lambda: HfFileSystem().cat_file(path, offset, offset + length)))

    return Repository(folder, commit, {s.rfilename: s.size or 0 for s in info.siblings or []}, read)


def _model_info(about: About) -> Any:
    """Ask the Hub what it says of a model; None where it can't be reached and the cache has the model."""

    def call() -> Any:
        try:
            return HfApi().model_info(about.name, revision=about.revision, files_metadata=True)
        except Exception as e:
            if is_unreachable(e) and _is_cached(about):
                return None
            raise

    return ask(about, call)


def _is_cached(about: About) -> bool:
    try:
        snapshot_download(about.name, revision=about.revision, local_files_only=True)
    except Exception:  # each client version has its own
        return False
    return True


def download(name: str, commit: str | None, files: Sequence[str], where: str) -> None:
    """Bring files of a model into the Hub's cache, going on where an earlier download stopped.

    Args:
        name: its Hub id.
        commit: of the model.
        files: their names.
        where: how messages name the place it was asked for.

    Raises:
        HubError: if the Hub can't be reached, or refuses.
    """
    about = About(where, "model", name, commit)
    ask(about, lambda: snapshot_download(name, revision=commit, allow_patterns=list(files)))


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
    info = ask(about, lambda: HfApi().dataset_info(name, revision=revision))
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
    opened: IO[bytes] = ask(about, lambda: HfFileSystem().open(f"datasets/{name}@{commit}/{file}", "rb"))
    return opened


def _unreachable(file: str, offset: int, length: int) -> bytes:
    raise ValueError("it isn't in the cache and the Hub can't be reached")
