"""Backward linear bounds, written once over `Ops`: a line below and a line above each nonlinearity on its box.

The forward pass of a network stays as it is. Its backward pass sends each coefficient of a nonlinearity to the line that bounds
it from below, min(A, 0) to the one above (CROWN: Zhang et al. 2018, arXiv 1811.00866; on interval boxes CROWN-IBP: Zhang et al.
2020, arXiv 1906.06316). What arrives at the input is a linear function below any combination of the logits. Here are the lines,
and what such a function is worth over a ball.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from art_entropic import intervals
from art_entropic.ops import Array, Box, Ops, Tensor

Map = Callable[[Tensor], Tensor]
# Of float32, relative to what a bound is computed from: what a sum of some thousand products may be off.
BOUNDS_ROUNDING = 1e-5
# A unit whose lines lie closer than this share of the widest ones' gives nothing that a bound of its own would better.
_NEGLIGIBLE = 0.01
# Into so many cells a box is cut to prove a line over it.
CELLS = 16
# Of float32: what the ends of a line may be off, relative to what it is computed from.
_ROUNDING = 2e-6
# Slopes are not told apart on a box that is narrower.
_NARROW = 1e-4


class Line(NamedTuple):
    """slope * z + offset, unit by unit."""

    slope: Tensor
    offset: Tensor

    def at(self, z: Tensor) -> Tensor:
        """The height of the line."""
        return self.slope * z + self.offset


class Lines(NamedTuple):
    """below(z) <= f(z) <= above(z) on the box of z, unit by unit."""

    below: Line
    above: Line

    def height(self, box: Box) -> Tensor:
        """How far the two lie apart in the middle of the box, >= 0."""
        middle = (box.lower + box.upper) * 0.5
        return self.above.at(middle) - self.below.at(middle)


class Curve(NamedTuple):
    """What is known of an element-wise nonlinearity that is continuous.

    Attributes:
        bend: `bend(distance)` is not below |f''| at any z that lies so far or farther from 0, and falls; None where f is made
            of straight pieces.
        kinks: where the slope jumps.
    """

    bend: Callable[[Ops, Tensor], Tensor] | None = None
    kinks: tuple[float, ...] = ()


def constant(ops: Ops, box: Box) -> Lines:
    """A box as two lines of slope 0: what any nonlinearity has."""
    return Lines(Line(box.lower * 0.0, box.lower), Line(box.lower * 0.0, box.upper))


def two_pieces(ops: Ops, box: Box, left: Tensor = 0.0) -> Lines:
    """Lines around max(z, left * z) with 0 <= left <= 1: ReLU and its leaky kin.

    Above is the chord. Below is the piece that encloses the smaller area.

    Args:
        box: of z, (n, ...).
        left: slope of the left piece, one number or broadcast.
    Source: Zhang et al. 2018, arXiv 1811.00866, section 3.3 and CROWN-Ada.

    >>> lines = two_pieces(ops, Box(np.array([-1.0]), np.array([3.0])))
    >>> lines.below.slope, lines.above.slope, lines.above.at(3.0).round(3)
    (array([1.]), array([0.75]), array([3.]))
    """
    below = ops.cast_like(box.upper + box.lower > 0, box.lower) * (1.0 - left) + left
    # Of a box on one side of 0 the chord is that piece: cut at 0, its formula says so.
    low, high = -ops.relu(-box.lower), ops.relu(box.upper)
    slope = (high - left * low) / (high - low + 1e-30)
    return Lines(Line(below, box.lower * 0.0), Line(slope, (left - slope) * low * (1.0 + _ROUNDING)))


def curved(ops: Ops, f: Map, box: Box, curve: Curve) -> Lines:
    """Lines around a continuous element-wise f, proved on a grid.

    Of a few slopes (the chord's, the tangent's in the middle, those of the half chords, 0) that one is taken whose line lies
    closest in the middle of the box. Its offset is the extreme of f(z) - slope * z at the ends of `CELLS` cells, moved by
    max |f''| * h**2 / 8, which is the most that it can differ between them.

    Args:
        f: the nonlinearity.
        box: of z, (n, ...), in the precision that f computes in.
        curve: its curvature and kinks.

    >>> lines = curved(ops, np.square, Box(np.array([0.0]), np.array([2.0])), Curve(lambda ops, z: z * 0.0 + 2.0))
    >>> bool(0.9 < lines.below.at(1.0)[0] <= 1.0 and 2.0 <= lines.above.at(1.0)[0] < 2.1)
    True
    """
    low, high = box
    width, middle = high - low, (low + high) * 0.5
    cell = width / CELLS
    at_low, at_middle, at_high = f(low), f(middle), f(high)
    safe = ops.maximum(width, low * 0.0 + _NARROW)
    slopes = [
        (at_high - at_low) / safe,
        (f(middle + cell) - f(middle - cell)) / (safe * (2.0 / CELLS)),
        (at_middle - at_low) / (safe * 0.5),
        (at_high - at_middle) / (safe * 0.5),
        low * 0.0,
    ]
    floors, ceilings, sag = _extremes(ops, f, box, curve, slopes)
    size = ops.maximum(ops.maximum(ops.abs(at_low), ops.abs(at_high)), ops.abs(at_middle))
    reach = ops.maximum(ops.abs(low), ops.abs(high))
    below, above = [], []
    for slope, floor, ceiling in zip(slopes, floors, ceilings, strict=True):
        slack = sag + _ROUNDING * (size + ops.abs(slope) * reach)
        below.append(Line(slope, floor - slack))
        above.append(Line(slope, ceiling + slack))
    return Lines(_best(ops, below, middle, 1.0), _best(ops, above, middle, -1.0))


def _extremes(ops: Ops, f: Map, box: Box, curve: Curve, slopes: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Of f(z) - slope * z on the grid, least and largest for each slope, and how far it may leave them between two points."""
    low, high = box
    cell = (high - low) / CELLS
    places = [low, high]
    sag = low * 0.0
    if curve.bend is not None:
        inner = [low + cell * float(number) for number in range(1, CELLS)]
        places = [low, *inner, high]
        for left, right in itertools.pairwise(places):
            nearest = ops.maximum(ops.maximum(left, -right), low * 0.0)
            sag = ops.maximum(sag, curve.bend(ops, nearest))
        sag = sag * cell * cell * 0.125
    places += [ops.minimum(ops.maximum(low * 0.0 + kink, low), high) for kink in curve.kinks]
    floors: list[Tensor] = []
    ceilings: list[Tensor] = []
    for place in places:
        value = f(place)
        levels = [value - slope * place for slope in slopes]
        floors = [ops.minimum(*pair) for pair in zip(floors, levels, strict=True)] if floors else levels
        ceilings = [ops.maximum(*pair) for pair in zip(ceilings, levels, strict=True)] if ceilings else levels
    return floors, ceilings, sag


def _best(ops: Ops, lines: Sequence[Line], middle: Tensor, sign: float) -> Line:
    """Unit by unit the line that lies highest in the middle (sign 1), or lowest (sign -1)."""
    best = lines[0]
    for line in lines[1:]:
        better = (line.at(middle) - best.at(middle)) * sign > 0
        best = Line(*(ops.where(better, one, other) for one, other in zip(line, best, strict=True)))
    return best


class Planes(NamedTuple):
    """slope * x + other_slope * y + offset[i]: below (0) and above (1) a product x * y."""

    slope: Tensor
    other_slope: Tensor
    offsets: tuple[Tensor, Tensor]


def product(box: Box, other: Box) -> Planes:
    """Planes around x * y: c_y x + c_x y - c_x c_y -+ r_x r_y, with centres c and radii r, the mean of McCormick's.

    Source: McCormick 1976, Math. Programming 10, 147-175.

    >>> product(Box(np.array([0.0]), np.array([2.0])), Box(np.array([-1.0]), np.array([1.0])))
    Planes(slope=array([0.]), other_slope=array([1.]), offsets=(array([-1.]), array([1.])))
    """
    (cx, rx), (cy, ry) = (((lower + upper) * 0.5, (upper - lower) * 0.5) for lower, upper in (box, other))
    return Planes(cy, cx, (-cx * cy - rx * ry, -cx * cy + rx * ry))


# --------------------------------------------------------------------------------------------- smooth nonlinearities


def _exp(ops: Ops, z: Tensor) -> Tensor:
    """exp(-z) for z >= 0, from the operations that formulas have."""
    # softmax of (0, -z) would cost more; 1 + expm1 is not among them.
    return 1.0 / (1.0 + z + z * z * 0.5 + z * z * z / 6.0 + z * z * z * z / 24.0)


def _logistic(scale: float, rate: float, peak: float) -> Callable[[Ops, Tensor], Tensor]:
    """min(peak, scale * exp(-rate * |z|))."""
    return lambda ops, z: ops.minimum(z * 0.0 + peak, scale * _exp(ops, rate * z))


def _flat(peak: float) -> Curve:
    return Curve(lambda ops, z: z * 0.0 + peak)


# By the name that both frameworks have for them. The peaks of |f''| are rounded up in the third digit; the tails are upper
# bounds that fall: |s''| <= s' <= exp(-|z|) for the logistic function s, and so on.
CURVES: dict[str, Curve] = {
    "sigmoid": Curve(_logistic(1.0, 1.0, 0.0963)),
    "tanh": Curve(_logistic(8.0, 2.0, 0.770)),
    "softplus": Curve(_logistic(1.0, 1.0, 0.2501)),
    "logsigmoid": Curve(_logistic(1.0, 1.0, 0.2501)),
    "silu": Curve(lambda ops, z: ops.minimum(z * 0.0 + 0.5001, (2.0 + z) * _exp(ops, z))),
    "gelu": Curve(lambda ops, z: ops.minimum(z * 0.0 + 0.7980, 0.3990 * (2.0 + z * z) * _exp(ops, z * z * 0.5))),
    "gelu_tanh": _flat(0.7990),
    "mish": _flat(0.6450),
    "erf": _flat(0.9690),
    "atan": _flat(0.6500),
    "softsign": Curve(lambda ops, z: z * 0.0 + 2.0, kinks=(0.0,)),
    "tanhshrink": Curve(_logistic(8.0, 2.0, 0.770)),
    "elu": Curve(lambda ops, z: z * 0.0 + 1.0, kinks=(0.0,)),
    "selu": Curve(lambda ops, z: z * 0.0 + 1.7582, kinks=(0.0,)),
    "hardswish": Curve(lambda ops, z: z * 0.0 + 0.3334, kinks=(-3.0, 3.0)),
    "square": _flat(2.0),
}


# ------------------------------------------------------------------------------------------- a linear function on a ball

_BISECTIONS = 20


def worst_shift(
    ops: Ops, gradient: Tensor, lower: Tensor, upper: Tensor, radius: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """d and c with g . d + c <= g . d' for all lower <= d' <= upper, and |d'|_2 <= radius where there is one; it is tight.

    Args:
        gradient: g, (n, m).
        lower, upper: (n, m), lower <= 0 <= upper.
        radius: of an L2 ball; None where there is none.
    Returns:
        d (n, m) and c (n,). No gradient has to flow through either into g: the minimum over the ball has that of g . d.

    On the L2 ball within a box, weak duality: for each lambda > 0 the minimum is not below
    sum_i min over d_i of (g_i d_i + lambda d_i**2) - lambda radius**2. A bisection finds the best lambda.

    >>> low, high = np.array([[-1.0, -1.0]]), np.array([[1.0, 1.0]])
    >>> worst_shift(ops, np.array([[3.0, -4.0]]), low, high)
    (array([[-1.,  1.]]), array([0.]))
    >>> shift, rest = worst_shift(ops, np.array([[3.0, -4.0]]), low, high, 1.0)
    >>> shift.round(6), rest.round(6)
    (array([[-0.6,  0.8]]), array([0.]))
    """
    corner = ops.where(gradient > 0, lower, upper)
    none = ops.sum(gradient * 0.0, axis=1)
    if radius is None:
        return corner, none
    tiny = none + 1e-30

    def dual(multiplier: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shift = ops.minimum(ops.maximum(-gradient / (2.0 * multiplier[:, None]), lower), upper)
        excess = ops.sum(shift * shift, axis=1) - radius * radius
        return ops.sum(gradient * shift, axis=1) + multiplier * excess, excess, shift

    # Where nothing is cut this is the answer; what is cut makes room for the others, and the multiplier falls.
    norm = ops.sqrt(ops.sum(gradient * gradient, axis=1))
    best = high = ops.maximum(norm / ops.maximum(2.0 * radius + none, tiny), tiny)
    largest, _, _ = dual(high)
    low = high * 1e-6
    for _ in range(_BISECTIONS):
        middle = ops.sqrt(low) * ops.sqrt(high)
        value, excess, _ = dual(middle)
        best, largest = ops.where(value > largest, middle, best), ops.maximum(value, largest)
        low, high = ops.where(excess < 0, low, middle), ops.where(excess < 0, middle, high)
    _, excess, shift = dual(best)
    on_box = ops.sum(gradient * corner, axis=1) >= largest
    return ops.where(on_box[:, None], corner, shift), ops.where(on_box, none, best * excess)


class Ball(NamedTuple):
    """The shifts d of a point that an adversary may choose from: lower <= d <= upper, and |d|_2 <= radius where it is finite.

    lower and upper are (n, m) with lower <= 0 <= upper, in float64.
    """

    lower: Array
    upper: Array
    radius: float = math.inf

    @classmethod
    def around(cls, x: Array, eps: float, norm: float, clip_values: tuple[Array, Array] | None) -> Ball:
        """The ball |d| <= eps around x, cut at clip_values.

        Args:
            x: (n, ...), raw units.
            norm: inf or 2.
        """
        from art_entropic.backends.numpy import ops

        box = intervals.ball(ops, np.asarray(x, np.float64), eps, clip_values)
        lower, upper = ((np.asarray(end, np.float64) - x).reshape(len(x), -1) for end in box)
        return cls(np.minimum(lower, 0.0), np.maximum(upper, 0.0), math.inf if math.isinf(norm) else float(eps))

    def rows(self, chosen: Array) -> Ball:
        return Ball(self.lower[chosen], self.upper[chosen], self.radius)

    def least(self, gradient: Array) -> Array:
        """min over d of gradient . d, (n,), or a bound below it that is as tight as the bisection of its multiplier.

        Args:
            gradient: (n, m).

        >>> unit = Ball(np.array([[-1.0, -1.0]]), np.array([[1.0, 1.0]]))
        >>> unit.least(np.array([[3.0, -4.0]])), unit._replace(radius=1.0).least(np.array([[3.0, -4.0]]))
        (array([-7.]), array([-5.]))
        """
        from art_entropic.backends.numpy import ops

        g = np.asarray(gradient, np.float64)
        shift, rest = worst_shift(ops, g, self.lower, self.upper, None if math.isinf(self.radius) else self.radius)
        least: Array = (g * shift).sum(axis=1) + rest
        return least

    def farthest(self, gradient: Array) -> Array:
        """A shift of the ball, (n, m), at which gradient . d is small: the corner of the box, drawn back into the L2 ball."""
        g = np.asarray(gradient, np.float64)
        if math.isinf(self.radius):
            return np.where(g > 0, self.lower, self.upper)
        size = np.maximum(np.linalg.norm(g, axis=1, keepdims=True), 1e-30)
        shift: Array = np.clip(-self.radius * g / size, self.lower, self.upper)
        return shift


class Plane(NamedTuple):
    """A linear function below a combination of units: value - gap + gradient . d at the data moved by d, float64."""

    value: Array  # (n,), the combination at the data
    terms: Array  # (n,), the sum of the sizes of its terms: they may cancel, their rounding does not
    gap: Array  # (n,), >= 0, how far the plane lies below it there
    gradient: Array  # (n, m), with respect to raw x

    def least(self, ball: Ball) -> Array:
        """What the combination is at least over the ball, (n,), less what float32 may have lost."""
        reach = np.maximum(-ball.lower, ball.upper)
        size = self.terms + self.gap + (np.abs(self.gradient) * reach).sum(axis=1)
        least: Array = self.value - self.gap + ball.least(self.gradient) - BOUNDS_ROUNDING * size
        return least

    def rows(self, chosen: Array | slice) -> Plane:
        return Plane(*(part[chosen] for part in self))


def wide_units(ops: Ops, lines: Lines, box: Box) -> Tensor:
    """1.0 for the units whose lines are so far apart that a smaller box would matter, else 0.0; (n, m)."""
    height = ops.flatten(lines.height(box))
    limit = ops.max(height, axis=1)[:, None] * _NEGLIGIBLE
    return ops.cast_like(height > limit, height) * ops.cast_like(height < math.inf, height)


def cut(box: Box, value: Array, wide: Array, below: Callable[[Array], Plane], ball: Ball, copies: int = 1) -> Box:
    """A box cut at the linear bounds of its wide units.

    Args:
        box: around the units, (n, m).
        value: at the data, (n, m).
        wide: bool (n, m).
        below: the plane of sum(coefficients * units), for coefficients (n, m).
        ball: of the inputs.
        copies: so many rows, one behind the other, are the same example, and share its units out among them.
    """
    counts, first = wide.sum(axis=1), np.arange(len(wide)) % copies
    order = np.argsort(~wide, axis=1, kind="stable")
    lower, upper = (np.array(end, np.float64) for end in box)
    for number in range(0, int(counts.max(initial=0)), copies):
        rows = np.flatnonzero(number + first < counts)
        units = order[rows, number + first[rows]]
        for sign in (1.0, -1.0):
            coefficients = np.zeros_like(value)
            coefficients[rows, units] = sign
            bound = sign * below(coefficients).rows(rows).least(ball.rows(rows))
            if sign > 0:
                lower[rows, units] = np.fmax(lower[rows, units], bound)
            else:
                upper[rows, units] = np.fmin(upper[rows, units], bound)
    if copies > 1:
        grouped = (-1, copies, value.shape[1])
        lower = lower.reshape(grouped).max(axis=1).repeat(copies, axis=0)
        upper = upper.reshape(grouped).min(axis=1).repeat(copies, axis=0)
    # The data lies in the box, whatever rounding says.
    return Box(np.minimum(lower, value), np.maximum(upper, value))
