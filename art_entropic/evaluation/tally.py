"""What has become of points under attack."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from art_entropic.ops import Array


class Cost(NamedTuple):
    """What an attack took."""

    seconds: float
    queries: int  # points sent through the network


@dataclass(frozen=True, eq=False)
class Tally:
    """What an attack has done to each of its points so far, (n,) each.

    Attributes:
        attacked: it was given the point.
        broken: a candidate was checked to lie in the ball and in the clip range, and the classifier gets it wrong.
        x_adv: candidates of x's shape, equal to x where the point stands.
        distance: of the nearest adversarial example that the attack showed, inside the ball or not, in the ball's norm; NaN
            without.
        queries: how often the network was asked about the point, as far as a query tells which points it is about.
        out_of_bounds: what the attack returned lies outside the ball or the clip range, or is not finite; it never counts.
        flat_at_start: the first gradient was zero in every feature, or not finite.
        gradients, flat, not_finite: how many gradients were taken, and how many of them were all zero, or not finite.
        errors: of rounds that failed; what the others found still counts.
    """

    attacked: Array
    broken: Array
    x_adv: Array
    distance: Array
    queries: Array
    out_of_bounds: Array
    flat_at_start: Array
    gradients: Array
    flat: Array
    not_finite: Array
    errors: list[str] = field(default_factory=list)

    @classmethod
    def on(cls, x: Array) -> Tally:
        """Nothing done yet."""
        n = len(x)
        no, zero = np.zeros((4, n), dtype=bool), np.zeros((4, n), np.int64)
        return cls(no[0], no[1], x.copy(), np.full(n, np.nan), zero[0], no[2], no[3], *zero[1:])

    def of(self, points: Array) -> Tally:
        """Of some of the points, in a copy."""
        return Tally(**{name: value[points] for name, value in vars(self).items() if name != "errors"})

    @property
    def distances(self) -> Array:
        """Of the points with an adversarial example, inside the ball or not."""
        return np.asarray(self.distance[np.isfinite(self.distance)])

    def fell(self, points: Array, x_adv: Array) -> None:
        """Points have fallen to these examples."""
        self.broken[points], self.x_adv[points] = True, x_adv

    def add(self, points: Array, part: Tally) -> None:
        """Count in what was done to some of the points, beside or after all that was done to them before."""
        self.fell(points[part.broken], part.x_adv[part.broken])
        self.distance[points] = np.fmin(self.distance[points], part.distance)
        self.attacked[points] |= part.attacked
        self.out_of_bounds[points] |= part.out_of_bounds
        first = self.gradients[points] == 0
        self.flat_at_start[points[first]] = part.flat_at_start[first]
        for name in ("queries", "gradients", "flat", "not_finite"):
            getattr(self, name)[points] += getattr(part, name)
