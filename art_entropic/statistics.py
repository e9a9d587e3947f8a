"""Intervals for what was counted."""

from __future__ import annotations

import numpy as np

from art_entropic.records import Accuracy


def accuracy(correct: np.ndarray | int, n: int | None = None) -> Accuracy:
    """A share with its Wilson 95 % interval.

    Args:
        correct: which of the points are right, bool of shape (n,); or how many, with `n` given.
        n: number of points, > 0. Taken from the array where one is given.
    Raises:
        ValueError: no point at all, or more right ones than points.
    Source: Wilson 1927, through statsmodels.
    """
    from statsmodels.stats.proportion import proportion_confint

    if isinstance(correct, np.ndarray):
        if correct.dtype != bool or correct.ndim != 1:
            raise ValueError(f"`correct` must be bool of shape (n,), got {correct.dtype} of shape {correct.shape}")
        n = len(correct) if n is None else n
    if n is None or n < 1:
        raise ValueError(f"`n` must be at least 1, got {n!r}")
    count = int(np.sum(correct))
    if not 0 <= count <= n:
        raise ValueError(f"`correct` must lie between 0 and n = {n}, got {count}")
    low, high = proportion_confint(count, n, alpha=0.05, method="wilson")
    return Accuracy(correct=count, n=int(n), low=max(0.0, float(low)), high=min(1.0, float(high)))
