"""Which licence a mixture can have: the most restrictive of its sources'. A help for the eye, not legal advice.

Names are the Hub's (https://huggingface.co/docs/hub/repositories-licenses).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lazymoe.errors import Problem

# From the freest to the strictest, by what they ask of someone who publishes a derived model.
KINDS = {
    "free": ("cc0-1.0", "unlicense", "wtfpl", "pddl", "zlib", "mit", "isc", "ncsa", "postgresql", "bsd", "bsd-2-clause",
             "bsd-3-clause", "bsd-3-clause-clear", "bsl-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "odc-by",
             "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "etalab-2.0", "afl-3.0", "ecl-2.0", "artistic-2.0",
             "openmdw-1.0", "apache-2.0"),
    "copyleft": ("mpl-2.0", "ms-pl", "epl-1.0", "epl-2.0", "lgpl", "lgpl-2.1", "lgpl-3.0", "lgpl-lr", "eupl-1.1",
                 "eupl-1.2", "lppl-1.3c", "ofl-1.1", "gfdl", "odbl", "cdla-sharing-1.0", "osl-3.0", "cc",
                 "cc-by-sa-3.0", "cc-by-sa-4.0", "gpl", "gpl-2.0", "gpl-3.0", "agpl-3.0"),
    "terms": ("openrail", "openrail++", "bigcode-openrail-m", "bigscience-openrail-m", "bigscience-bloom-rail-1.0",
              "creativeml-openrail-m", "apple-ascl", "gemma", "llama4", "llama3.3", "llama3.2", "llama3.1", "llama3",
              "llama2", "grok2-community"),
    "noncommercial": ("cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0",
                      "cc-by-nc-sa-4.0", "c-uda", "h-research", "intel-research", "apple-amlr",
                      "deepfloyd-if-license", "fair-noncommercial-research-license"),
    "no derivatives": ("cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0"),
}  # fmt: skip
KNOWN = tuple(name for names in KINDS.values() for name in names)
BINDING = ("copyleft", "terms")  # a derived model must bear these themselves; two of them can't both be its licence


@dataclass(frozen=True)
class License:
    """The licence that follows from the sources: its name on the Hub, and what is doubtful about it."""

    name: str
    problems: tuple[Problem, ...]


def strictest(sources: Sequence[tuple[str, str | None]]) -> License:
    """Find the licence of a mixture: the most restrictive of its sources'.

    Args:
        sources: each model with its licence, None if it states none.

    Returns:
        The licence: ``unknown`` where a source states none, ``other`` where two may not go together.
    """
    problems = []
    unknown = [model for model, name in sources if name is None or name in ("unknown", "other")]
    if unknown:
        what = f"no licence is stated by {', '.join(dict.fromkeys(unknown))}"
        problems.append(
            Problem("license.unknown", "license", what, "Look at their pages, and name the mixture's licence yourself.")
        )
    named = {name: model for model, name in sources if name and model not in unknown}
    for name, model in named.items():
        if _kind(name) == "no derivatives":
            what = f"{model} is under {name}, which allows no derived models"
            problems.append(
                Problem(
                    "license.forbidden", "license", what, "Don't publish this mixture, or make it without that model."
                )
            )
    binding = sorted(name for name in named if _kind(name) in BINDING or "-sa-" in name)
    strict = {name for name in named if _kind(name) not in ("free", *BINDING)}
    clash = sorted({*binding, *strict}) if binding and len({*binding, *strict}) > 1 else []
    if clash:
        what = f"{' and '.join(clash)} may not go together: each wants its own conditions for a derived model"
        problems.append(Problem("license.clash", "license", what, "Read them before you publish."))
    if unknown:
        return License("unknown", tuple(problems))
    return License("other" if clash else max(named, key=_strictness, default="unknown"), tuple(problems))


def _kind(name: str) -> str:
    """Find the kind of a licence; terms of its own for a name that the Hub doesn't know."""
    return next((kind for kind, names in KINDS.items() if name in names), "terms")


def _strictness(name: str) -> int:
    return KNOWN.index(name) if name in KNOWN else KNOWN.index(KINDS["terms"][-1])
