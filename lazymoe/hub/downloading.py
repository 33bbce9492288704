"""Bringing files of models into the Hub's cache: several at once, each on from where it stopped, none believed unseen.

A file is held against the hash that the Hub has for it before it gets its name in the cache, and so is one that is
there already, once. The client itself begins a file anew after a kill and looks at no hash.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from threading import Event
from typing import NamedTuple, NoReturn

from huggingface_hub import hf_hub_download, hf_hub_url
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # mypy doesn't follow how they are exported
    WeakFileLock,
    build_hf_headers,
)

from lazymoe.errors import HubError, LazyMoEError, error
from lazymoe.files import BLOCK, cache, settle, stamp, write_whole
from lazymoe.hub.client import About, ask, token, without_bars
from lazymoe.hub.reading import Repository
from lazymoe.progress import Progress, silent

AT_ONCE = 8
TICK = 0.2  # seconds between two looks at how far the downloads are


class Wanted(NamedTuple):
    """A file to bring: the model that has it, its name, and how messages name the place it was asked for."""

    model: Repository
    file: str
    where: str

    @property
    def path(self) -> Path:
        return self.model.folder / self.file

    @property
    def size(self) -> int:
        return self.model.sizes[self.file]

    @property
    def blob(self) -> Path:
        """Where the cache keeps its content, by its hash; what a snapshot has is a link to that."""
        return self.model.folder.parent.parent / "blobs" / self.model.hashes[self.file]

    @property
    def part(self) -> Path:
        """Where it grows, by the name that older clients give it and go on from."""
        return self.blob.with_name(f"{self.blob.name}.incomplete")

    @property
    def arrived(self) -> int:
        """How many of its bytes have arrived, while it isn't whole."""
        with suppress(OSError, KeyError):
            return min(self.part.stat().st_size, self.size)
        return 0


def download(wanted: Sequence[Wanted], progress: Progress = silent) -> None:
    """Bring files into the cache, and see to it that those that are there are the Hub's.

    Args:
        wanted: the files.
        progress: told of the bytes that are there, stage ``download``; what it raises stops the downloads.

    Raises:
        HubError: if the Hub can't be reached or refuses, the cache can't be written, or a file keeps arriving damaged.
    """
    total, stopped = sum(w.size for w in wanted), Event()
    pool = ThreadPoolExecutor(AT_ONCE)
    with without_bars():
        running = {pool.submit(_bring, w, stopped): w for w in wanted if not _is_known(w)}
        try:
            while running:
                done, _ = wait(running, TICK, FIRST_EXCEPTION)
                for future in done:
                    future.result()
                    del running[future]
                progress("download", total - sum(w.size - w.arrived for w in running.values()), total)
        finally:
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)  # a stalled one must not hold up whoever stops it


def _bring(wanted: Wanted, stopped: Event) -> None:
    """Bring one file, unless it is there and whole."""
    if wanted.path.exists() and _is_whole(wanted, wanted.path):
        _know(wanted)
        return
    about = About(wanted.where, "model", wanted.model.name, wanted.model.commit)
    try:
        ask(about, lambda: _receive(wanted, stopped))
    except HubError as e:
        raise _told(wanted, e) from None
    _know(wanted)


def _told(wanted: Wanted, e: HubError) -> LazyMoEError:
    """Say what is true of a file that a request failed for: it may be here in part, or damaged."""
    file, name, code = wanted.file, wanted.model.name, e.problems[0].code
    if wanted.path.exists() and code != "hub.damaged":
        what = f"{file} of '{name}' is damaged in the cache, and can't be brought anew"
        return error("hub.damaged", wanted.where, what, f"Delete {wanted.blob}.")
    if wanted.arrived and code == "hub.unreachable":
        what = f"the download of {file} of '{name}' keeps breaking off"
        return error("hub.unreachable", wanted.where, what, "Run it again: it goes on from here.")
    return e


def _receive(wanted: Wanted, stopped: Event) -> None:
    """Put a file's content into the cache by its hash, and let the client link it from the snapshot."""
    name, revision = wanted.model.name, wanted.model.commit
    if wanted.file in wanted.model.hashes:
        store = wanted.blob.parent.parent  # of the model
        lock = store.parent / ".locks" / store.name / f"{wanted.blob.name}.lock"
        for folder in (lock.parent, wanted.blob.parent):
            folder.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(lock):
            if wanted.path.exists() or not wanted.blob.exists():  # else another process was quicker
                _append(wanted, stopped) or _append(wanted, stopped) or _give_up(wanted)
    hf_hub_download(name, wanted.file, revision=revision, token=token())


def _append(wanted: Wanted, stopped: Event) -> bool:
    """Bring what is missing of a file; give whether it is whole then, by its hash, and has its name."""
    with _Stoppable(wanted.part, stopped) as f:
        if f.tell() > wanted.size:
            f.seek(f.truncate(0))
        url = hf_hub_url(wanted.model.name, wanted.file, revision=wanted.model.commit)
        http_get(url, f, resume_size=f.tell(), headers=build_hf_headers(token=token()), expected_size=wanted.size)
    if not _is_whole(wanted, wanted.part):
        wanted.part.unlink()
        return False
    settle(wanted.part, wanted.path.resolve() if wanted.path.exists() else wanted.blob)
    return True


def _give_up(wanted: Wanted) -> NoReturn:
    what = f"{wanted.file} of '{wanted.model.name}' arrives, twice now, as something else than the Hub has"
    raise error("hub.damaged", wanted.where, what, "Try again later, or over another network.")


class _Stoppable(io.BufferedWriter):
    """A file that is appended to until somebody stops it."""

    def __init__(self, path: Path, stopped: Event) -> None:
        super().__init__(io.FileIO(path, "a"))
        self._stopped = stopped

    def write(self, data: bytes) -> int:  # type: ignore[override]
        if self._stopped.is_set():
            raise KeyboardInterrupt
        return super().write(data)


def _is_whole(wanted: Wanted, path: Path) -> bool:
    """Tell whether a file is what the Hub has: SHA-256 of a large one, git's SHA-1 of a small one."""
    known, size = wanted.model.hashes.get(wanted.file), path.stat().st_size
    if size != wanted.size or known is None:
        return size == wanted.size
    digest = hashlib.sha256() if len(known) == 64 else hashlib.sha1(b"blob %d\0" % size)
    with open(path, "rb", buffering=0) as f:
        while block := f.read(BLOCK):
            digest.update(block)
    return digest.hexdigest() == known


def _is_known(wanted: Wanted) -> bool:
    """Tell whether this very file was found to be whole before."""
    with suppress(OSError):
        return _note(wanted).read_text() == repr(stamp(wanted.path))
    return False


def _know(wanted: Wanted) -> None:
    with suppress(OSError):  # then it is looked at again
        write_whole(_note(wanted), repr(stamp(wanted.path)))


def _note(wanted: Wanted) -> Path:
    place = hashlib.sha256(str(wanted.path).encode()).hexdigest()
    return cache() / "whole" / place
