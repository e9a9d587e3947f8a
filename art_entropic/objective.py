"""Equation (2): label information kept, perturbation information let through, and how they ramp up."""

from __future__ import annotations

from dataclasses import dataclass

from art_entropic._validate import choice, finite
from art_entropic.backends import Batch, Controls, Ops, Tensor, View
from art_entropic.information import MEASURES
from art_entropic.intervals import certified, worst_case_logits


def cross_entropy(ops: Ops, logits: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy in nats of logits (n, nb_classes) against one-hot labels y (n, nb_classes); a scalar."""
    return -ops.mean(ops.sum(y * ops.log_softmax(logits), axis=1))


def hits(ops: Ops, logits: Tensor, y: Tensor) -> Tensor:
    """Share of points whose label has the largest logit; a scalar."""
    label = ops.sum(y * logits, axis=1)
    return ops.mean(ops.cast_like(label >= ops.max(logits, axis=1), logits))


@dataclass(frozen=True)
class EntropicObjective:
    """The loss of entropic retraining as a function of one step.

    loss = (1 - k) CE(z(x), y) + k CE(worst-case logits over the ball, y) + beta * information

    Args:
        measure: key of MEASURES, how the information is read.
        resolution: tau of the read-out noise, in the scale of the units (`interval`) or of the margin (`channel`).
    """

    measure: str
    resolution: float

    def __post_init__(self) -> None:
        choice("measure", self.measure, MEASURES)
        if finite("resolution", self.resolution) <= 0:
            raise ValueError(f"`resolution` must be positive, got {self.resolution!r}")

    def __call__(self, view: View, batch: Batch, controls: Controls) -> dict[str, Tensor]:
        """Scalar terms of the step: loss, cross_entropy, information (nats), accuracy, and where the measure bounds the
        logits worst_case_cross_entropy and certified_accuracy."""
        ops = view.ops
        reading = MEASURES[self.measure].read(view, batch, controls.eps, self.resolution)
        terms = {
            "cross_entropy": cross_entropy(ops, reading.logits, batch.y),
            "information": ops.mean(reading.information),
            "accuracy": hits(ops, reading.logits, batch.y),
        }
        loss = (1.0 - controls.k) * terms["cross_entropy"] + controls.beta * terms["information"]
        if reading.box is not None:
            worst = worst_case_logits(reading.box, batch.y)
            terms["worst_case_cross_entropy"] = cross_entropy(ops, worst, batch.y)
            terms["certified_accuracy"] = ops.mean(certified(ops, reading.box, batch.y))
            loss = loss + controls.k * terms["worst_case_cross_entropy"]
        return {"loss": loss, **terms}


def natural_objective(view: View, batch: Batch, controls: Controls) -> dict[str, Tensor]:
    """Plain cross-entropy, the step that every cost is compared with."""
    logits = view.logits(batch.x)
    loss = cross_entropy(view.ops, logits, batch.y)
    return {"loss": loss, "accuracy": hits(view.ops, logits, batch.y)}


@dataclass(frozen=True)
class Schedule:
    """How eps, k and beta grow from 0 to their full value.

    Args:
        eps, k, beta: full values.
        warmup: share of the retraining that stays at 0, in [0, 1].
        ramp: share of the retraining after it over which they grow linearly, in [0, 1]; full strength from there on.
    """

    eps: float
    k: float
    beta: float
    warmup: float = 0.0
    ramp: float = 0.5

    def __post_init__(self) -> None:
        for name in ("warmup", "ramp"):
            value = finite(name, getattr(self, name))
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"`{name}` must be a share of the retraining in [0, 1], got {value!r}")
        if self.warmup + self.ramp > 1.0:
            raise ValueError(f"`warmup` + `ramp` must not exceed 1, got {self.warmup!r} + {self.ramp!r}")

    def strength(self, progress: float) -> float:
        """Share of the full values, in [0, 1], at `progress` in [0, 1] of the retraining."""
        if progress <= self.warmup:
            return 0.0 if self.warmup or self.ramp else 1.0
        # The end of the ramp is reached up to rounding, so that an epoch that ends there counts as one at full strength.
        if progress >= self.warmup + self.ramp - 1e-9:
            return 1.0
        return (progress - self.warmup) / self.ramp

    def at(self, progress: float) -> Controls:
        """Controls at `progress` in [0, 1] of the retraining."""
        strength = self.strength(progress)
        return Controls(self.eps * strength, self.k * strength, self.beta * strength)

    def full(self) -> Controls:
        return Controls(self.eps, self.k, self.beta)
