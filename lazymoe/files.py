"""Paths, and files that are read in ranges or written whole. Knows nothing of what is in them."""

from __future__ import annotations

import os
import sys
from io import FileIO
from pathlib import Path

from lazymoe.errors import error


def absolute(path: str | os.PathLike[str]) -> Path:
    """Make a path as a user gives it absolute: the folder that a program works in is no part of it any more.

    Args:
        path: as it was given, ``~`` included.
    """
    return Path(os.path.expanduser(path)).absolute()


def shown(path: Path) -> Path:
    """Spell an absolute path as a person reads it: from the folder that they work in, if it lies there.

    Args:
        path: the path, absolute.
    """
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def existing(path: Path) -> Path:
    """Find the nearest folder, at or above a path, that exists.

    Args:
        path: of a file or folder that need not exist.
    """
    path = path.resolve()
    while not path.is_dir():
        path = path.parent
    return path


def leads_away(path: Path, folder: Path) -> bool:
    """Tell whether a path in a folder leads out of it over a link, and not into the Hub's cache, where files are links.

    Args:
        path: of the file.
        folder: that it is said to be in.
    """
    real = path.resolve()
    cached = real.parent.name == "blobs" and real.parents[1].name.startswith("models--")
    return not cached and not real.is_relative_to(folder.resolve())


def cache() -> Path:
    """Find LazyMoE's folder among the user's caches; it need not exist yet."""
    caches = Path.home() / ".cache"
    if sys.platform == "win32":
        caches = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        caches = Path.home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or caches) / "lazymoe"


def stamp(path: Path) -> tuple[int, int, int]:
    """Give what changes when a file does: its size, its time of change and its place on the disk.

    Args:
        path: of the file.
    """
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ino


def read_into(f: FileIO, view: memoryview) -> None:
    """Fill a buffer from an open file, unbuffered. Not mapped: mapped pages would count as this program's memory.

    Args:
        f: the file, at the first byte to read.
        view: the buffer, of as many bytes as are wanted.

    Raises:
        SourceError: if the file ends before the buffer is full.
    """
    while view:
        n = f.readinto(view)
        if not n:
            what = "the file ended early; was it changed during the merge?"
            raise error("source.cut", f.name, what, "Download it again.")
        view = view[n:]


def read_bytes(path: Path, offset: int, length: int) -> bytearray:
    """Read so many bytes of a file, from one of them on.

    Args:
        path: of the file.
        offset: the first byte, from the start of the file.
        length: how many bytes.

    Raises:
        SourceError: if the file ends before.
    """
    data = bytearray(length)
    with open(path, "rb", buffering=0) as f:
        f.seek(offset)
        read_into(f, memoryview(data))
    return data


def writable(text: str) -> str:
    """Put question marks in place of halves of pairs of surrogates, which no file can hold.

    Args:
        text: the text.
    """
    return text.encode(errors="replace").decode()


def write_whole(path: Path, data: str | bytes) -> None:
    """Write a small file whole or not at all, with the folders above it.

    Args:
        path: of the file.
        data: its bytes, or its text, which is written as UTF-8.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(data.encode() if isinstance(data, str) else data)
    os.replace(temporary, path)
