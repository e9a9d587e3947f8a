"""Settings of a retraining that fit the problem at hand, so that nobody has to tune them.

What stands here was measured: the ablation in BENCHMARKS.md has a row for each choice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from art_entropic._validate import check_eps, choice, finite, non_negative
from art_entropic.backends import Array, Backend, NoIntervalRuleError
from art_entropic.information import MEASURES, Layers
from art_entropic.objective import EntropicObjective, Schedule

AUTOMATIC = ("interval", "channel")
# Below this share of the range of the data the first-order measure does at least as well on piecewise linear networks too.
LARGE_EPS = 0.05
# So near that hardly any unit of a piecewise linear network changes its side, in shares of the range of the data.
_NEARBY = 1e-5


@dataclass(frozen=True)
class Wishes:
    """What the caller asked for; None where the measure's own default shall hold."""

    eps: float
    clip_values: Any
    beta: float | None = None
    k: float | None = None
    resolution: float | None = None
    relative: bool = False
    layers: Layers = "all"
    eps_factor: float | None = None
    warmup: float = 0.0
    ramp: float | None = None

    def settle(self, measure: str) -> tuple[Schedule, EntropicObjective]:
        """Schedule and objective for a measure.

        Raises:
            TypeError, ValueError: a wish is out of its range, or not to be had with this measure.
        """
        row = MEASURES[choice("measure", measure, MEASURES)]
        eps = check_eps(self.eps, self.clip_values)
        factor = row.eps_factor if self.eps_factor is None else finite("eps_factor", self.eps_factor)
        if factor <= 0:
            raise ValueError(f"`eps_factor` must be positive, got {factor!r}")
        schedule = Schedule(
            eps=eps * factor,
            k=row.k if self.k is None else _weight_of_worst_case(self.k, measure),
            beta=row.beta if self.beta is None else _weight_of_information(self.beta, measure),
            warmup=self.warmup,
            ramp=row.ramp if self.ramp is None else self.ramp,
        )
        resolution = row.resolution if self.resolution is None else self.resolution
        return schedule, EntropicObjective(measure, resolution, self.layers, self.relative)


def _weight_of_worst_case(k: Any, measure: str) -> float:
    value = non_negative("k", k)
    if value > 1:
        raise ValueError(f"`k` must be in [0, 1], got {k!r}")
    if value > 0 and not MEASURES[measure].worst_case:
        able = ", ".join(repr(name) for name, other in MEASURES.items() if other.worst_case)
        raise ValueError(f"`k` > 0 needs a measure with worst-case logits ({able}), got k={k!r} with {measure!r}")
    return value


def _weight_of_information(beta: Any, measure: str) -> float:
    return finite("beta", beta) if MEASURES[measure].signed else non_negative("beta", beta)


def measure_for(backend: Backend, x: Array, eps: float) -> str:
    """The measure that suits a network and a radius.

    The worst case by intervals wants piecewise linear activations, for which its rules are exact unit by unit, and a radius at
    which the first order no longer tells what happens. The first order wants a network that is smooth or a small radius.

    Args:
        x: some points of the data, (n, ...), float32, raw units.
        eps: Linf radius, in the units of x.
    Returns:
        A name of AUTOMATIC.
    """
    if eps < LARGE_EPS * _range(backend, x) or not piecewise_linear(backend, x):
        return "channel"
    try:
        backend.intervals(x[:1], eps)
    except NoIntervalRuleError:
        return "channel"
    return "interval"


def piecewise_linear(backend: Backend, x: Array) -> bool:
    """Whether the logits are piecewise linear in x: then the gradients at two points of one piece agree in every digit.

    Args:
        x: some points of the data, (n, ...), float32, raw units.
    """
    rng = np.random.default_rng(0)
    step = np.float32(_NEARBY * _range(backend, x))
    nearby = x + step * rng.choice(np.array([-1, 1], np.float32), x.shape)
    weights = rng.normal(size=backend.logits(x).shape).astype(np.float32)
    here, there = (backend.input_gradient(points, weights).reshape(len(x), -1) for points in (x, nearby))
    return bool(np.mean(np.all(here == there, axis=1)) > 0.5)


def _range(backend: Backend, x: Array) -> float:
    clip_values = backend.estimator.clip_values
    if clip_values is None:
        return float(np.ptp(x)) or 1.0
    return float(np.max(np.asarray(clip_values[1]) - np.asarray(clip_values[0])))
