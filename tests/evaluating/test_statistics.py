"""Intervals hold the truth as often as they say, and are those of the papers."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import xlogy
from scipy.stats import binomtest

from lazymoe.evaluating.statistics import LEVEL, Estimate, Values, difference, mean

RUNS = 200  # evaluations that are simulated
NOISE = 0.03  # that so many runs can be off by


def answered(rng: np.random.Generator, n: int, better: float, worse: float) -> tuple[Values, Values]:
    """Right and wrong answers of two models: questions that only the first has right, and only the second."""
    kind = rng.choice(4, n, p=[better, worse, (1 - better - worse) / 2, (1 - better - worse) / 2])
    return np.isin(kind, (0, 2)).astype(float), np.isin(kind, (1, 2)).astype(float)


def covered(draw: Callable[[np.random.Generator], Estimate], truth: float) -> float:
    rng = np.random.default_rng(20)
    found = [draw(rng) for _ in range(RUNS)]
    return sum(one.low <= truth <= one.high for one in found) / RUNS


@pytest.mark.parametrize("n", [20, 100, 1000])
@pytest.mark.parametrize(("better", "worse"), [(0.15, 0.15), (0.25, 0.1)])
def test_differences_of_right_and_wrong(n: int, better: float, worse: float) -> None:
    found = covered(lambda rng: difference(*answered(rng, n, better, worse)), better - worse)
    assert found == pytest.approx(LEVEL, abs=NOISE)


@pytest.mark.parametrize("n", [20, 100, 1000])
@pytest.mark.parametrize("apart", [0.0, 0.3])
def test_differences_of_anything_else(n: int, apart: float) -> None:
    def draw(rng: np.random.Generator) -> Estimate:
        question = rng.exponential(1, n)
        return difference(question + rng.normal(apart, 0.5, n), question + rng.normal(0, 0.5, n))

    assert covered(draw, apart) == pytest.approx(LEVEL, abs=NOISE)


@pytest.mark.parametrize("n", [50, 100, 1000])
@pytest.mark.parametrize("apart", [0.0, 0.1])
def test_differences_for_each_byte(n: int, apart: float) -> None:
    def draw(rng: np.random.Generator) -> Estimate:
        size = rng.lognormal(5, 0.5, n).round()
        first, second = (size * rng.normal(rate, 0.2, n) for rate in (1 + apart, 1.0))
        return difference(first, second, size)

    assert covered(draw, apart) == pytest.approx(LEVEL, abs=NOISE)


@pytest.mark.parametrize(("n", "share"), [(20, 0.3), (100, 0.6), (1000, 0.9)])
def test_shares(n: int, share: float) -> None:
    found = covered(lambda rng: mean((rng.random(n) < share).astype(float)), share)
    assert found == pytest.approx(LEVEL, abs=NOISE)


@pytest.mark.parametrize(("right", "n"), [(1, 10), (0, 20), (57, 100), (100, 100)])
def test_shares_are_wilsons(right: int, n: int) -> None:
    found = mean(np.array([1.0] * right + [0.0] * (n - right)))
    assert found[1:] == pytest.approx(binomtest(right, n).proportion_ci(method="wilson"), abs=1e-9)


@pytest.mark.parametrize(("b", "c", "n"), [(10, 3, 44), (3, 10, 44), (0, 4, 20), (40, 25, 500)])
def test_the_ends_are_where_a_score_test_begins_to_reject(b: int, c: int, n: int) -> None:
    """With the likeliest share of discordant questions searched for, where the paper has a formula."""
    found = difference(np.array([1.0] * b + [0.0] * c + [1.0] * (n - b - c)), np.array([0.0] * b + [1.0] * (n - b)))
    for delta in (found.low, found.high):

        def unlikely(q: float, delta: float = delta) -> float:
            return -float(xlogy(b, q + delta) + xlogy(c, q) + xlogy(n - b - c, 1 - 2 * q - delta))

        low, high = max(0.0, -delta), (1 - delta) / 2
        q = minimize_scalar(unlikely, bounds=(low + 1e-12, high - 1e-12), method="bounded", options={"xatol": 1e-10}).x
        score = (b - c - n * delta) / math.sqrt(n * (2 * q + delta * (1 - delta)))
        assert abs(score) == pytest.approx(1.959964, abs=1e-3)


def test_an_end_of_tango_is_where_mcnemar_rejects() -> None:
    """The difference 0 is inside of an interval exactly if the score test, (b - c)^2 / (b + c), keeps it."""
    for b, c in [(10, 3), (9, 3), (11, 3), (12, 3), (3, 12), (0, 4), (0, 3), (5, 5)]:
        first = np.array([1.0] * b + [0.0] * c + [1.0] * 30)
        second = np.array([0.0] * b + [1.0] * c + [1.0] * 30)
        assert difference(first, second).differs == ((b - c) ** 2 / (b + c) > 1.959964**2), (b, c)


def test_what_cannot_be_known() -> None:
    alike = difference(np.ones(30), np.ones(30))
    assert not alike.differs and -0.15 < alike.low < 0 < alike.high < 0.15
    assert difference(np.ones(30), np.zeros(30)).high == 1
    one = mean(np.array([3.0]), np.array([2.0]))
    assert one == (1.5, -math.inf, math.inf) and not one.differs
