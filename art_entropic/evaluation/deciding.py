"""Decisions of the checks: points are looked at part by part, and no further than to the decision.

A finding's n counts the points of which the outcome is known, with or without a look. The others could not change it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from art_entropic.ops import Array
from art_entropic.statistics import mcnemar

# A check calls for attention where chance alone would make it do so in less than this share of evaluations.
FALSE_ALARM_RATE = 0.01
# Which of the points of these indices show it, bool (len(points),).
Look = Callable[[Array], Array]


class Finding(NamedTuple):
    """What a check saw.

    Where a share is tolerated, a larger one is suspicious if an exact binomial test would see so many by chance in less than
    one of a hundred evaluations: a single point of few does not decide.

    Attributes:
        value: among the points that were looked at.
        n: how many these are.
    """

    suspicious: bool
    value: float
    threshold: float
    n: int


def above(value: float, threshold: float, n: int) -> Finding:
    return Finding(not value <= threshold, value, threshold, n)


@lru_cache
def alarming_count(n: int, tolerated: float) -> int:
    """The smallest count of n that is above the tolerated share by more than chance would explain; n + 1 where none is.

    >>> alarming_count(200, 0.01), alarming_count(20, 0.05)
    (7, 5)
    """
    from scipy.stats import binom

    counts = np.arange(n + 1)
    return int(np.sum(binom.sf(counts - 1, n, tolerated) >= FALSE_ALARM_RATE))


def more_often(count: int, n: int, tolerated: float) -> Finding:
    """Whether a share is above the tolerated one, by more than chance at this n would explain."""
    return Finding(count >= alarming_count(n, tolerated), count / max(1, n), tolerated, n)


def share_above(
    n: int, suspects: Array, look: Look, tolerated: float, *, part: int, known: int = 0, first_look: int | None = None
) -> Finding:
    """As `more_often` of all n points, with no more looks than that takes.

    Args:
        n: number of points; those outside `suspects` are known not to show it.
        suspects: indices of the points that may show it.
        part: how many are looked at together.
        known: how many suspects, the first ones, cost nothing to look at.
        first_look: so many suspects are enough if the rest, showing it as often as these, could not make the count alarming;
            for suspects of which the first ones are no less likely to show it than the others. None leaves the decision to
            counts alone.
    """
    alarming, count, looked = alarming_count(n, tolerated), 0, 0
    for points in _parts(suspects, known or first_look or part, part):
        left = len(suspects) - looked
        expected = left if first_look is None or not looked else left * count / looked
        if count >= alarming or count + expected < alarming:
            break
        count, looked = count + int(look(points).sum()), looked + len(points)
    seen = n - len(suspects) + looked
    return Finding(count >= alarming, count / max(1, seen), tolerated, seen)


def is_alarming(only_weak: int, only_strong: int) -> bool:
    """Whether the attack that ought to be weaker breaks more, beyond chance; exact McNemar test.

    >>> is_alarming(8, 0), is_alarming(8, 1), is_alarming(0, 8)
    (True, False, False)
    """
    return only_weak > only_strong and mcnemar(only_weak, only_strong) < FALSE_ALARM_RATE


def stronger(
    n: int, contested: Array, only_weak: Look, others: Array, only_strong: Look, *, part: int, known: int = 0
) -> Finding:
    """Whether the attack that ought to be weaker breaks more points; the value is by what share of them.

    Args:
        n: number of points; on those of neither set both attacks are known to agree.
        contested: indices of the points that the weaker attack alone may break.
        others: of those that the stronger attack alone may break.
        part: how many are looked at together.
        known: how many of the contested, the first ones, cost nothing to look at.
    """
    weak, strong, left_weak, left_strong = 0, 0, len(contested), len(others)

    def decided() -> bool:
        return not is_alarming(weak + left_weak, strong) or is_alarming(weak, strong + left_strong)

    for points in _parts(contested, known or part, part):
        if decided():
            break
        weak, left_weak = weak + int(only_weak(points).sum()), left_weak - len(points)
    for points in _parts(others, part, part):
        if decided():
            break
        strong, left_strong = strong + int(only_strong(points).sum()), left_strong - len(points)
    seen = n - left_weak - left_strong
    return Finding(is_alarming(weak, strong), (weak - strong) / max(1, seen), 0.0, seen)


def _parts(points: Array, first: int, size: int) -> Iterator[Array]:
    if len(points):
        yield points[:first]
    for start in range(first, len(points), size):
        yield points[start : start + size]
