"""LazyMoE: make a mixture of experts out of fine-tuned LLMs.

The functions do what the commands of the same names do::

    found = lazymoe.check("recipe.yaml")
    lazymoe.merge("recipe.yaml", "my-moe")
    print(lazymoe.report("my-moe"))
    print(lazymoe.evaluate("my-moe", "arc_easy,hellaswag", limit=100))
    lazymoe.publish("my-moe", "you/my-moe")
    lazymoe.to_gguf("my-moe", "Q4_K_M")

`load("my-moe", bits=4)` gives the model and its tokenizer, in little memory. All of them raise `LazyMoEError` for what
a user can mend; its subclasses and `Problem` say what kind of thing that is.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lazymoe.version import __version__

if TYPE_CHECKING:
    from lazymoe.cards.card import card
    from lazymoe.checking_gguf import check_gguf
    from lazymoe.demonstration.story import Demo, demo
    from lazymoe.errors import ClusterError, HubError, LazyMoEError, OutputError, Problem, RecipeError, SourceError
    from lazymoe.evaluating.evaluate import evaluate
    from lazymoe.evaluating.evaluation import Evaluation
    from lazymoe.exporting import Exported, to_gguf
    from lazymoe.forward.loading import load
    from lazymoe.gguf_to_hub import merge_gguf_to_hub
    from lazymoe.jobs.calls import evaluate_on_jobs, merge_gguf_on_jobs, merge_on_jobs
    from lazymoe.merging import Merged, merge
    from lazymoe.merging_to_gguf import merge_to_gguf
    from lazymoe.output.quantized import Quality
    from lazymoe.planning.checking import Check, check
    from lazymoe.publishing import Published, publish
    from lazymoe.recipe.schema import Expert, Recipe, Texts
    from lazymoe.reporting.measuring import report
    from lazymoe.reporting.quality import report_gguf
    from lazymoe.reporting.report import Report
    from lazymoe.to_hub import merge_to_hub

__all__ = [
    "Check", "ClusterError", "Demo", "Evaluation", "Expert", "Exported", "HubError", "LazyMoEError", "Merged",
    "OutputError", "Problem", "Published", "Quality", "Recipe", "RecipeError", "Report", "SourceError", "Texts",
    "__version__", "card", "check", "check_gguf", "demo", "evaluate", "evaluate_on_jobs", "load", "merge",
    "merge_gguf_on_jobs", "merge_gguf_to_hub",
    "merge_on_jobs", "merge_to_gguf", "merge_to_hub", "publish", "report", "report_gguf", "to_gguf",
]  # fmt: skip

# where each name lives; loaded when it is first asked for, since torch alone takes seconds
_HOMES = {
    "lazymoe.cards.card": ("card",),
    "lazymoe.checking_gguf": ("check_gguf",),
    "lazymoe.demonstration.story": ("Demo", "demo"),
    "lazymoe.errors": (
        "ClusterError",
        "HubError",
        "LazyMoEError",
        "OutputError",
        "Problem",
        "RecipeError",
        "SourceError",
    ),
    "lazymoe.evaluating.evaluate": ("evaluate",),
    "lazymoe.evaluating.evaluation": ("Evaluation",),
    "lazymoe.exporting": ("Exported", "to_gguf"),
    "lazymoe.forward.loading": ("load",),
    "lazymoe.gguf_to_hub": ("merge_gguf_to_hub",),
    "lazymoe.jobs.calls": ("evaluate_on_jobs", "merge_gguf_on_jobs", "merge_on_jobs"),
    "lazymoe.merging": ("Merged", "merge"),
    "lazymoe.merging_to_gguf": ("merge_to_gguf",),
    "lazymoe.planning.checking": ("Check", "check"),
    "lazymoe.publishing": ("Published", "publish"),
    "lazymoe.recipe.schema": ("Expert", "Recipe", "Texts"),
    "lazymoe.output.quantized": ("Quality",),
    "lazymoe.reporting.measuring": ("report",),
    "lazymoe.reporting.quality": ("report_gguf",),
    "lazymoe.reporting.report": ("Report",),
    "lazymoe.to_hub": ("merge_to_hub",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'lazymoe' has no attribute '{name}'")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
