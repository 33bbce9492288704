"""The version of this package, and of what its results depend on."""

from __future__ import annotations

__version__ = "0.1.0"


def versions() -> dict[str, str]:
    """Tell the versions of what a mixture's bytes depend on, by name."""
    from importlib.metadata import version

    return {"LazyMoE": __version__} | {name: version(name) for name in ("torch", "transformers")}
