"""Files that come with the package but aren't code: beside it in a checkout, inside it once installed."""

from __future__ import annotations

from pathlib import Path


def folder(name: str) -> Path:
    """The folder ``templates`` or ``recipes``."""
    inside = Path(__file__).parent / name
    return inside if inside.is_dir() else Path(__file__).parents[1] / name
