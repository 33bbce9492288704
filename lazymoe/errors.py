"""What is told to a person when something is wrong: the place, the fact, the remedy. No traceback is owed for these."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, in one line.

    Attributes:
        where: the place in the recipe or on the disk, such as ``experts[1].source_model (expert 2 of 4)``.
        what: what is wrong there.
        remedy: what to do about it.
    """

    where: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return " ".join(f"{self.where}: {self.what}. {self.remedy}".split())


class LazyMoEError(Exception):
    """Raised for every mistake a user can mend. ``problems`` holds them all; ``str()`` gives one line for each."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


def error(where: object, what: str, remedy: str) -> LazyMoEError:
    """A :class:`LazyMoEError` with a single problem."""
    return LazyMoEError([Problem(str(where), what, remedy)])


def nearest(word: str, known: Iterable[str]) -> str:
    """The remedy for a word that isn't known: the one that was probably meant, or all that there are."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, 1)
    return f"Did you mean '{close[0]}'?" if close else f"Known are: {', '.join(known)}."
