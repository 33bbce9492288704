"""LazyMoE: make a mixture of experts out of fine-tuned LLMs."""

from lazymoe.check import Check, check
from lazymoe.demo import Demo, demo
from lazymoe.errors import LazyMoEError
from lazymoe.merge import Merged, merge
from lazymoe.recipe import Expert, Recipe
from lazymoe.version import __version__

__all__ = ["Check", "Demo", "Expert", "LazyMoEError", "Merged", "Recipe", "__version__", "check", "demo", "merge"]
