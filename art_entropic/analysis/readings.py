"""Readings of a layer, each one row of PROFILE_MEASURES: what a perturbation, the data and the labels leave in it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from art_entropic import intervals
from art_entropic.analysis.network import BLOCK, Network, behind_input
from art_entropic.backends.numpy import ops
from art_entropic.information import L2Ball, coding_rate, first_order_loss_of_margin, gaussian_channels, transmitted_information
from art_entropic.ops import Array, Box

LEAST = 10  # points that such an estimate needs, and blocks that an interval needs
MOST_RIVALS = 9


class Chunk:
    """A few points of one network, with what was perturbed of them; each thing is computed when it is first asked for.

    Args:
        noise: uniform in the unit ball of the network's norm, (m, copies, ...).
    """

    def __init__(self, network: Network, x: Array, labels: Array, noise: Array) -> None:
        self.network, self.x, self._noise = network, x, noise
        self.labels = labels

    @cached_property
    def natural(self) -> dict[str, Array]:
        """Values of each layer, (m, ...)."""
        return self.network.activations(self.x)

    @cached_property
    def ball(self) -> Box:
        """The box around the points of the ball."""
        return intervals.ball(ops, self.x, self.network.eps, self.network.clip_values)

    @cached_property
    def boxes(self) -> dict[str, Box]:
        """Bounds of each layer over the ball.

        Raises:
            NoIntervalRuleError: an operation has no rule.
        """
        return behind_input(self.ball, self.network.boxes(self.x))

    @cached_property
    def random(self) -> dict[str, Array]:
        """Values of each layer at random points of the ball, (m, copies, units)."""
        lower, upper = (end[:, None] for end in self.ball)
        if math.isinf(self.network.norm):
            # Not by cutting: a random pixel is seldom at the end of its range.
            return self._copies(lower + (0.5 * self._noise + 0.5) * (upper - lower))
        return self._copies(np.clip(self.x[:, None] + self.network.eps * self._noise, lower, upper))

    @cached_property
    def towards_rivals(self) -> dict[str, Array]:
        """Values of each layer where a first-order adversary goes in the ball for each rival, and at x itself."""
        logits = self.logits.copy()
        rows = np.arange(len(logits))
        logits[rows, self.labels] = -np.inf
        rivals = np.argsort(-logits, axis=1)[:, : min(MOST_RIVALS, logits.shape[1] - 1)]
        ends = [self.x]
        for place in range(rivals.shape[1]):
            direction = np.zeros_like(logits, dtype=np.float32)
            direction[rows, self.labels], direction[rows, rivals[:, place]] = -1.0, 1.0
            gradient = self.network.input_gradient(self.x, direction)
            ends.append(self._end(gradient))
        return self._copies(np.stack(ends, axis=1))

    def _end(self, gradient: Array) -> Array:
        """The point of the ball to which a gradient leads."""
        if math.isinf(self.network.norm):
            return np.where(gradient > 0, self.ball.upper, np.where(gradient < 0, self.ball.lower, self.x))
        size = np.linalg.norm(gradient.reshape(len(gradient), -1), axis=1).reshape(-1, *([1] * (gradient.ndim - 1)))
        steps = self.network.eps * gradient / np.where(size > 0, size, 1.0)
        return np.clip(self.x + steps, self.ball.lower, self.ball.upper)

    @cached_property
    def logits(self) -> Array:
        return np.asarray(self.network.logits(self.x), np.float64)

    @cached_property
    def one_hot(self) -> Array:
        return np.asarray(ops.one_hot(self.labels, self.logits.shape[1]))

    def _copies(self, points: Array) -> dict[str, Array]:
        m, copies = points.shape[:2]
        values = self.network.activations(points.astype(np.float32).reshape(m * copies, *points.shape[2:]))
        return {layer: value.reshape(m, copies, -1) for layer, value in values.items()}


def _from_boxes(chunk: Chunk, layer: str, resolution: float) -> Array:
    box = chunk.boxes[layer]
    width = np.asarray(box.upper, np.float64) - np.asarray(box.lower, np.float64)
    width = np.where(np.isnan(width), np.inf, width)  # a bound that overflowed bounds nothing
    return _unless_constant(width, resolution, lambda: transmitted_information(ops, width, resolution=resolution))


def _from_variances(chunk: Chunk, layer: str, resolution: float) -> Array:
    variance = chunk.random[layer].astype(np.float64).var(axis=1)
    return _unless_constant(variance, resolution, lambda: gaussian_channels(ops, variance, resolution=resolution / 2))


def _from_noise(chunk: Chunk, layer: str, resolution: float) -> Array:
    return _joint(chunk.random[layer], resolution)


def _from_rivals(chunk: Chunk, layer: str, resolution: float) -> Array:
    return _joint(chunk.towards_rivals[layer], resolution)


def _joint(copies: Array, resolution: float) -> Array:
    shifts = copies.astype(np.float64) - copies.mean(axis=1, keepdims=True, dtype=np.float64)
    return _unless_constant(
        shifts, resolution, lambda: np.array([coding_rate(ops, one, resolution=resolution / 2) for one in shifts])
    )


def _unless_constant(signal: Array, resolution: float, read: Callable[[], Array]) -> Array:
    """A layer that is the same for all points has no scale to be read in: any signal at all tells infinitely much."""
    if resolution > 0:
        return read()
    return np.where(np.any(signal.reshape(len(signal), -1) != 0, axis=1), np.inf, 0.0)


def _information(values: Array, resolution: float) -> float:
    centred = values - values.mean(axis=0)
    return float(coding_rate(ops, centred, resolution=resolution / 2)) if resolution > 0 else 0.0


def _entropy(values: Array, resolution: float) -> float:
    if resolution == 0:
        return -math.inf
    noise: float = 0.5 * values.shape[1] * math.log(2 * math.pi * math.e * (resolution / 2) ** 2)
    return _information(values, resolution) + noise


def _kept_on_the_data(chunk: Chunk) -> Array:
    return _kept(chunk, chunk.logits)


def _kept_in_the_worst_case(chunk: Chunk) -> Array:
    box = Box(*(np.asarray(end, np.float64) for end in list(chunk.boxes.values())[-1]))
    return _kept(chunk, intervals.worst_case_logits(box, chunk.one_hot))


def _kept(chunk: Chunk, logits: Array) -> Array:
    """Label information by each point, H(Y) + log p(y); its mean is H(Y) - cross-entropy."""
    kept = np.asarray(chunk.network.label_entropy + (chunk.one_hot * ops.log_softmax(logits)).sum(axis=1))
    return np.where(np.isnan(kept), -np.inf, kept)


def _reach_of_the_gradient(chunk: Chunk) -> Array:
    rivals = np.where(chunk.one_hot > 0, -np.inf, chunk.logits)
    margin = chunk.logits[np.arange(len(rivals)), chunk.labels] - rivals.max(axis=1)
    direction = chunk.one_hot - ops.one_hot(rivals.argmax(axis=1), rivals.shape[1])
    gradient = chunk.network.input_gradient(chunk.x, direction.astype(np.float32)).astype(np.float64)
    ball = chunk.ball if math.isinf(chunk.network.norm) else L2Ball(chunk.x, chunk.network.eps)
    fall = first_order_loss_of_margin(ops, gradient, chunk.x, ball)
    return np.where(margin > 0, fall / np.where(margin > 0, margin, 1.0), np.nan)


@dataclass(frozen=True)
class ProfileMeasure:
    """One row of PROFILE_MEASURES; exactly one of the three ways to read is given.

    Attributes:
        of_layer: (chunk, layer, tau) -> nats of each point, (m,).
        of_block: (values (n, units), tau) -> nats of the block.
        of_network: chunk -> one number of each point, (m,), NaN where the point does not count.
        transmitted: the perturbation's information, of which the loss between layers is taken.
        needs_labels: has no meaning without `y`.
        median: over the points, where the mean would be that of the outliers.
        by_unit: grows with the number of units, so that layers are compared per unit.
    """

    title: str
    unit: str
    caveat: str
    of_layer: Callable[[Chunk, str, float], Array] | None = None
    of_block: Callable[[Array, float], float] | None = None
    of_network: Callable[[Chunk], Array] | None = None
    transmitted: bool = False
    needs_labels: bool = False
    median: bool = False
    by_unit: bool = True


PROFILE_MEASURES: dict[str, ProfileMeasure] = {
    "interval": ProfileMeasure(
        "perturbation, worst case (interval bound)",
        "nats",
        "an upper bound for every distribution of perturbations; loose where the boxes are, the more so the deeper the layer",
        of_layer=_from_boxes,
        transmitted=True,
    ),
    "gaussian": ProfileMeasure(
        "perturbation, random, units one by one",
        "nats",
        "uniform perturbations, not the worst ones; the variance of k copies is (k - 1) / k of the true one on average",
        of_layer=_from_variances,
        transmitted=True,
    ),
    "noise": ProfileMeasure(
        "perturbation, random, units together",
        "nats",
        "uniform perturbations, not the worst ones; k copies span k - 1 directions, so too low where more matter",
        of_layer=_from_noise,
        transmitted=True,
    ),
    "rivals": ProfileMeasure(
        "perturbation, aimed at the rivals (Gaussian)",
        "nats",
        "what a Gaussian signal with the covariance of ten points sends: x, and where one gradient step leads towards each of "
        "up to nine rivals. Above what the ten send by themselves, at most log 10; below what a stronger adversary sends",
        of_layer=_from_rivals,
        transmitted=True,
    ),
    "information": ProfileMeasure(
        "natural input (Gaussian)",
        "nats",
        f"of blocks of up to {BLOCK} points, which span one direction less, so too low in wide layers; exact for Gaussian ones",
        of_block=_information,
    ),
    "entropy": ProfileMeasure(
        "entropy of the layer (Gaussian)",
        "nats",
        "differential, of the layer with its read-out noise: it moves with the scale of the layer; biased as `information`",
        of_block=_entropy,
    ),
    "label": ProfileMeasure(
        "label information kept on the data",
        "nats",
        "a lower bound of the mutual information, H(Y) - cross-entropy: an overconfident network has too little",
        of_network=_kept_on_the_data,
        needs_labels=True,
    ),
    "label_worst": ProfileMeasure(
        "label information kept in the worst case",
        "nats",
        "the same under the interval bound: below 0 nothing is guaranteed",
        of_network=_kept_in_the_worst_case,
        needs_labels=True,
    ),
    "gradient": ProfileMeasure(
        "reach of the gradient: fall of the margin over the ball / margin",
        "ratio",
        "to first order, of points that are right: above 1 one gradient step can change the decision",
        of_network=_reach_of_the_gradient,
        median=True,
    ),
}
