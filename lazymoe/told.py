"""What a command has to say, and how it says what goes on meanwhile."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from lazymoe.errors import Problem

Options = argparse.Namespace


class Told(NamedTuple):
    """What a command has to say: in words, in few words for ``--quiet``, and for programs."""

    words: str
    few: str
    fields: dict[str, Any]
    code: int = 0


def exit_code(problems: Sequence[Problem]) -> int:
    """Give the exit code for what went wrong."""
    return 0 if not problems else 1 if all(p.failed for p in problems) else 2


def warn(options: Options, problems: Iterable[Problem]) -> None:
    """Tell of what may go wrong."""
    if not options.quiet:
        for problem in problems:
            print(f"warning: {problem}", file=sys.stderr, flush=True)


def note(options: Options, *texts: str) -> None:
    """Tell what is good to know."""
    if not options.quiet:
        for text in texts:
            print(f"note: {text}", file=sys.stderr, flush=True)
