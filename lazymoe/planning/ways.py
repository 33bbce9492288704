"""The ways in which a mixture can be made, side by side: what each takes of this machine, and whether it fits.

Models on the Hub are downloaded or read where they are; the mixture stays in its folder or goes straight to the Hub.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from lazymoe.planning.disk import Need, by_disk, held, written
from lazymoe.planning.memory import QUANTIZING, RANGES, kept_states, merge_memory
from lazymoe.planning.plan import Plan
from lazymoe.planning.prepared import Prepared, Where
from lazymoe.planning.remote import Remote, remote
from lazymoe.units import gigabytes, minutes

HOW = {  # is remote, is to the Hub: how it can be merged, and what to do to merge it so
    (False, False): ("", "download the models"),
    (True, False): (" while its models stay on the Hub", "leave the models where they are"),
    (False, True): (" straight to the Hub", "merge straight to the Hub"),
    (True, True): (
        " straight to the Hub, while its models stay there",
        "merge straight to the Hub and leave the models there",
    ),
}


class Gguf(NamedTuple):
    """GGUF files that are made in place of a checkpoint.

    Attributes:
        files: bytes of the files of each type.
        room: bytes of disk that they still take.
        seconds: that it takes here to quantize what is lacking, about; None if that wasn't estimated.
    """

    files: Mapping[str, int]
    room: int
    seconds: float | None = None

    @property
    def nbytes(self) -> int:
        return sum(self.files.values())


@dataclass(frozen=True)
class Way:
    """One way; all sizes in bytes.

    Attributes:
        to_hub: whether the mixture goes straight to the Hub, file by file; else it stays in its folder.
        download: what is downloaded into the cache.
        remote: what is read of weights that stay on the Hub; None if all are downloaded, or here.
        upload: what is sent, if the Hub has none of it.
        needs: the most it takes at a time of each disk, beside what is there already.
        memory: the most it takes, about.
        memory_free: free here.
        seconds: that it takes here, about, without an upload; None if that wasn't estimated or can't be.
        upload_seconds: that sending takes at the rate of downloads, about; None as before.
    """

    to_hub: bool
    download: int
    remote: Remote | None
    upload: int
    needs: tuple[Need, ...]
    memory: int
    memory_free: int
    seconds: float | None = None
    upload_seconds: float | None = None

    @property
    def source(self) -> Where:
        """Where the weights of models on the Hub are read, as `merge` takes it."""
        return "remote" if self.remote else "local"

    @property
    def brought(self) -> int:
        """Bytes that come from the Hub."""
        return self.download + (self.remote.nbytes if self.remote else 0)

    @property
    def disk(self) -> int:
        """Bytes of disk that it takes at most at a time, beside what is there already."""
        return sum(need.nbytes for need in self.needs)

    @property
    def lacking(self) -> int:
        """Bytes of disk that it takes and that aren't free."""
        return sum(need.lacking for need in self.needs)

    @property
    def fits(self) -> bool:
        """Whether the disk holds it. Memory may turn out enough: its figure is an upper bound."""
        return not self.lacking

    @property
    def how(self) -> str:
        """How it can be merged in this way, in words to be put behind that; none where nothing is special about it."""
        return HOW[bool(self.remote), self.to_hub][0]

    @property
    def instead(self) -> str:
        """What to do to merge in this way, in words and as options of the command."""
        return f"{HOW[bool(self.remote), self.to_hub][1]}, which fits: {self.options}"

    @property
    def options(self) -> str:
        """The options of the command that choose it."""
        return f"--source {self.source}{' --to USER/NAME' * self.to_hub}"

    def figures(self) -> dict[str, str]:
        """Say what it takes, name to words: the same names for every way, and no words for what isn't known."""
        short = self.memory > self.memory_free
        return {
            "from the Hub": gigabytes(self.brought) if self.brought else "nothing",
            "to the Hub": gigabytes(self.upload) if self.upload else "nothing",
            "disk": gigabytes(self.disk),
            "memory": gigabytes(self.memory),
            "time": _spell(self.seconds),
            "time to upload": _spell(self.upload_seconds) if self.upload else "",
            "fits": f"lacks {gigabytes(self.lacking)}" if self.lacking else "memory is short" if short else "yes",
        }

    def to_dict(self) -> dict[str, Any]:
        """Give its fields by name, for programs: sizes in bytes, times in seconds."""
        return {
            "source": self.source,
            "to_hub": self.to_hub,
            "download_bytes": self.download,
            "remote_bytes": self.remote.nbytes if self.remote else 0,
            "upload_bytes": self.upload,
            "disk_bytes": self.disk,
            "memory_bytes": self.memory,
            "seconds": self.seconds,
            "upload_seconds": self.upload_seconds,
            "fits": self.fits,
            "lacking_disk_bytes": self.lacking,
            "lacking_memory_bytes": max(0, self.memory - self.memory_free),
        }

    def __str__(self) -> str:
        """Say in a sentence what it moves."""
        come = "To read on the Hub" if self.remote else "To download"
        down = f"{come}: {gigabytes(self.brought) if self.brought else 'nothing'}"
        up = f"to upload: {gigabytes(self.upload)}; " if self.to_hub else ""
        sent = f", {minutes(self.upload_seconds)} if that is as fast as downloads" if self.upload_seconds else ""
        took = f"; {minutes(self.seconds)} here{f', and the upload{sent}' * self.to_hub}" if self.seconds else ""
        return f"{down}; {up}disk: {gigabytes(self.disk)} at most{took}."


def find_ways(
    prepared: Prepared,
    plan: Plan,
    folder: Path,
    disk: int | None = None,
    memory: int | None = None,
    gguf: Gguf | None = None,
    elsewhere: bool = False,
) -> tuple[Way, ...]:
    """List the ways in which a recipe can be merged, the best one first if there is room for it.

    Args:
        prepared, plan: what is wanted. Without models that are still to be downloaded no way reads them remotely.
        folder: where the output, or what is half-made of it, will go, absolute.
        disk: free bytes of every disk; those of this machine by default.
        memory: free bytes of memory; as ``disk``.
        gguf: what is made, if not a checkpoint: each file of it is sent when it is whole, so all of them take disk.
        elsewhere: count for another machine, which has no files of the models and nothing half-made.
    """
    download = sum((prepared.files if elsewhere else prepared.missing).values())
    there = sum(prepared.away.values())
    if elsewhere:
        there = sum({s.folder: sum(s.readable_there.values()) for s in plan.sources}.values())
    caches = [folder] if elsewhere else [s.path(file) for s in plan.sources for file in s.missing][:1]
    free = psutil.virtual_memory().available if memory is None else memory
    takes = merge_memory(prepared.prompts, plan) + (QUANTIZING if gguf else 0)
    here = 0 if gguf or elsewhere else written(plan, folder)

    def way(to_hub: bool, away: Remote | None) -> Way:
        output = max(0, held(prepared.prompts, plan, to_hub) - here) if here < plan.nbytes else 0
        if gguf:
            output = gguf.room + kept_states(prepared.prompts, plan)
        needs = [(folder, output + (away.disk if away else 0))]
        brought = download - there if away else download
        needs += [(cache, brought) for cache in caches if brought]
        more = RANGES + away.memory if away else 0
        upload = (gguf.nbytes if gguf else plan.nbytes) if to_hub else 0
        return Way(to_hub, brought, away, upload, by_disk(needs, disk), takes + more, free)

    sources = [None, *([remote(prepared.prompts, plan, elsewhere)] if there else [])]
    return tuple(way(to_hub, away) for to_hub in (False, True) for away in sources)


def among(ways: Sequence[Way], source: Where, to_hub: bool | None) -> list[Way]:
    """Take the ways that a user leaves open.

    Args:
        ways: all of them.
        source: as `merge` takes it; with nothing to download all sources are the same.
        to_hub: whether the mixture goes straight to the Hub; None to leave that open too.
    """
    fitting = [way for way in ways if to_hub in (None, way.to_hub)]
    return [way for way in fitting if way.source == source] or fitting


def choose(ways: Iterable[Way]) -> Way | None:
    """Choose the first that fits.

    Args:
        ways: the best one first.
    """
    return next((way for way in ways if way.fits), None)


def _spell(seconds: float | None) -> str:
    return "not known" if seconds is None else minutes(seconds)
