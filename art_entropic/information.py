"""The information measures, pure functions over `Ops`, written once for every framework.

All results are in nats. The quantity is the information that an adversary's perturbation sends into the network, read with
finite resolution: inspired by Sperl & Böttinger (arXiv 2008.03072), whose own loss term is not public and is not claimed here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from art_entropic.backends import Batch, Interval, LayerInterval, Ops, Tensor, View


def transmitted_information(ops: Ops, width: Tensor, *, resolution: float) -> Tensor:
    """Upper bound on the information a perturbation sends into a layer, sum_i log(1 + w_i / tau).

    Args:
        width: range of each unit over the perturbation ball, shape (n, ...), in the unit's own scale, >= 0.
        resolution: tau, the width of the uniform read-out noise, same scale, > 0.
    Returns:
        Nats per example, shape (n,). Zero where no unit moves. Differentiable in `width`.
    Raises:
        ValueError: `resolution` is not positive and finite.
    Source: uniform maximises differential entropy on an interval; entropy is subadditive (Cover & Thomas, 2nd ed., ch. 8).
    """
    if not 0.0 < resolution < float("inf"):
        raise ValueError(f"`resolution` must be positive and finite, got {resolution!r}")
    return ops.sum(ops.log1p(ops.flatten(width) / resolution), axis=1)


def mean_transmitted_information(ops: Ops, layers: Sequence[LayerInterval], *, resolution: float) -> Tensor:
    """The last term of equation (2): sum over layers of the mean over units of log(1 + w / tau).

    Args:
        layers: boxes around the pre-activations of each layer, (n, ...) each.
        resolution: tau, > 0.
    Returns:
        Nats per unit, summed over layers, per example, shape (n,).
    """
    total: Tensor = 0.0
    for layer in layers:
        half = layer.half_width
        units = math.prod(int(length) for length in half.shape[1:])
        # w / tau = (w / 2) / (tau / 2)
        total = total + transmitted_information(ops, half, resolution=resolution / 2) / units
    return total


def channel_information(ops: Ops, gradient: Tensor, *, eps: Tensor) -> Tensor:
    """Capacity of the linearised channel from a perturbation into the decision, 1/2 log(1 + (eps ||grad m||_1)^2).

    Args:
        gradient: of the margin m with respect to raw x, shape (n, ...).
        eps: Linf radius, in the units of x.
    Returns:
        Nats per example, shape (n,): the information through a Gaussian channel whose signal has the amplitude
        eps ||grad m||_1, the first-order half-width of the margin over the ball, and whose noise has unit variance.
    Source: capacity of the Gaussian channel (Cover & Thomas, 2nd ed., eq. 9.16).
    """
    amplitude = eps * ops.sum(ops.abs(ops.flatten(gradient)), axis=1)
    return 0.5 * ops.log1p(amplitude * amplitude)


def rival_direction(ops: Ops, logits: Tensor, y: Tensor, noise: Tensor) -> Tensor:
    """Weights v with sum(v * z) = z_y - z_j, the rival j drawn from the network's own posterior over the wrong classes.

    Args:
        logits: (n, nb_classes).
        y: one-hot labels, (n, nb_classes).
        noise: uniform on [0, 1), (n,): the draw, by inversion of the distribution function.
    Returns:
        (n, nb_classes): +1 at the label, -1 at the rival.
    """
    # Subtracting before the softmax, not dividing by 1 - p_y after it, stays exact where p_y rounds to 1.
    posterior = ops.softmax(logits - 1e9 * y)
    # Rounding may leave the last partial sum just below 1, and a draw must not fall behind it.
    draw = (noise * (1.0 - 1e-5))[:, None]
    index = ops.sum(ops.cast_like(ops.cumsum(posterior, axis=1) <= draw, y), axis=1)
    return y - ops.cast_like(ops.one_hot(index, int(y.shape[1])), y)


class Reading(NamedTuple):
    """What a measure says of one batch."""

    logits: Tensor  # (n, nb_classes), at the data
    box: Interval | None  # around the logits over the ball, where the measure bounds them
    information: Tensor  # (n,), nats


def interval(view: View, batch: Batch, eps: Tensor, resolution: float) -> Reading:
    """Equation (1): the worst case over the whole ball, by interval propagation."""
    propagation = view.propagate(batch.x, eps)
    information = mean_transmitted_information(view.ops, propagation.layers, resolution=resolution)
    return Reading(propagation.logits, propagation.box, information)


def channel(view: View, batch: Batch, eps: Tensor, resolution: float) -> Reading:
    """Equation (1) linearised at a random point of the ball, for the margin against one likely rival."""
    ops = view.ops
    logits = view.logits(batch.x)
    box = view.ball(batch.x, eps)
    point = ops.minimum(ops.maximum(batch.x + eps * batch.ball_noise, box.lower), box.upper)
    _, gradient = view.input_gradient(point, lambda z: rival_direction(ops, z, batch.y, batch.class_noise))
    return Reading(logits, None, channel_information(ops, gradient / resolution, eps=eps))


@dataclass(frozen=True)
class Measure:
    """One row of MEASURES: how to read the information, and the defaults of equation (2) that suit it."""

    title: str
    read: Callable[[View, Batch, Tensor, float], Reading]
    certifies: bool  # bounds the logits, so k > 0 and certified accuracy are possible
    beta: float
    k: float
    resolution: float
    ramp: float


MEASURES: dict[str, Measure] = {
    "interval": Measure(
        "worst case, by interval propagation", interval, certifies=True, beta=0.1, k=0.5, resolution=1.0, ramp=0.8
    ),
    "channel": Measure(
        "first-order channel into the decision", channel, certifies=False, beta=1.5, k=0.0, resolution=1.0, ramp=0.2
    ),
}
