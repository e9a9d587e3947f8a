"""What attacks climb: losses over `Ops`, for every framework."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from art_entropic.backends.protocol import AttackObjective, Batch, View
from art_entropic.evaluation.target import Ball
from art_entropic.measures import Measure
from art_entropic.ops import Ops, Tensor

_TINY = 1e-12


def _true_logit(ops: Ops, z: Tensor, y: Tensor) -> Tensor:
    return ops.sum(ops.where(y == 1, z, 0 * z), axis=1)


def cross_entropy(ops: Ops, z: Tensor, y: Tensor) -> Tensor:
    """-log softmax(z)_y, (n,)."""
    return -_true_logit(ops, ops.log_softmax(z), y)


def margin(ops: Ops, z: Tensor, y: Tensor) -> Tensor:
    """max_{i != y} z_i - z_y, (n,): positive exactly where the prediction is wrong."""
    return ops.max(ops.where(y == 1, z - math.inf, z), axis=1) - _true_logit(ops, z, y)


def margin_to_rival(ops: Ops, z: Tensor, y: Tensor) -> Tensor:
    """z_t - z_y, (n,)."""
    rival = ops.sum(ops.where((y > 0) & (y < 1), z, 0 * z), axis=1)
    return rival - _true_logit(ops, z, y)


def dlr_to_rival(ops: Ops, z: Tensor, y: Tensor) -> Tensor:
    """(z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2), the targeted difference of logits ratio of Croce & Hein 2020, eq. (7)."""
    top = ops.largest(z, 4)
    return margin_to_rival(ops, z, y) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + _TINY)


Loss = Callable[[Ops, Tensor, Tensor], Tensor]
LOSSES: dict[str, Loss] = {
    "cross_entropy": cross_entropy,
    "margin": margin,
    "margin_to_rival": margin_to_rival,
    "dlr_to_rival": dlr_to_rival,
}


@dataclass(frozen=True)
class OfLogits:
    """An attack's objective that looks at the logits only."""

    loss: Loss

    def __call__(self, view: View, x: Tensor, y: Tensor, more: Tensor) -> tuple[Tensor, Tensor]:
        z = view.logits(x)
        return z, self.loss(view.ops, z, y)


def with_information(measure: Measure, weight: float, ball: Ball) -> AttackObjective:
    """Margin plus `weight` times the information, in nats, that the defence was trained to keep small.

    With a positive weight the attack looks where the defence lets perturbations through, with a negative one it walks where the
    defence believes itself safe. The measure is read as it was in training, at the box or the ball around the iterate.
    """

    def objective(view: View, x: Tensor, y: Tensor, more: Tensor) -> tuple[Tensor, Tensor]:
        ops = view.ops
        still = 0.0 * x
        batch = Batch(x, y, still, ops.sum(ops.flatten(still), axis=1) + 0.5)  # the middle of the posterior
        reading = measure.read(view, batch, ball.eps, ball.norm)
        return reading.logits, margin(ops, reading.logits, y) + weight * reading.information

    return objective


def with_features(layer: str) -> AttackObjective:
    """Margin plus how far a layer has moved from where the clean point put it, ||t(x') - t(x)|| / ||t(x)||."""

    def objective(view: View, x: Tensor, y: Tensor, more: Tensor) -> tuple[Tensor, Tensor]:
        ops = view.ops
        there = view.activations(x)
        here = view.activations(ops.reshape_like(more, x))
        (moved,) = (one.value for one in there.layers if one.name == layer)
        (clean,) = (one.value for one in here.layers if one.name == layer)
        shift, scale = (ops.sqrt(ops.sum(ops.flatten(t * t), axis=1) + _TINY) for t in (moved - clean, clean))
        return there.logits, margin(ops, there.logits, y) + shift / (scale + _TINY)

    return objective
