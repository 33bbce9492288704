"""Git LFS pointers: the three lines of text that stand for a large file where git hasn't brought it."""

from __future__ import annotations

from pathlib import Path

from lazymoe.errors import LazyMoEError, error

START = b"version https://git-lfs"
LIMIT = 1024  # bytes: pointers are smaller


def is_pointer(path: Path) -> bool:
    """Tell whether a file is the pointer to another.

    Args:
        path: of the file, which must be there.
    """
    if path.stat().st_size >= LIMIT:
        return False
    with open(path, "rb") as f:
        return f.read(len(START)) == START


def refuse_pointer(path: Path, where: str) -> None:
    """Refuse a file that is only the pointer to the one that is wanted.

    Args:
        path: of the file; nothing is said if there is none.
        where: how messages name the place that its model was asked for.

    Raises:
        SourceError: if it is a pointer.
    """
    if path.is_file() and is_pointer(path):
        raise refusal(path, where)


def refusal(path: Path, where: str) -> LazyMoEError:
    """Make the exception for a file that is a pointer.

    Args:
        path, where: as in `refuse_pointer`.
    """
    remedy = "Run 'git lfs pull' in that folder."
    if path.parent.parent.name == "snapshots":  # the Hub's cache: its author has put it there like this
        remedy = "Name another revision of this model, or tell its author."
    return error("source.lfs", where, f"{path} is a Git LFS pointer, not the file", remedy)
