"""Random numbers that come out the same everywhere."""

from __future__ import annotations

import numpy as np
import pytest

from lazymoe.seeding import generator

EARLIER = [2876021883, 2961055286, 2241658066]
NORMAL = [1.005486, 0.7027073]


def test_the_same_seed_and_name_give_the_same_numbers() -> None:
    first, again = (generator(3, "router").standard_normal(1000) for _ in range(2))
    assert np.array_equal(first, again)
    for other in (generator(4, "router"), generator(3, "routers"), generator(-3, "router")):
        assert abs(np.corrcoef(first, other.standard_normal(1000))[0, 1]) < 0.15


def test_they_are_those_of_every_earlier_version() -> None:
    """Mixtures that people have made must come out again."""
    assert generator(0, "router").integers(0, 2**32, 3).tolist() == EARLIER
    assert generator(0, "router").standard_normal(2, np.float32) == pytest.approx(NORMAL, abs=1e-6)
