"""Paths, and files that are read in ranges or written whole. Knows nothing of what is in them.

A file gets its name when its bytes are on the disk: a power cut leaves it whole or absent. As disks and people do
more than that, size and checksum of what is to be believed later are kept beside it, its seal.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import sys
import zlib
from collections.abc import Iterable
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any

from lazymoe.errors import LazyMoEError, error

BLOCK = 1 << 20  # bytes read at a time
FULL = (errno.ENOSPC, errno.EDQUOT)  # what the system says of a full disk
SEAL = ".seal"  # ends the name of the file that holds another's seal


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
    """Tell whether a path in a folder leads out of it over a link, and not into the Hub's cache that the folder is in.

    Args:
        path: of the file.
        folder: that it is said to be in.
    """
    real, home = path.resolve(), folder.resolve()
    if real.is_relative_to(home):
        return False
    store = home.parents[2] if home.parent.name == "snapshots" else home  # <cache>/models--x/snapshots/<commit>
    return not (real.is_relative_to(store) and "blobs" in real.relative_to(store).parts[:2])


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


def readable(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object; empty if there is none that can be read.

    Args:
        path: of the file.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def writable(text: str) -> str:
    """Put question marks in place of halves of pairs of surrogates, which no file can hold.

    Args:
        text: the text.
    """
    return text.encode(errors="replace").decode()


def unwritten(e: OSError, folder: Path, stopped: str, again: str) -> LazyMoEError:
    """Explain what came between a program and its files.

    Args:
        e: what the system said.
        folder: that was written to.
        stopped: what isn't finished, as a subject and its verb.
        again: what goes on when it is run again, without what is to be done first.
    """
    if e.errno in FULL:
        return error("output.full", folder, f"writing failed: {e.strerror}", f"Make room and {again}")
    return error("output.failed", e.filename or folder, f"{stopped}: {e.strerror or e}", f"Mend that and {again}")


def settle(temporary: Path, path: Path) -> None:
    """Give a file or folder its final name once it is on the disk, and see to it that the name gets there too.

    Args:
        temporary: where it is, written whole, on the same disk.
        path: its name from now on; what was there before is gone.
    """
    for file in temporary.rglob("*") if temporary.is_dir() else [temporary]:
        _flush(file)
    os.replace(temporary, path)
    if path.parent != temporary.parent:
        _flush(temporary.parent)
    _flush(path.parent)


def _flush(path: Path) -> None:
    """Wait until a file, or a folder's names, are on the disk."""
    if path.is_dir() and sys.platform == "win32":  # which opens no folders
        return
    file = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def write_whole(path: Path, data: str | bytes) -> None:
    """Write a small file whole or not at all, with the folders above it.

    Args:
        path: of the file.
        data: its bytes, or its text, which is written as UTF-8.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(data.encode() if isinstance(data, str) else data)
    settle(temporary, path)


def seal(nbytes: int, checksum: int) -> str:
    """Spell out what a file is known by: its size and the CRC-32 of its bytes.

    Args:
        nbytes: its size.
        checksum: as `zlib.crc32` gives it.
    """
    return f"{nbytes} bytes, CRC-32 {checksum:08x}"


def seal_of(path: Path) -> str:
    """Read a file, and give its seal.

    Args:
        path: of the file.
    """
    nbytes = path.stat().st_size
    with open(path, "rb", buffering=0) as f:
        return seal(nbytes, checksum_of(f, nbytes))


def checksum_of(f: FileIO, length: int) -> int:
    """Read so many bytes of an open file, and give their CRC-32; of fewer if it ends before.

    Args:
        f: the file, unbuffered, at the first byte to read.
        length: how many bytes.
    """
    checksum = 0
    while block := f.read(min(BLOCK, length)):
        checksum, length = zlib.crc32(block, checksum), length - len(block)
    return checksum


def combined(first: int, second: int, nbytes: int) -> int:
    """Give the CRC-32 of bytes and those after them, of which each is known, as zlib's ``crc32_combine``.

    Args:
        first: CRC-32 of the bytes in front.
        second: of those behind.
        nbytes: how many these are.
    """
    return _times(_shift(nbytes), first) ^ second


def _times(a: int, b: int) -> int:
    """Multiply polynomials over GF(2) modulo CRC-32's; bit 31 stands for 1, bit 30 for x, and so on."""
    product = 0
    for power in range(31, -1, -1):
        if a >> power & 1:
            product ^= b
        b = b >> 1 ^ (0xEDB88320 if b & 1 else 0)  # times x
    return product


@functools.cache
def _shift(nbytes: int) -> int:
    """Give x to the power of the bits in so many bytes, modulo CRC-32's polynomial."""
    found, power = 1 << 31, 1 << 23  # 1, and x^8
    while nbytes:
        if nbytes & 1:
            found = _times(power, found)
        power, nbytes = _times(power, power), nbytes >> 1
    return found


def is_sealed(path: Path, kept: str | None) -> bool:
    """Tell whether a file is what its seal says.

    Args:
        path: of the file.
        kept: its seal; None if it has none, and isn't believed.
    """
    with suppress(OSError):
        return kept is not None and kept.startswith(f"{path.stat().st_size} ") and seal_of(path) == kept
    return False


def read_seal(path: Path) -> str | None:
    """Read a seal; None if there is none.

    Args:
        path: of its file.
    """
    with suppress(OSError, ValueError):
        return path.read_text(encoding="utf-8")
    return None


def write_sealed(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Write a file whole or not at all, with its seal beside it.

    Args:
        path: of the file.
        parts: its bytes, one after the other.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    nbytes = checksum = 0
    with open(temporary, "wb") as f:
        for part in parts:
            f.write(part)
            nbytes, checksum = nbytes + len(part), zlib.crc32(part, checksum)
    write_whole(path.with_name(path.name + SEAL), seal(nbytes, checksum))
    settle(temporary, path)


def is_sound(path: Path) -> bool:
    """Tell whether a file is as `write_sealed` wrote it.

    Args:
        path: of the file.
    """
    return is_sealed(path, read_seal(path.with_name(path.name + SEAL)))
