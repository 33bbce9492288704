"""How sure is a mean, and how sure is a difference on the same questions?

Answers that are right or wrong: a mean's interval is Wilson's (https://doi.org/10.1080/01621459.1927.10502953), that of
a paired difference Tango's, which inverts McNemar's test (https://doi.org/10.1002/(SICI)1097-0258(19980430)17:8
<891::AID-SIM780>3.0.CO;2-B). Both hold at 20 questions, and where all answers are alike.

Anything else: Student's t on the questions' values, for a difference on their differences, as in
https://arxiv.org/abs/2411.00640. What is measured for each byte is a ratio of sums; its variance is that of the
questions' residuals (Cochran, Sampling Techniques, section 6.4).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95  # how often an interval holds the truth
Values = NDArray[np.float64]


class Estimate(NamedTuple):
    """A figure, and the interval that holds the true one; that is without ends where nothing is known of it."""

    value: float
    low: float
    high: float

    @property
    def differs(self) -> bool:
        """Whether it is surely not zero, as far as the interval is sure."""
        return self.low > 0 or self.high < 0


def mean(values: Values, weights: Values | None = None, level: float = LEVEL) -> Estimate:
    """Estimate a mean over all questions of a kind from some.

    Args:
        values: of each question ``[n]``; with weights, a sum over what it has.
        weights: how much it has, such as bytes ``[n]``; then it is the mean for each byte.
        level: how sure the interval is.
    """
    if weights is None and _binary(values):
        return _wilson(values, level)
    return _student(values, np.ones(len(values)) if weights is None else weights, level)


def difference(first: Values, second: Values, weights: Values | None = None, level: float = LEVEL) -> Estimate:
    """Estimate how much larger the mean of one model is than that of another, asked the same questions.

    Args:
        first, second: the models' values of each question ``[n]``.
        weights: as in `mean`.
        level: how sure the interval is.
    """
    if weights is None and _binary(first) and _binary(second):
        return _tango(first, second, level)
    return _student(first - second, np.ones(len(first)) if weights is None else weights, level)


def _binary(values: Values) -> bool:
    return bool(np.isin(values, (0.0, 1.0)).all())


def _wilson(values: Values, level: float) -> Estimate:
    """Find the shares that are compatible with so many right answers."""
    n, p, z2 = len(values), float(values.mean()), _normal(level) ** 2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * p * (1 - p) / n + (z2 / (2 * n)) ** 2) / (1 + z2 / n)
    return Estimate(p, max(0.0, centre - half), min(1.0, centre + half))


def _student(values: Values, weights: Values, level: float) -> Estimate:
    """Estimate a ratio of sums; with weights of 1 a mean."""
    from scipy.stats import t

    n, total = len(values), float(weights.sum())
    ratio = float(values.sum()) / total
    if n < 2:
        return Estimate(ratio, -math.inf, math.inf)
    residuals = values - ratio * weights
    error = math.sqrt(n / (n - 1) * float((residuals**2).sum())) / total
    half = float(t.ppf((1 + level) / 2, n - 1)) * error
    return Estimate(ratio, ratio - half, ratio + half)


def _tango(first: Values, second: Values, level: float) -> Estimate:
    """Find the differences that a score test of paired shares doesn't reject."""
    from scipy.optimize import brentq

    n, z = len(first), _normal(level)
    b, c = float((first > second).sum()), float((first < second).sum())  # questions that one of the two has right
    found = (b - c) / n

    def score(delta: float) -> float:
        """How far what was found is from a true difference, in standard errors under it."""
        # q is the likeliest share of questions that only the second has right, if the difference is delta
        linear = (2 * n - b + c) * delta - b - c
        q = (math.sqrt(max(0.0, linear**2 + 8 * n * c * delta * (1 - delta))) - linear) / (4 * n)
        return (b - c - n * delta) / math.sqrt(max(n * (2 * q + delta * (1 - delta)), 1e-12))

    def end(target: float, low: float, high: float) -> float:
        function: Callable[[float], float] = lambda delta: score(delta) - target  # noqa: E731
        return float(brentq(function, low, high)) if function(low) * function(high) < 0 else math.copysign(1, -target)

    return Estimate(found, end(z, -1.0, found), end(-z, found, 1.0))


def _normal(level: float) -> float:
    from scipy.stats import norm

    return float(norm.ppf((1 + level) / 2))
