"""Combinations of values for `pytest.mark.parametrize`, of which a quick run takes a few."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import product
from typing import Any

import pytest


def crossed(*axes: Iterable[Any], possible: Callable[..., bool] = lambda *_: True) -> list[Any]:
    """All combinations of some values; a few that show each value are quick, the others slow.

    A value that is a tuple stands for several arguments. What isn't possible is left out.
    """
    combinations: list[tuple[tuple[int, ...], tuple[Any, ...]]] = []
    for numbered in product(*map(list, map(enumerate, axes))):
        flat = tuple(part for _, one in numbered for part in (one if isinstance(one, tuple) else (one,)))
        if possible(*flat):
            combinations.append((tuple(place for place, _ in numbered), flat))
    unseen = {place for places, _ in combinations for place in enumerate(places)}
    quick = set()
    while unseen:
        most = max((places for places, _ in combinations), key=lambda places: len(unseen & set(enumerate(places))))
        quick.add(most)
        unseen -= set(enumerate(most))
    return [
        pytest.param(*flat, marks=[] if places in quick else pytest.mark.slow, id="-".join(map(_named, flat)))
        for places, flat in combinations
    ]


def _named(value: Any) -> str:
    """Say what a value is, in the name of a test."""
    return str(getattr(value, "name", getattr(value, "__name__", value)))[:40]
