"""Files that come with the package but aren't code: the ready-made recipes, the templates.

In a checkout they lie at its top, where people see them; installed, they lie here.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path


def folder(name: str) -> Path:
    """Find the folder ``templates`` or ``recipes``.

    Args:
        name: which of the two.
    """
    inside = Path(str(resources.files(__name__))) / name
    return inside if inside.is_dir() else Path(__file__).parents[2] / name


def ready_made() -> dict[str, Path]:
    """List the recipes that come with LazyMoE: name to file."""
    return {path.stem: path for path in sorted(folder("recipes").glob("*.yaml"))}
