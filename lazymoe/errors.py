"""What is told to a person when something is wrong: the place, the fact, the remedy. No traceback is owed for these.

The exceptions, by the first word of their problems' codes::

    LazyMoEError         any of them, several kinds at once, or "input.*": an argument
    ├── RecipeError      "recipe.*": a recipe, or the prompts that it names
    ├── SourceError      "source.*": a model that goes into a mixture
    ├── HubError         "hub.*": the Hugging Face Hub, an account there, the network
    ├── ClusterError     "cluster.*": a cluster of Ray
    └── OutputError      "output.*": the folder of a mixture
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

FAILED = {
    "hub.unreachable",
    "hub.busy",
    "hub.failed",
    "cluster.unreachable",
    "cluster.lost",
    "output.full",
    "output.failed",
}  # right, and still it failed


LONGEST = 800  # letters of a part of a message
TOKEN = re.compile(r"hf_[A-Za-z0-9]{30,}")  # what looks like a token of the Hugging Face Hub


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, in one line. What looks like a token isn't repeated in it.

    Attributes:
        code: what kind of thing, for programs: ``recipe.unknown-field``. It stays when words change.
        where: the place in the recipe or on the disk, such as ``experts[1].source_model (expert 2 of 4)``.
        what: what is wrong there.
        remedy: what to do about it.
    """

    code: str
    where: str
    what: str
    remedy: str

    def __post_init__(self) -> None:
        for part in ("where", "what", "remedy"):
            object.__setattr__(self, part, TOKEN.sub("hf_…", getattr(self, part)))

    @property
    def failed(self) -> bool:
        """Whether nothing was wrong with what was asked for: the network, or the disk, let it down."""
        return self.code in FAILED

    def to_dict(self) -> dict[str, str]:
        """Give its fields by name, for programs."""
        return {"code": self.code, "where": self.where, "what": self.what, "remedy": self.remedy}

    def __str__(self) -> str:
        return f"{_line(self.where)}: {_line(self.what)}. {_line(self.remedy)}".strip()


def _line(text: str) -> str:
    """Make a text `printable`, and not too long."""
    line = printable(text)
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} … {line[-LONGEST // 2 :]}"


def printable(text: str) -> str:
    """Put a text that may come from a stranger on one line, without what a terminal would obey.

    Args:
        text: the text.
    """
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in " ".join(text.split()))


class LazyMoEError(Exception):
    """Raised for whatever a user can mend. ``problems`` holds them all; ``str()`` gives one line for each."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


class RecipeError(LazyMoEError):
    """A recipe, or a file of prompts that it names, can't be read or can't be meant so."""


class SourceError(LazyMoEError):
    """A model can't be found, opened or used, or doesn't fit the others."""


class HubError(LazyMoEError):
    """The Hub can't be reached, or refuses."""


class ClusterError(LazyMoEError):
    """A cluster can't be reached, or its machines fail."""


class OutputError(LazyMoEError):
    """A mixture's folder can't be written, or isn't what it should be."""


_KINDS = {"recipe": RecipeError, "source": SourceError, "hub": HubError, "cluster": ClusterError, "output": OutputError}


def failure(problems: Sequence[Problem]) -> LazyMoEError:
    """Make the exception for these problems: that of their kind, if they are of one.

    Args:
        problems: what is wrong, at least one thing.
    """
    kinds = {problem.code.partition(".")[0] for problem in problems}
    return _KINDS.get(kinds.pop() if len(kinds) == 1 else "", LazyMoEError)(problems)


def error(code: str, where: object, what: str, remedy: str) -> LazyMoEError:
    """Make the exception for a single problem.

    Args:
        code: what kind of thing it is, see `Problem`; its first word chooses the class.
        where: the place in the recipe or on the disk.
        what: what is wrong there.
        remedy: what to do about it.
    """
    return failure([Problem(code, str(where), what, remedy)])


def nearest(word: str, known: Iterable[str]) -> str:
    """Name the remedy for a word that isn't known: the one that was probably meant, or all that there are.

    Args:
        word: as it was given.
        known: the words that are known.
    """
    known = sorted(known)
    close = difflib.get_close_matches(word, known, 1)
    return f"Did you mean '{close[0]}'?" if close else f"Known are: {', '.join(known)}."
