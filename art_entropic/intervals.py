"""Interval arithmetic, written once over `Ops`: the rules that do not depend on how a framework spells a layer.

Every rule maps a box that contains all inputs to a box that contains all outputs (Moore 1966; for networks Gowal et al. 2018,
arXiv 1810.12715). Bounds are exact in real arithmetic; floating point adds an error of a few ulps.
"""

from __future__ import annotations

from collections.abc import Callable

from art_entropic.ops import Box, Ops, Tensor

# Where the smooth activations that are not monotone have their only minimum. They are flat there, so an error of 1e-9 in
# the place is one of 1e-18 in the value.
SILU_ARGMIN = -1.2784645427610738
GELU_ARGMIN = -0.7517915246935645
GELU_TANH_ARGMIN = -0.7524614220710163
MISH_ARGMIN = -1.1924312145154952

Map = Callable[[Tensor], Tensor]


def ball(ops: Ops, x: Tensor, eps: Tensor, clip_values: tuple[Tensor, Tensor] | None) -> Box:
    """The part of the Linf ball of radius eps around x that lies within clip_values; x itself, shape (n, ...).

    >>> ball(ops, np.array([[0.0, 0.5]]), 0.25, (0.0, 1.0))
    Box(lower=array([[0.  , 0.25]]), upper=array([[0.25, 0.75]]))
    """
    if clip_values is None:
        return Box(x - eps, x + eps)
    low, high = clip_values
    # A point outside the range is no point of the threat model; the box still has to hold x itself.
    return Box(
        ops.minimum(ops.maximum(x - eps, low), x),
        ops.maximum(ops.minimum(x + eps, high), x),
    )


# Keeps the gradient of a square root at 0 finite; as a width it is below every rounding.
_TINY = 1e-30


def within_ellipsoid(ops: Ops, box: Box, centre: Tensor, square: Map, spread: Tensor) -> Box:
    """The part of a box around an affine map W t + b that t = t0 + r d can reach, |d|_2 <= 1: exact for each unit alone.

    The L2 ball of radius eps around x is such a set, and so is what normalisation by channel makes of it.

    Args:
        box: around the map over a box around all t; of the shape (n, ...), as all that follows.
        centre: the map at t0, W t0 + b.
        square: the map without its constant and with the squares of its coefficients, W**2 t.
        spread: r, how far each feature may go, >= 0, of the shape of t, or of one of its points for all.
    Source: the maximum of W r d over |d|_2 <= 1 is the norm of its row, sqrt(sum_j W_ij^2 r_j^2) (Cauchy-Schwarz).

    >>> weight = np.array([[3.0], [-4.0]])
    >>> box = Box(np.array([[-7.0]]), np.array([[6.0]]))  # the ball of radius 1, but one feature ends at 2/3
    >>> within_ellipsoid(ops, box, np.zeros((1, 1)), lambda t: t @ weight**2, np.ones((1, 2)))
    Box(lower=array([[-5.]]), upper=array([[5.]]))
    """
    radius = ops.sqrt(square(spread * spread) + _TINY)
    return Box(ops.maximum(box.lower, centre - radius), ops.minimum(box.upper, centre + radius))


def monotone(f: Map, box: Box) -> Box:
    """A map that never decreases in any of its inputs: ReLU, sigmoid, max and average pooling, reshape, padding.

    >>> monotone(np.exp, Box(np.array([0.0]), np.array([0.0])))
    Box(lower=array([1.]), upper=array([1.]))
    """
    return Box(f(box.lower), f(box.upper))


def valley(ops: Ops, f: Map, argmin: float, box: Box) -> Box:
    """An element-wise map that falls up to `argmin` and rises after it: SiLU, GELU, abs, square.

    >>> valley(ops, np.square, 0.0, Box(np.array([-1.0, 1.0]), np.array([2.0, 3.0])))
    Box(lower=array([0., 1.]), upper=array([4., 9.]))
    """
    place = ops.minimum(ops.maximum(box.lower * 0.0 + argmin, box.lower), box.upper)
    return Box(f(place), ops.maximum(f(box.lower), f(box.upper)))


def affine(signed: Map, magnitude: Map, box: Box) -> Box:
    """An affine map W x + b.

    Args:
        signed: the map itself, W x + b.
        magnitude: the map without its constant and with the absolute value of its coefficients, |W| x.

    >>> weight = np.array([[1.0], [-2.0]])
    >>> affine(lambda x: x @ weight, lambda x: x @ np.abs(weight), Box(np.array([[0.0, 0.0]]), np.array([[1.0, 1.0]])))
    Box(lower=array([[-2.]]), upper=array([[1.]]))
    """
    radius = magnitude((box.upper - box.lower) * 0.5)
    centre = signed((box.upper + box.lower) * 0.5)
    return Box(centre - radius, centre + radius)


def subtract(box: Box, other: Box) -> Box:
    return Box(box.lower - other.upper, box.upper - other.lower)


def scale(ops: Ops, box: Box, factor: Tensor) -> Box:
    """Product with constants of either sign, broadcast.

    >>> subtract(Box(np.array([1.0]), np.array([2.0])), Box(np.array([0.0]), np.array([5.0])))
    Box(lower=array([-4.]), upper=array([2.]))

    >>> scale(ops, Box(np.array([1.0]), np.array([2.0])), -3.0)
    Box(lower=array([-6.]), upper=array([-3.]))
    """
    one, two = box.lower * factor, box.upper * factor
    return Box(ops.minimum(one, two), ops.maximum(one, two))


def multiply(ops: Ops, box: Box, other: Box) -> Box:
    """Product of two boxes (gates, squeeze and excitation).

    >>> multiply(ops, Box(np.array([-1.0]), np.array([2.0])), Box(np.array([-3.0]), np.array([1.0])))
    Box(lower=array([-6.]), upper=array([3.]))
    """
    corners = [a * b for a in box for b in other]
    lower, upper = corners[0], corners[0]
    for corner in corners[1:]:
        lower, upper = ops.minimum(lower, corner), ops.maximum(upper, corner)
    return Box(lower, upper)


def standardise(ops: Ops, box: Box, mean: Map, count: int, epsilon: float) -> Box:
    """(x - mean) / sqrt(variance + epsilon) over the normalised axes, without gain and bias (layer and group norm).

    Args:
        mean: averages over the normalised axes and keeps them with length 1.
        count: number of units averaged.
    Returns:
        A sound box: the numerator is affine and bounded exactly, the variance by the squares of the numerator's box, and no
        unit exceeds sqrt(count - 1) whatever the input (Samuelson's inequality).

    >>> mean = lambda x: x.mean(axis=1, keepdims=True)
    >>> standardise(ops, Box(np.array([[-1.0, 1.0]]), np.array([[-1.0, 1.0]])), mean, count=2, epsilon=0.0)
    Box(lower=array([[-1.,  1.]]), upper=array([[-1.,  1.]]))
    """
    centre, radius = (box.upper + box.lower) * 0.5, (box.upper - box.lower) * 0.5
    radius = radius * (1.0 - 2.0 / count) + mean(radius)
    centre = centre - mean(centre)
    low, high = centre - radius, centre + radius
    nearest = ops.maximum(ops.maximum(low, -high), low * 0.0)
    farthest = ops.maximum(ops.abs(low), ops.abs(high))
    deviation_low = ops.sqrt(mean(nearest * nearest) + epsilon)
    deviation_high = ops.sqrt(mean(farthest * farthest) + epsilon)
    limit = low * 0.0 + float(count - 1) ** 0.5
    lower = ops.where(low >= 0, low / deviation_high, low / deviation_low)
    upper = ops.where(high >= 0, high / deviation_low, high / deviation_high)
    return Box(ops.maximum(lower, -limit), ops.minimum(upper, limit))


def worst_case_logits(box: Box, y: Tensor) -> Tensor:
    """The logits of the ball that are worst for the label: its lower bound, every other class's upper bound.

    Args:
        box: around the logits, (n, nb_classes).
        y: one-hot labels, (n, nb_classes).
    Source: Gowal et al. 2018, arXiv 1810.12715, eq. (9).

    >>> worst_case_logits(Box(np.array([[2.0, 0.0]]), np.array([[3.0, 1.0]])), np.array([[1.0, 0.0]]))
    array([[2., 1.]])
    """
    return y * box.lower + (1.0 - y) * box.upper


def certified(ops: Ops, box: Box, y: Tensor) -> Tensor:
    """1.0 where no point of the ball can change the decision, else 0.0; shape (n,).

    Args:
        box: around the logits, (n, nb_classes).
        y: one-hot labels, (n, nb_classes).

    >>> certified(ops, Box(np.array([[2.0, 0.0]]), np.array([[3.0, 1.0]])), np.array([[1.0, 0.0]]))
    array([1.])
    """
    label = ops.sum(y * box.lower, axis=1)
    rivals = ops.where(y > 0.5, label[:, None] - 1.0, box.upper)
    return ops.cast_like(label > ops.max(rivals, axis=1), label)
