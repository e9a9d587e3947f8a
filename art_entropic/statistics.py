"""Intervals for what was counted, and comparisons of what was counted on the same points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from art_entropic.records import Accuracy

RESAMPLES = 9999
PROFILE_RESAMPLES = 999
LEAST_RESAMPLED = 10  # of ten normal points the percentile bootstrap covers the mean in 90 %
RESAMPLED_AT_ONCE = 20_000  # numbers, so that memory does not grow with the points


def accuracy(correct: np.ndarray | int, n: int | None = None) -> Accuracy:
    """A share with its Wilson 95 % interval.

    Args:
        correct: which of the points are right, bool of shape (n,); or how many, with `n` given.
        n: number of points, > 0. Taken from the array where one is given.
    Raises:
        ValueError: no point at all, or more right ones than points.
    Source: Wilson 1927, through SciPy.

    >>> found = accuracy(np.array([True, True, False, True]))
    >>> found.value, round(found.low, 3), round(found.high, 3)
    (0.75, 0.301, 0.954)
    """
    from scipy.stats import binomtest

    if isinstance(correct, np.ndarray):
        _check_points("correct", correct)
        n = len(correct) if n is None else n
    if n is None or n < 1:
        raise ValueError(f"`n` must be at least 1, got {n!r}")
    count = int(np.sum(correct))
    if not 0 <= count <= n:
        raise ValueError(f"`correct` must lie between 0 and n = {n}, got {count}")
    interval = binomtest(count, n).proportion_ci(0.95, "wilson")
    return Accuracy(correct=count, n=int(n), low=max(0.0, float(interval.low)), high=min(1.0, float(interval.high)))


def bootstrap_interval(values: np.ndarray, *, median: bool = False, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean over points, or of the median, by the percentile bootstrap of SciPy.

    Args:
        values: one number a point, (n,).
    Returns:
        (low, high); both NaN for fewer than ten points, where it covers the mean too seldom; both the value where all are the
        same or one is not finite.

    >>> bootstrap_interval(np.full(10, 2.0))
    (2.0, 2.0)
    """
    from scipy.stats import bootstrap

    statistic = np.median if median else np.mean
    if len(values) < LEAST_RESAMPLED:
        return math.nan, math.nan
    if not np.isfinite(values).all() or np.ptp(values) == 0:
        same = float(statistic(values))
        return same, same
    batch = max(1, RESAMPLED_AT_ONCE // len(values))
    found = bootstrap(
        (values,), statistic, n_resamples=PROFILE_RESAMPLES, method="percentile", rng=np.random.default_rng(seed), batch=batch
    ).confidence_interval
    return float(found.low), float(found.high)


@dataclass(frozen=True)
class Difference:
    """How two defences differ on the same points.

    Attributes:
        n: number of points.
        only_first, only_second: points that one gets right and the other does not, over all seeds.
        value: accuracy of the first less that of the second.
        low, high: 95 % interval of it, over the choice of points.
        p: of as large a difference, were they equal; two-sided and exact; NaN with several seeds, whose points are the same.
    """

    n: int
    only_first: int
    only_second: int
    value: float
    low: float
    high: float
    p: float

    @property
    def sign(self) -> int:
        """1 where the first is ahead, -1 where the second is, 0 where they are level.

        Ahead is who has the interval on its side, and for one seed the exact test at 5 % too: from few points that differ the
        bootstrap promises too much.
        """
        if self.p > 0.05:
            return 0
        return (self.low > 0) - (self.high < 0)


def paired_difference(first: np.ndarray, second: np.ndarray, seed: int = 0) -> Difference:
    """Compare two defences point by point.

    Args:
        first, second: which points each gets right, bool (n,), in the same order; or (n_seeds, n), one row a training.
        seed: of the bootstrap.
    Raises:
        ValueError: not two arrays of the same shape.
    Source: exact McNemar test (McNemar 1947), percentile bootstrap of the paired difference, both through SciPy.

    >>> found = paired_difference(np.array([True] * 8), np.array([True] * 4 + [False] * 4))
    >>> found.value, found.only_first, found.only_second, round(found.p, 3)
    (0.5, 4, 0, 0.125)
    """
    from scipy.stats import bootstrap

    for name, points in (("first", first), ("second", second)):
        if points.dtype != bool or points.ndim not in (1, 2) or not points.size:
            raise ValueError(f"`{name}` must be bool of shape (n,) or (n_seeds, n), got {points.dtype} of shape {points.shape}")
    if first.shape != second.shape:
        raise ValueError(f"`second` must have the shape of `first`, {first.shape}, got {second.shape}")
    each = np.atleast_2d(first).astype(np.int64) - np.atleast_2d(second).astype(np.int64)
    difference = each.mean(axis=0)
    value = float(difference.mean())
    # The bootstrap has nothing to draw from where all points agree: half a point more in each cell (Agresti & Min 2005).
    reach = 1.96 / (len(difference) + 2)
    low, high = max(-1.0, value - reach), min(1.0, value + reach)
    if np.ptp(difference):
        interval = bootstrap(
            (difference,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(seed), batch=500
        ).confidence_interval
        low, high = float(interval.low), float(interval.high)
    only_first, only_second = int((each > 0).sum()), int((each < 0).sum())
    p = mcnemar(only_first, only_second) if len(each) == 1 else math.nan
    return Difference(len(difference), only_first, only_second, value, low, high, p)


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p of a difference between paired shares, from the points on which they disagree.

    >>> mcnemar(8, 0)
    0.0078125
    """
    from scipy.stats import binomtest

    apart = only_first + only_second
    return float(binomtest(only_first, apart).pvalue) if apart else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number, each test at its rank: of m, the k-th smallest counts m - k + 1 times (Holm 1979).

    >>> holm([0.04, 0.01, 0.03])
    [0.06, 0.03, 0.06]
    """
    order = np.argsort(p_values, kind="stable")
    steps = np.arange(len(p_values), 0, -1) * np.asarray(p_values, np.float64)[order]
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return [float(p) for p in corrected]


def _check_points(name: str, points: np.ndarray) -> None:
    if points.dtype != bool or points.ndim != 1:
        raise ValueError(f"`{name}` must be bool of shape (n,), got {points.dtype} of shape {points.shape}")
