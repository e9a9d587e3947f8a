"""Equation (2): label information kept, perturbation information let through, and how they ramp up."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from art_entropic.backends.protocol import Batch, Controls, View
from art_entropic.intervals import certified
from art_entropic.measures import Measure
from art_entropic.ops import Box, Ops, Tensor


def cross_entropy(
    ops: Ops,
    logits: Tensor,
    y: Tensor,
    weight: Tensor | None = None,
    class_weights: Sequence[float] | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Mean cross-entropy in nats of logits against one-hot labels, a scalar.

    Args:
        logits: (n, nb_classes).
        y: one-hot, (n, nb_classes).
        weight: v, of each example, (n,), >= 0; None weighs all alike.
        class_weights: w, one for each class, >= 0; None weighs all alike.
        label_smoothing: s, the share of each label that is spread over all classes.
    Returns:
        - sum_i v_i sum_c w_c t_ic log softmax(z_i)_c / sum_i v_i w_{y_i}, with t = (1 - s) y + s / nb_classes. Where no example
        has a weight, the sum alone.
    Source: `torch.nn.CrossEntropyLoss`, for class weights and smoothing.

    >>> float(cross_entropy(ops, np.zeros((1, 4)), np.eye(4)[:1]).round(4))
    1.3863
    """
    target = y if label_smoothing == 0 else (1.0 - label_smoothing) * y + label_smoothing / int(y.shape[1])
    if weight is None and class_weights is None:
        return -ops.mean(ops.sum(target * ops.log_softmax(logits), axis=1))
    share = ops.sum(y, axis=1)
    if class_weights is not None:
        by_class = ops.constant(class_weights, like=y)
        target, share = target * by_class, ops.sum(y * by_class, axis=1)
    losses = -ops.sum(target * ops.log_softmax(logits), axis=1)
    if weight is not None:
        losses, share = losses * weight, share * weight
    total = ops.sum(share)
    return ops.sum(losses) / (total + ops.cast_like(total <= 0.0, total))


def hits(ops: Ops, logits: Tensor, y: Tensor) -> Tensor:
    """Share of points whose label has a larger logit than every other class; a scalar.

    >>> float(hits(ops, np.array([[2.0, 0.0], [0.0, 1.0], [3.0, 1.0]]), np.eye(2)[[0, 1, 1]]).round(4))
    0.6667
    """
    return ops.mean(certified(ops, Box(logits, logits), y))


# Means over examples that have weights.
WEIGHTED_TERMS = ("cross_entropy", "worst_case_cross_entropy")


def combined(terms: Mapping[str, Any], controls: Controls) -> Any:
    """Equation (2) from its terms: tensors of one step, or their means over many.

    loss = (1 - k) CE(z(x), y) + k CE(worst-case logits over the ball, y) + beta * information + penalty

    >>> combined({"cross_entropy": 1.0, "information": 2.0, "worst_case_cross_entropy": 3.0}, Controls(0.1, k=0.5, beta=0.25))
    2.5
    """
    loss = (1.0 - controls.k) * terms["cross_entropy"] + controls.beta * terms["information"]
    if "worst_case_cross_entropy" in terms:
        loss = loss + controls.k * terms["worst_case_cross_entropy"]
    return loss + terms["penalty"] if "penalty" in terms else loss


@dataclass(frozen=True)
class EntropicObjective:
    """The loss of entropic retraining as a function of one step, see `combined`.

    Args:
        measure: how the information is read, and of which share of each batch. A name in its `layers` that no layer has is an
            error of the first step.
        norm: of the ball, infinity or 2.
        class_weights, label_smoothing: of both cross-entropies, see `cross_entropy`.
    """

    measure: Measure
    class_weights: tuple[float, ...] | None = None
    label_smoothing: float = 0.0
    norm: float = math.inf

    def __call__(self, view: View, batch: Batch, controls: Controls) -> dict[str, Tensor]:
        """Scalar terms of the step: loss, cross_entropy, information (nats), accuracy; worst_case_cross_entropy where the
        measure knows worst-case logits, and certified_accuracy where these are bounds."""
        ops = view.ops
        share = self.measure.read_share
        batch, others = (batch, None) if share == 1.0 else _divided(ops, batch, share)
        reading = self.measure.read(view, batch, controls.eps, self.norm)
        logits, y, weight = reading.logits, batch.y, batch.weight
        if others is not None:
            logits, y = ops.concatenate(logits, view.logits(others.x)), ops.concatenate(y, others.y)
            weight = None if weight is None else ops.concatenate(weight, others.weight)
        terms = {
            "cross_entropy": self._cross_entropy(ops, logits, y, weight),
            "information": ops.mean(reading.information),
            "accuracy": hits(ops, logits, y),
        }
        if reading.worst is not None:
            terms["worst_case_cross_entropy"] = self._cross_entropy(ops, reading.worst, batch.y, batch.weight)
        if reading.box is not None:
            terms["certified_accuracy"] = ops.mean(certified(ops, reading.box, batch.y))
        penalty = view.penalty()
        if penalty is not None:
            terms["penalty"] = penalty
        return {"loss": combined(terms, controls), **terms}

    def _cross_entropy(self, ops: Ops, logits: Tensor, y: Tensor, weight: Tensor | None) -> Tensor:
        return cross_entropy(ops, logits, y, weight, self.class_weights, self.label_smoothing)


def _divided(ops: Ops, batch: Batch, share: float) -> tuple[Batch, Batch]:
    both = [(None, None) if values is None else ops.parts(values, share) for values in batch]
    return Batch(*(first for first, _ in both)), Batch(*(rest for _, rest in both))


def natural_objective(view: View, batch: Batch, controls: Controls) -> dict[str, Tensor]:
    """Plain cross-entropy, the step that every cost is compared with."""
    logits = view.logits(batch.x)
    loss = cross_entropy(view.ops, logits, batch.y)
    return {"loss": loss, "accuracy": hits(view.ops, logits, batch.y)}
