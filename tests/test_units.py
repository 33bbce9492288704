"""Quantities as people say them."""

from __future__ import annotations

import pytest

from lazymoe.units import billions, bytes_of, gigabytes, spell_layers


@pytest.mark.parametrize(
    ("n", "words"),
    [(24_153_690_112, "24.2B"), (1_000_000_000, "1.0B"), (999_900_000, "999.9M"), (375_012_000, "375.0M"), (0, "0.0M")],
)
def test_parameters(n: int, words: str) -> None:
    assert billions(n) == words


@pytest.mark.parametrize(
    ("n", "words"),
    [(48_400_000_000, "48.4 GB"), (100_000_000, "0.1 GB"), (99_000_000, "99.0 MB"), (12_340_000, "12.3 MB"),
     (0, "0.0 MB"), (-2_000_000_000_000, "-2000000.0 MB")],
)  # fmt: skip
def test_bytes(n: int, words: str) -> None:
    assert gigabytes(n) == words


@pytest.mark.parametrize(
    ("words", "n"),
    [("4GB", 4 * 10**9), ("16 GB", 16 * 10**9), (" 1.5t ", 15 * 10**11), ("500", 500), ("2GiB", 2 * 10**9), ("N/A", 0),
     ("GB", 0), ("-4GB", 0), ("", 0)],
)  # fmt: skip
def test_bytes_in_words(words: str, n: int) -> None:
    assert bytes_of(words) == n


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([3], "layer 3"),
        ([0, 1], "layers 0-1"),
        ([0, 1, 2, 5], "layers 0-2 and 5"),
        ([0, 2, 4, 5], "layers 0, 2 and 4-5"),
        (list(range(8)), "all layers"),
    ],
)
def test_layers(layers: list[int], words: str) -> None:
    assert spell_layers(layers, 8) == words


def test_the_only_layer_is_all() -> None:
    assert spell_layers([0], 1) == "all layers"
