"""Quantities as people say them."""

from __future__ import annotations

import re
from collections.abc import Sequence

SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)I?B?", re.IGNORECASE)
WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def billions(parameters: int) -> str:
    """Spell a number of parameters: ``24.2B``, or ``375.0M`` where there are fewer than a billion.

    Args:
        parameters: how many.
    """
    return f"{parameters / 1e9:.1f}B" if parameters >= 1e9 else f"{parameters / 1e6:.1f}M"


def gigabytes(n: int) -> str:
    """Spell a number of bytes: ``48.4 GB``, or ``12.3 MB`` where there are fewer than a hundred million.

    Args:
        n: how many bytes.
    """
    return f"{n / 1e9:.1f} GB" if n >= 1e8 else f"{n / 1e6:.1f} MB"


def bytes_of(text: str) -> int:
    """Read a number of bytes as people and programs spell it: ``4GB``, ``16 GB``, ``1.5T``; 0 if it is none.

    Args:
        text: the words; K is a thousand, and so on, with an i too.
    """
    match = SIZE.fullmatch(text.strip())
    return int(float(match[1]) * 1000 ** " KMGT".index(match[2].upper() or " ")) if match else 0


def counted(n: int, word: str) -> str:
    """Spell a number of things: ``1 layer``, ``3 layers``.

    Args:
        n: how many.
        word: for one of them.
    """
    return f"{n} {word}" if n == 1 else f"{n} {word}s"


def minutes(seconds: float) -> str:
    """Spell a time that is known about: ``about 4 minutes``.

    Args:
        seconds: the time.
    """
    if seconds < 60:
        return "less than a minute"
    if seconds < 5400:
        return f"about {counted(round(seconds / 60), 'minute')}"
    return f"about {seconds / 3600:.1f} hours"


def in_words(n: int) -> str:
    """Spell a number as in a sentence: in words up to twelve.

    Args:
        n: the number, at least 0.
    """
    return WORDS[n] if n < len(WORDS) else str(n)


def spell_layers(layers: Sequence[int], of: int) -> str:
    """Spell some layers of so many: ``layers 0-3 and 7``.

    Args:
        layers: their numbers, ascending, at least one.
        of: how many layers there are.
    """
    if len(layers) == of:
        return "all layers"
    runs: list[list[int]] = []
    for layer in layers:
        if runs and runs[-1][1] == layer - 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    words = [str(a) if a == b else f"{a}-{b}" for a, b in runs]
    listed = " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]
    return f"{'layer' if len(layers) == 1 else 'layers'} {listed}"
