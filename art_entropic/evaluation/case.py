"""What is judged: a classifier on test points, in balls around them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from art_entropic._validate import check_points, check_radius, largest_distance, norm_of
from art_entropic.backends.errors import NoIntervalRuleError
from art_entropic.backends.registry import backend_for
from art_entropic.certificates import BEST, Certificates, certificates
from art_entropic.evaluation.target import Ball, Target
from art_entropic.guards import check_predictions, check_single_points
from art_entropic.measures import Interval, Measure, measure_of
from art_entropic.ops import Array


@dataclass(frozen=True, eq=False)
class Case:
    """A classifier that predicts by its logits, on test points.

    Attributes:
        target: the classifier; it is known whether it always says the same.
        x: points, (n, ...), float32, raw units.
        y: their classes, int64 (n,).
        balls: the perturbations, one for each radius.
        logits: at x, (n, nb_classes).
        right: bool (n,), right without an attack.
    """

    target: Target
    x: Array
    y: Array
    balls: tuple[Ball, ...]
    logits: Array
    right: Array

    @classmethod
    def of(
        cls,
        classifier: Any,
        x: Any,
        y: Any,
        radii: Sequence[float],
        norm: float | str,
        *,
        measure: str | Measure | None = None,
        sources: Mapping[str, Any] | None = None,
    ) -> Case:
        """The arguments that every evaluation shares, checked.

        Raises:
            TypeError: not a supported estimator, or `sources` is no mapping.
            ValueError: an argument is out of its range, or the classifier predicts by something else than its logits.
        """
        known = None if measure is None else measure_of(measure)
        sources = _check_sources(classifier, sources)
        # Whatever is attacked is told first by name where it is no classifier.
        backend_for(classifier)
        x, y = check_points(classifier, x, y)
        target = Target.of(classifier, known, sources, x.shape[1:])
        balls = tuple(_check_ball(eps, norm, target) for eps in radii)
        for one in (target, *target.sources.values()):
            check_predictions(one.backend, x)
            check_single_points(one.backend, x)
        logits = target.logits(x)
        target = replace(target, is_deterministic=np.array_equal(logits, target.logits(x)))
        return cls(target, x, y, balls, logits, target.predict(x) == y)

    def certificates(self, ball: Ball, method: str = BEST) -> tuple[Certificates | None, str | None]:
        """The points whose prediction no perturbation of the ball can change; or None, and why that is not known."""
        classifier, reach, norm = self.target.classifier, ball.eps, ball.norm
        if norm == 1:
            norm = 2.0  # whose ball contains that of L1
        if classifier.clip_values is not None:
            # Nothing can move farther.
            reach = min(reach, largest_distance(classifier.clip_values, self.target.input_shape, norm))
        try:
            return certificates(classifier, self.x, self.y, reach, norm, method), None
        except NoIntervalRuleError as error:
            return None, str(error)

    @property
    def is_trained_for_bounds(self) -> bool:
        """Whether nothing proved is a result, and not what anybody would expect."""
        return isinstance(self.target.measure, Interval)

    def certified(self, ball: Ball, method: str = BEST) -> Array | None:
        """Bool (n,), those points; None where that is not known."""
        found, _ = self.certificates(ball, method)
        return None if found is None else found.proved


def check_certificates(certified: Array | None, broken: Array, what: str) -> None:
    """Raise RuntimeError where an attack has broken a certified point."""
    if certified is None:
        return
    both = np.flatnonzero(certified & broken)
    if len(both):
        raise RuntimeError(
            f"{len(both)} points are certified and yet broken by {what}, the first at index {both[0]}: "
            "an interval rule is not sound, or the model changed in between; please report this"
        )


def _check_sources(classifier: Any, sources: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if sources is not None and not isinstance(sources, Mapping):
        raise TypeError(f"`transfer_from` must map names to classifiers, got {type(sources).__name__}")
    for name, source in (sources or {}).items():
        Target.of(source)  # raises TypeError for what is not a classifier
        wish, got = ((tuple(one.input_shape), int(one.nb_classes)) for one in (classifier, source))
        if wish != got:
            shapes = f"{wish}, got {got} for {name!r}"
            raise ValueError(f"`transfer_from` must share the input shape and classes of `classifier`, {shapes}")
    return sources or {}


def _check_ball(eps: Any, norm: Any, target: Target) -> Ball:
    exponent = norm_of(norm)
    return Ball(check_radius(eps, exponent, target.classifier.clip_values, target.input_shape), exponent)
