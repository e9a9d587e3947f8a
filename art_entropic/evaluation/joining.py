"""One evaluation of the shards of its points."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, chain
from typing import Any

import msgspec
import numpy as np

from art_entropic.evaluation.cascade import median
from art_entropic.ops import Array
from art_entropic.records import Accuracy, AttackedExample, AttackOutcome, CurvePoint, Findings, PointsRecord, pack, unpack
from art_entropic.statistics import accuracy


def join_findings(parts: Sequence[Findings], n_gallery: int) -> Findings:
    """Findings of the same evaluation on several sets of points, as those on all of the points.

    Nothing is averaged: points stand behind one another, counts are added, and intervals and medians are taken anew from them.

    Args:
        parts: in the order of their points, of one network, battery, ball and radii of the curve.
        n_gallery: number of examples to keep, as each part did.
    Returns:
        The indices of the examples are those among all points; the seconds are the sum.
    Raises:
        ValueError: there is no part, or one was not evaluated as the first one was.
    """
    _check_alike(parts)
    first = parts[0]
    sizes = [part.clean.n for part in parts]
    certified = any(part.certified is not None for part in parts)
    points = _joined_points([part.points for part in parts], sizes)
    outcomes = zip(*(part.attacks for part in parts), strict=True)
    distances = [[*chain.from_iterable(found)] for found in zip(*(part.distances for part in parts), strict=True)]
    return Findings(
        clean=_added([part.clean for part in parts]),
        robust=_added([part.robust for part in parts]),
        certified=accuracy(unpack(points.certified, sum(sizes))) if certified and points.certified is not None else None,
        certified_reason=None if certified else first.certified_reason,
        attacks=[_joined_outcome(*one) for one in zip(outcomes, distances, strict=True)],
        distances=distances,
        curve=[
            CurvePoint(eps=points[0].eps, robust=_added([point.robust for point in points]))
            for points in zip(*(part.curve for part in parts), strict=True)
        ],
        points=points,
        examples=_joined_gallery([part.examples for part in parts], sizes, n_gallery),
        seconds=math.fsum(part.seconds for part in parts),
    )


# What findings must share to be joined.
_LIKENESS: dict[str, Callable[[Findings], Any]] = {
    "the attacks": lambda part: [one.attack for one in part.attacks],
    "the radii": lambda part: [point.eps for point in part.curve],
    "a certificate": lambda part: part.points.certified is not None,
    "no certificate because": lambda part: part.certified_reason if part.points.certified is None else None,
    "the points broken by": lambda part: sorted(part.points.broken_by),
}


def _check_alike(parts: Sequence[Findings]) -> None:
    if not parts:
        raise ValueError("`parts` must hold the findings on at least one set of points, got none")
    for number, part in enumerate(parts):
        for what, read in _LIKENESS.items():
            wish, got = read(parts[0]), read(part)
            if wish != got:
                raise ValueError(
                    f"`parts` must be of one evaluation, got {what} {got!r} in part {number}, {wish!r} in the first"
                )


def _added(shares: Sequence[Accuracy]) -> Accuracy:
    return accuracy(sum(share.correct for share in shares), sum(share.n for share in shares))


def _joined_outcome(outcomes: Sequence[AttackOutcome], distances: Sequence[float]) -> AttackOutcome:
    """One attack on all points: it failed where it failed on some of them."""
    return AttackOutcome(
        attack=outcomes[0].attack,
        attacked=sum(one.attacked for one in outcomes),
        broken=sum(one.broken for one in outcomes),
        seconds=math.fsum(one.seconds for one in outcomes),
        queries=sum(one.queries for one in outcomes),
        error=_each_once(one.error for one in outcomes),
        skipped=_each_once(one.skipped for one in outcomes),
        distance=median(distances),
    )


def _each_once(messages: Iterable[str | None]) -> str | None:
    return "; ".join(dict.fromkeys(message for message in messages if message)) or None


def _joined_points(parts: Sequence[PointsRecord], sizes: Sequence[int]) -> PointsRecord:
    def joined(texts: Iterable[str]) -> str:
        # Bits of a part end anywhere in a byte, so the next part's cannot simply follow.
        return pack(np.concatenate([unpack(text, n) for text, n in zip(texts, sizes, strict=True)]))

    certified = [part.certified for part in parts if part.certified is not None]
    return PointsRecord(
        clean=joined(part.clean for part in parts),
        robust=joined(part.robust for part in parts),
        certified=joined(certified) if certified else None,
        certified_by=_joined_methods(parts, sizes),
        broken_by={name: joined(part.broken_by[name] for part in parts) for name in parts[0].broken_by},
    )


def _joined_methods(parts: Sequence[PointsRecord], sizes: Sequence[int]) -> dict[str, str]:
    """A method that was not worth running on some part proved nothing there."""
    methods = dict.fromkeys(method for part in parts for method in part.certified_by)

    def proved(part: PointsRecord, method: str, n: int) -> Array:
        return unpack(part.certified_by[method], n) if method in part.certified_by else np.zeros(n, bool)

    return {
        method: pack(np.concatenate([proved(part, method, n) for part, n in zip(parts, sizes, strict=True)]))
        for method in methods
    }


def _joined_gallery(parts: Sequence[Sequence[AttackedExample]], sizes: Sequence[int], n_gallery: int) -> list[AttackedExample]:
    """As `attacked_examples` chooses: the first that fell of each class, which is the first of its part too."""
    first: dict[int, AttackedExample] = {}
    for examples, before in zip(parts, accumulate((0, *sizes[:-1])), strict=True):
        for example in examples:
            first.setdefault(example.label, msgspec.structs.replace(example, index=before + example.index))
    return [first[label] for label in sorted(first)][:n_gallery]
