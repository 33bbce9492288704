"""Merged straight to the Hub: each file of weights goes up while it and the next are made: no disk holds all of it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

from lazymoe.cards.card import render
from lazymoe.files import absolute, readable, write_whole
from lazymoe.hub.streaming import Stream
from lazymoe.hub.uploading import Upload
from lazymoe.making import fingerprint_of, source_on
from lazymoe.merging import carry_out
from lazymoe.output.claims import verify_shard
from lazymoe.output.folder import CARD, RECORD, WORK, open_finished
from lazymoe.planning.plan import SHARD_SIZE, Output
from lazymoe.planning.prepared import Prepared, Where, prepare
from lazymoe.progress import Progress, silent
from lazymoe.publishing import Published, gguf_of, open_repository, publish, show, small_files
from lazymoe.recipe.schema import Recipe
from lazymoe.reporting.report import illustrate

TICK = 0.2  # seconds between two looks at whether a file was sent
LEFT: dict[Path, Future[int]] = {}  # by folder, the last that is done for it, though the merge may have been stopped


def merge_to_hub(
    recipe: Recipe | str | os.PathLike[str],
    repo: str,
    folder: str | os.PathLike[str] | None = None,
    *,
    private: bool = False,
    license: str | None = None,
    template: str | os.PathLike[str] | None = None,
    token: str | None = None,
    seed: int = 0,
    shard_size: int = SHARD_SIZE,
    allow_pickle: bool = False,
    device: str | None = None,
    source: Where = "auto",
    on: str | None = None,
    progress: Progress = silent,
) -> Published:
    """Make a mixture and put it on the Hub file by file, so that no disk needs to hold all of it.

    Each file of weights goes up, where nobody sees it yet, while it and the next are made, and leaves the disk; one
    commit at the end shows them all. If it breaks off, the same call goes on from the last file that was sent.

    Args:
        recipe, seed, shard_size, allow_pickle, device, source, on: as in `lazymoe.merge`.
        repo, private, license, template, token: as in `publish`. The right to write there is looked at first.
        folder: for what is half-made; by default one by the repository's name. Nothing of it stays.
        progress: as in `lazymoe.merge`; and ``upload`` (bytes of weights that were sent).

    Returns:
        Where it is, and how many bytes of weights were sent.

    Raises:
        LazyMoEError: as `lazymoe.merge` and `publish`.
    """
    source = source_on(on, source)
    prepared = prepare(recipe, shard_size=shard_size, allow_pickle=allow_pickle, source=source)
    return carry_to_hub(
        prepared,
        repo,
        absolute(folder or repo.rpartition("/")[2]),
        private=private,
        license=license,
        template=template,
        token=token,
        seed=seed,
        device=device,
        on=on,
        progress=progress,
    )


def carry_to_hub(
    prepared: Prepared,
    repo: str,
    folder: Path,
    *,
    private: bool = False,
    license: str | None = None,
    template: str | os.PathLike[str] | None = None,
    token: str | None = None,
    seed: int = 0,
    device: str | None = None,
    on: str | None = None,
    progress: Progress = silent,
) -> Published:
    """Put the mixture of a prepared recipe on the Hub file by file.

    Args:
        prepared: the recipe.
        folder: for what is half-made, absolute.
        repo, private, license, template, token, seed, device, on, progress: as in `merge_to_hub`.

    Raises:
        LazyMoEError: as `merge_to_hub`.
    """
    card: dict[str, Any] = {"license": license, "template": template}
    fingerprint, upload = fingerprint_of(prepared, seed), open_repository(repo, token, private)
    if upload.read(RECORD).get("fingerprint") == fingerprint:
        return Published(upload.url, 0)
    sender = _Sender(upload, repo, folder / WORK, card, prepared.sound_plan.nbytes, progress)
    carry_out(prepared, folder, seed=seed, device=device, on=on, progress=progress, taker=sender)
    if not sender.finished:  # the folder holds the whole of it, made before
        return publish(folder, repo, private=private, token=token, progress=progress, **card)
    if not any(folder.iterdir()):
        folder.rmdir()
    return Published(upload.url, sender.nbytes)


class _Sender:
    """Sends files of weights, beginning while they are made, one after the other, and deletes them here.

    Attributes:
        nbytes: how many bytes were sent.
        finished: whether the mixture is shown on the Hub.
    """

    def __init__(
        self, upload: Upload, repo: str, work: Path, card: dict[str, Any], total: int, progress: Progress
    ) -> None:
        self._upload, self._repo, self._work, self._card = upload, repo, work, card
        self._total, self._progress = total, progress
        self._sending: Future[int] | None = None
        self._beginning = ""  # the file that goes up before it is complete
        self._stream: Stream | None = None
        self._names: set[str] = set()
        self._there = 0  # bytes of the files that the Hub has
        self.nbytes, self.finished = 0, False
        while work in LEFT and not wait([LEFT[work]], TICK).done:
            self._tell()

    def has(self, name: str) -> bool:
        """Tell whether a file was sent to this repository before, by what is kept of that."""
        self._wait()
        self._names.add(name)
        if name in self._upload.sent:  # by this process: the writing was begun anew
            return True
        kept = readable(self._sent(name))
        if kept.get("repo") != self._repo:
            return False
        self._upload.recall(name, kept["sha256"], kept["bytes"])
        self._there += kept["bytes"]
        return True

    def follow(self, path: Path, size: int) -> None:
        """Send the first bytes of a file that is being made, when the files before it have gone."""
        self._after_the_last(partial(self._begin, path, size))
        self._tell()

    def take(self, path: Path, outputs: Sequence[Output]) -> None:
        """Send a file, or the rest of it, when the one before it has gone."""
        verify_shard(path, outputs)
        self._wait()
        self._tell()  # its rate counts from here
        self._sending = self._after_the_last(partial(self._send, path))

    def elsewhere(self, path: Path, outputs: Sequence[Output]) -> Callable[[], tuple[str, bool]]:
        """Look at a finished file, and give what sends it from another machine that sees it."""
        verify_shard(path, outputs)
        return self._upload.elsewhere(path)

    def took(self, path: Path, said: tuple[str, bool]) -> None:
        """Note a file that was sent from elsewhere, and delete it."""
        sha256, sent = said
        size = path.stat().st_size
        self._upload.recall(path.name, sha256, size)
        self._let_go(path, size)
        self.nbytes += size if sent else 0
        self._tell()

    def finish(self, folder: Path) -> None:
        """Show all that was sent, with the small files of a folder."""
        self._wait()
        LEFT.pop(self._work, None)
        done = open_finished(folder)
        illustrate(folder)
        text = render(done, self._repo, **self._card, gguf=gguf_of(self._upload, done, self._repo))
        show(self._upload, small_files(done) | {CARD: text.encode()}, self._names)
        self.finished = True

    def _after_the_last(self, job: Callable[[], int]) -> Future[int]:
        """Have something done after what is being done, by a thread that nobody waits for in the end."""
        before, done = LEFT.get(self._work), Future[int]()
        LEFT[self._work] = done

        def run() -> None:
            if before:
                wait([before])
            try:
                done.set_result(job())
            except BaseException as e:
                done.set_exception(e)

        Thread(target=run, daemon=True).start()
        return done

    def _begin(self, path: Path, size: int) -> int:
        """Send the first bytes of a file; what fails is left to sending it as a whole, which tells why."""
        try:
            if self._beginning != path.name:
                self._beginning, self._stream = path.name, None
                self._stream = self._upload.stream(path.name)
            if self._stream:
                self._stream.send(path, size)
        except FileNotFoundError:  # it is complete, and has another name: the rest follows
            pass
        except Exception:
            self._stream = None
        return 0

    def _send(self, path: Path) -> int:
        """Send a file, or the rest of it, note it, and delete it here: how many bytes were sent."""
        size, stream = path.stat().st_size, self._stream if self._beginning == path.name else None
        sha256 = None
        if stream:
            with suppress(Exception):
                stream.send(path, size)
                sha256 = stream.finish()
        sent = self._upload.recall(path.name, sha256, size) if sha256 else self._upload.send(path.name, path)
        self._stream = None
        self._let_go(path, size)
        return size if sent else 0

    def _let_go(self, path: Path, size: int) -> None:
        """Note a file that the Hub has, and delete it here."""
        kept = {"repo": self._repo, "sha256": self._upload.sent[path.name], "bytes": size}
        write_whole(self._sent(path.name), json.dumps(kept))
        path.unlink()
        self._there += size

    def _wait(self) -> None:
        while self._sending and not wait([self._sending], TICK).done:
            self._tell()  # a way to stop it
        if self._sending:
            self.nbytes += self._sending.result()
            self._tell()
            self._sending = None

    def _tell(self) -> None:
        stream = self._stream
        self._progress("upload", min(self._there + (stream.nbytes if stream else 0), self._total), self._total)

    def _sent(self, name: str) -> Path:
        return self._work / f"{name}.sent"
