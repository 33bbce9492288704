"""Files that come with the package but aren't code: beside it in a checkout, inside it once installed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from lazymoe.errors import error, nearest


def folder(name: str) -> Path:
    """The folder ``templates`` or ``recipes``."""
    inside = Path(__file__).parent / name
    return inside if inside.is_dir() else Path(__file__).parents[1] / name


def cache() -> Path:
    """LazyMoE's folder among the user's caches."""
    caches = Path.home() / ".cache"
    if sys.platform == "win32":
        caches = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        caches = Path.home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or caches) / "lazymoe"


def ready_made() -> dict[str, Path]:
    """The recipes that come with LazyMoE, by name."""
    return {path.stem: path for path in sorted(folder("recipes").glob("*.yaml"))}


def recipe_file(given: str) -> Path:
    """A recipe's file from its path, or from the name of a ready-made one.

    Raises:
        LazyMoEError: if there is neither.
    """
    path = Path(given).expanduser()
    if path.exists():
        return path
    if given in ready_made():
        return ready_made()[given]
    raise error(given, "there is no such file, and no ready-made recipe of that name", nearest(given, ready_made()))
