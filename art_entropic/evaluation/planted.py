"""A test of the attacks themselves: adversarial examples that are known to be there, because they were put there.

For each test point the last layer is replaced by a read-out with two classes that calls the point and many others of the ball
the first, and one corner of the ball the second. Features, preprocessing and whatever the defence does stay as they are. An
evaluation that does not find its way to such a corner cannot be believed when it finds nothing elsewhere.

Source: Zimmermann et al., "Increasing Confidence in Adversarial Robustness Evaluations" (NeurIPS 2022, arXiv 2206.13991)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from art_entropic.backends.errors import NoIntervalRuleError
from art_entropic.backends.protocol import Ascent, AttackObjective, Backend, View
from art_entropic.evaluation.attacks import ATTACKS, CannotRunError
from art_entropic.evaluation.attempt import Attempt
from art_entropic.evaluation.objectives import Loss, OfLogits
from art_entropic.evaluation.target import Ball, Target
from art_entropic.ops import Array, Tensor

INNER_POINTS = 200
# Inner points fill this share of the radius.
INNER_RADIUS = 0.95
RANDOM_TRIES = 200


class Planted(NamedTuple):
    """How a battery fared.

    Attributes:
        n: points with a planted adversarial example that none of 200 random points of the ball finds.
        found: how many of them the battery broke.
        by_chance: further points, whose planted example chance finds: they would ask too little.
    """

    n: int
    found: int
    by_chance: int


class _ReadOut:
    """Two classes, read out of one layer of a network.

    Attributes:
        weights: of the point under attack, (units + 1,), the constant last.
    """

    def __init__(self, backend: Backend, layer: str, estimator: Any) -> None:
        self._backend, self._layer, self.estimator = backend, layer, estimator
        self.weights: Array = np.zeros(1, np.float32)

    def features(self, x: Array) -> Array:
        return self._backend.activations(x)[self._layer].reshape(len(x), -1)

    def logits(self, x: Array, batch_size: int = 256) -> Array:
        score = self.features(x) @ self.weights[:-1] + self.weights[-1]
        return np.stack([-score, score], axis=1) / 2

    def input_gradient(self, x: Array, v: Array, batch_size: int = 256) -> Array:
        return self._weighed_logits(x, v, v).gradient

    @cached_property
    def _weighed_logits(self) -> Callable[[Array, Array, Array], Ascent]:
        return self._ascent(lambda ops, z, v: ops.sum(z * v, axis=1), 2)

    def ascent(self, objective: AttackObjective, nb_classes: int) -> Callable[[Array, Array, Array], Ascent]:
        if not isinstance(objective, OfLogits):
            raise CannotRunError("an attack on a planted example can climb a loss of the logits only")
        return self._ascent(objective.loss, nb_classes)

    def _ascent(self, loss: Loss, nb_classes: int) -> Callable[[Array, Array, Array], Ascent]:
        def planted(view: View, x: Tensor, y: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
            ops = view.ops
            (features,) = (one.value for one in view.activations(x).layers if one.name == self._layer)
            score = ops.sum(ops.flatten(features) * weights[:, :-1], axis=1) + weights[:, -1]
            signs = 1.0 - 2.0 * ops.cast_like(ops.one_hot(0 * score, 2), score)
            z = score[:, None] * signs / 2
            return z, loss(ops, z, y)

        ask = self._backend.ascent(planted, nb_classes)
        return lambda x, y, more: ask(x, y, np.tile(self.weights, (len(x), 1)))


@dataclass(eq=False)
class Plantation:
    """Planted adversarial examples, and attacks that look for them.

    Attributes:
        target: the classifier, with the read-out in place of its logits.
        points: those with an example that chance does not find, (n, ...).
        weights: of the read-out of each.
        by_chance: further points, whose example chance finds.
    """

    target: Target
    read_out: _ReadOut
    ball: Ball
    attacks: Sequence[str]
    seed: int
    points: list[Array] = field(default_factory=list)
    weights: list[Array] = field(default_factory=list)
    by_chance: int = 0

    @classmethod
    def of(cls, target: Target, x: Array, ball: Ball, attacks: Sequence[str], seed: int) -> Plantation:
        """See `find_planted`."""
        seeking = [name for name in attacks if ATTACKS[name].reads_logits_only]
        if not seeking:
            raise CannotRunError(f"no attack of these can look for a planted example, got {', '.join(attacks) or 'none'}")
        read_out = _read_out_of(target)
        planted = replace(target, classifier=read_out.estimator, head=read_out, sources={}, _twins={})
        plantation = cls(planted, read_out, ball, seeking, seed)
        rng = np.random.default_rng(seed)
        for point in x:
            plantation._plant(point, rng)
        if not plantation.n:
            raise CannotRunError("no ball has a corner that a linear read-out of the features tells from its other points")
        return plantation

    @property
    def n(self) -> int:
        return len(self.points)

    def _plant(self, point: Array, rng: np.random.Generator) -> None:
        clip_values = self.target.classifier.clip_values
        weights = _weights_at(self.read_out, point, self.ball, clip_values, rng)
        if weights is None:
            return
        self.read_out.weights = weights
        tries = _points_of_ball(rng, point, self.ball, clip_values, RANDOM_TRIES, self.ball.eps)
        if (self.target.predict(tries) != 0).any():
            self.by_chance += 1
            return
        self.points.append(point)
        self.weights.append(weights)

    def is_found(self, number: int) -> bool:
        """Whether an attack, one after another, breaks that point."""
        self.read_out.weights, x = self.weights[number], self.points[number][None]
        for name in self.attacks:
            try:
                tally = Attempt(name, self.target, x, np.zeros(1, np.int64), self.ball, self.seed).run_whole()
            except CannotRunError:
                continue
            if tally.broken[0]:
                return True
        return False


def find_planted(target: Target, x: Array, ball: Ball, attacks: Sequence[str], seed: int) -> Planted:
    """Plant one adversarial example for each point, and let attacks look for it, one after another.

    Args:
        target: the classifier.
        x: points, (n, ...), raw units.
        attacks: names of ATTACKS; those that cannot run, or that look at more than logits, are left out.
    Raises:
        CannotRunError: the layers of the network cannot be read, or nothing could be planted.
    """
    planted = Plantation.of(target, x, ball, attacks, seed)
    return Planted(planted.n, sum(planted.is_found(number) for number in range(planted.n)), planted.by_chance)


def _read_out_of(target: Target) -> _ReadOut:
    try:
        names = target.backend.layer_names()
    except NoIntervalRuleError as error:
        raise CannotRunError(f"the layers of the network cannot be read: {error}") from error
    kept = ("model", "clip_values", "channels_first", "input_shape", "device")
    facts = {name: getattr(target.classifier, name) for name in kept if hasattr(target.classifier, name)}
    estimator = SimpleNamespace(**facts, nb_classes=2)
    # The last layer below the logits; a network without one is read at the logits.
    return _ReadOut(target.backend, names[max(len(names) - 2, 0)], estimator)


def _weights_at(read_out: _ReadOut, point: Array, ball: Ball, clip_values: Any, rng: np.random.Generator) -> Array | None:
    """Weights that separate one corner of the ball from the point and from many inner points; None where there are none."""
    from sklearn.linear_model import LogisticRegression

    inner = _points_of_ball(rng, point, ball, clip_values, INNER_POINTS, INNER_RADIUS * ball.eps)
    (corner,) = _points_of_ball(rng, point, ball, clip_values, 1, ball.eps, corners=True)
    features = read_out.features(np.stack([point, *inner, corner])).astype(np.float64)
    mean, scale = features.mean(axis=0), features.std(axis=0)
    live = scale > 1e-7
    if not live.any():
        return None
    scaled = np.where(live, (features - mean) / np.where(live, scale, 1.0), 0.0)
    labels = np.arange(len(features)) == len(features) - 1
    direction = LogisticRegression(C=1e3, class_weight="balanced", max_iter=500).fit(scaled, labels).coef_[0]
    scores = scaled @ direction
    inside, outside = scores[:-1].max(), scores[-1]
    if outside - inside < 1e-4 * (np.abs(scores).max() + 1e-12):
        return None
    # Just below the corner: little else of the ball is on its side.
    threshold = outside - 0.1 * (outside - inside)
    weights = np.where(live, direction / np.where(live, scale, 1.0), 0.0)
    weights = np.append(weights, -(weights @ mean) - threshold) / (outside - inside)
    return np.asarray(weights, np.float32)


def _points_of_ball(
    rng: np.random.Generator, point: Array, ball: Ball, clip_values: Any, n: int, radius: float, *, corners: bool = False
) -> Array:
    """Random points around one, within `radius` of it and in the clip range, float32 (n, ...)."""
    shape = (n, *point.shape)
    if np.isinf(ball.norm):
        noise = rng.choice([-1.0, 1.0], shape) if corners else rng.uniform(-1, 1, shape)
    else:
        direction = rng.normal(size=shape).reshape(n, -1)
        size = np.linalg.norm(direction, ord=ball.norm, axis=1, keepdims=True)
        noise = (direction / size * (1.0 if corners else rng.uniform(size=(n, 1)))).reshape(shape)
    points = point[None] + radius * noise
    return np.asarray(points if clip_values is None else np.clip(points, *clip_values), np.float32)
