"""A classifier under attack, and the ball around its points."""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from art_entropic._validate import norm_name
from art_entropic.backends.errors import NoIntervalRuleError
from art_entropic.backends.protocol import AttackObjective, Backend
from art_entropic.backends.registry import backend_for, framework_module, framework_of
from art_entropic.measures import Channel, Interval, Measure
from art_entropic.ops import Array

if TYPE_CHECKING:
    from art_entropic.evaluation.attacked import Attackable, Attacked


# Float32 rounding of x + d, relative to the range of a feature.
INPUT_ROUNDING = 1e-6
# And at most, relative to eps.
BUDGET_ROUNDING = 2e-4
# Features of a batch: on a processor the layers of a small network then stay in its caches.
BATCH_FEATURES = {"processor": 2**17, "accelerator": 2**21}


@dataclass(frozen=True)
class Ball:
    """The perturbations an adversary may choose from: ||d||_norm <= eps, in the units of the raw input."""

    eps: float
    norm: float

    @property
    def norm_name(self) -> str:
        return norm_name(self.norm)


@dataclass(frozen=True, eq=False)
class Target:
    """A classifier under attack.

    Attributes:
        head: what is attacked in place of the classifier's own logits; None attacks these.
        is_deterministic: it answers the same each time.
        measure: the information measure that it was retrained with, where that is known.
        sources: other classifiers, for transfer.
        input_shape: of one point; the classifier may leave lengths open.
    """

    classifier: Any
    backend: Backend
    framework: str
    input_shape: tuple[int, ...]
    is_deterministic: bool = True
    measure: Measure | None = None
    sources: Mapping[str, Target] = field(default_factory=dict)
    head: Attackable | None = None
    _twins: dict[str, Attacked] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        classifier: Any,
        measure: Measure | None = None,
        sources: Mapping[str, Any] | None = None,
        input_shape: tuple[int, ...] | None = None,
    ) -> Target:
        """`input_shape` is that of the points where the classifier leaves lengths open; None where it leaves none."""
        backend = backend_for(classifier)
        shape = tuple(classifier.input_shape) if input_shape is None else input_shape
        others = {name: cls.of(source, input_shape=shape) for name, source in (sources or {}).items()}
        return cls(classifier, backend, framework_of(classifier), shape, measure=measure, sources=others)

    @property
    def nb_classes(self) -> int:
        return int(self.classifier.nb_classes)

    @property
    def known_measure(self) -> Measure:
        """The measure it was retrained with; where nobody said, `interval` if its layers have rules, else `channel`."""
        if self.measure is not None:
            return self.measure
        try:
            self.backend.intervals(np.zeros((1, *self.input_shape), np.float32), 0.0)
        except NoIntervalRuleError:
            return Channel()
        return Interval()

    @property
    def attackable(self) -> Attackable:
        return self.backend if self.head is None else self.head

    def logits(self, x: Array) -> Array:
        """(n, nb_classes), also for no point at all."""
        return self.attackable.logits(x) if len(x) else np.zeros((0, self.nb_classes), np.float32)

    def predict(self, x: Array) -> Array:
        """Classes, int64 (n,); -1 where a logit is not finite."""
        logits = self.logits(x)
        return np.where(np.isfinite(logits).all(axis=1), np.argmax(logits, axis=1), -1)

    def twin(self, name: str, objective: AttackObjective) -> Attacked:
        """The second estimator with that objective, built once for each name."""
        from art_entropic.evaluation.attacked import Attacked

        if name not in self._twins:
            self._twins[name] = Attacked(
                self.attackable, objective, self.batch_size, self.input_shape, remembers=self.is_deterministic
            )
        return self._twins[name]

    @property
    def forward_passes(self) -> int:
        """Points that attacks have sent through the network so far."""
        return sum(twin.forward_passes for twin in self._twins.values())

    @property
    def batch_size(self) -> int:
        """Of an attack."""
        features = BATCH_FEATURES["accelerator" if self.backend.is_accelerated else "processor"]
        return int(np.clip(features // max(1, math.prod(self.input_shape)), 16, 512))

    def untouched(self, seed: int) -> contextlib.AbstractContextManager[None]:
        """The classifier leaves as it came; inside, its framework draws from that seed where it can be told."""
        return framework_module(self.framework).untouched(self.classifier, seed)


@contextlib.contextmanager
def numpy_seeded(seed: int) -> Iterator[None]:
    """ART draws from the global generators of NumPy and Python: seeded inside, afterwards as they were."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    np.random.seed(seed)
    random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)


def within_ball(x: Array, x_adv: Array, ball: Ball, clip_values: Any) -> Array:
    """Which candidates are finite, in the budget and in the clip range, up to float32 rounding; bool (n,).

    Args:
        x: clean points, (n, ...).
        x_adv: candidates of the same shape.
        clip_values: (lowest, highest), or None.
    """
    n = len(x)
    low, high = (np.float64(-np.inf), np.float64(np.inf)) if clip_values is None else map(np.asarray, clip_values)
    finite = np.isfinite(x_adv).reshape(n, -1).all(axis=1)
    x_adv = np.where(np.isfinite(x_adv), x_adv, x)
    # A feature cannot come nearer than float32 has numbers. In another unit that is another distance.
    steps = 2 * np.spacing(np.maximum(np.abs(x), np.abs(x_adv)).astype(np.float32)).astype(np.float64)
    # Attacks compute in shares of the range, which excuses no more than a small share of eps.
    share = BUDGET_ROUNDING * ball.eps / math.prod(x.shape[1:]) ** (1 / ball.norm)
    slack = np.broadcast_to(np.minimum(INPUT_ROUNDING * np.asarray(high - low, np.float64), share), x.shape[1:])
    outside = np.maximum(low - x_adv, x_adv - high) > np.maximum(steps, slack)
    moved = np.maximum(np.abs(x_adv.astype(np.float64) - x) - steps, 0.0).reshape(n, -1)
    allowed = ball.eps + np.linalg.norm(slack.reshape(-1), ord=ball.norm)
    return np.asarray(finite & ~outside.reshape(n, -1).any(axis=1) & (np.linalg.norm(moved, ord=ball.norm, axis=1) <= allowed))


def distances(x: Array, x_adv: Array, norm: float) -> Array:
    """||x_adv - x||_norm of each point, float64 (n,); infinite where a feature is NaN."""
    difference = np.nan_to_num(x_adv.astype(np.float64) - x, nan=np.inf).reshape(len(x), -1)
    return np.asarray(np.linalg.norm(difference, ord=norm, axis=1))
