"""The panels of `LazyMoE.ipynb`: each of its cells calls one function."""

from lazymoe.notebook.check_panel import check
from lazymoe.notebook.evaluate_panel import evaluate
from lazymoe.notebook.merge_panel import merge
from lazymoe.notebook.publish_panel import publish
from lazymoe.notebook.recipe_panel import recipe
from lazymoe.notebook.setup_panel import setup
from lazymoe.notebook.try_panel import try_it

__all__ = ["check", "evaluate", "merge", "publish", "recipe", "setup", "try_it"]
