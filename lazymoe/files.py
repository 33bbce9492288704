"""Paths, and files that are read in ranges or written whole. Knows nothing of what is in them."""

from __future__ import annotations

import os
import sys
from io import FileIO
from pathlib import Path

from lazymoe.errors import error


def absolute(path: str | os.PathLike[str]) -> Path:
    """A path as a user gives it, from the root on: the folder that a program works in is no part of it any more."""
    return Path(os.path.expanduser(path)).absolute()


def shown(path: Path) -> Path:
    """An absolute path as a person reads it: from the folder that they work in, if it lies there."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def existing(path: Path) -> Path:
    """The nearest folder, at or above a path, that exists."""
    path = path.resolve()
    while not path.is_dir():
        path = path.parent
    return path


def cache() -> Path:
    """LazyMoE's folder among the user's caches."""
    caches = Path.home() / ".cache"
    if sys.platform == "win32":
        caches = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        caches = Path.home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or caches) / "lazymoe"


def read_into(f: FileIO, view: memoryview) -> None:
    """Fill a buffer from an open file, unbuffered. Not mapped: mapped pages would count as this program's memory.

    Raises:
        LazyMoEError: if the file ends before the buffer is full.
    """
    while view:
        n = f.readinto(view)
        if not n:
            what = "the file ended early; was it changed during the merge?"
            raise error("source.cut", f.name, what, "Download it again.")
        view = view[n:]


def read_bytes(path: Path, offset: int, length: int) -> bytearray:
    """So many bytes of a file, from one of them on.

    Raises:
        LazyMoEError: if the file ends before.
    """
    data = bytearray(length)
    with open(path, "rb", buffering=0) as f:
        f.seek(offset)
        read_into(f, memoryview(data))
    return data


def write_whole(path: Path, data: str | bytes) -> None:
    """Write a small file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(data.encode() if isinstance(data, str) else data)
    os.replace(temporary, path)
