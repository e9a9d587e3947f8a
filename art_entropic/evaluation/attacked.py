"""A classifier as ART's attacks see it: one ART estimator for every framework, over a `Backend`.

It answers a gradient and a loss at the same point with one pass, compiled where the framework compiles, does not ask the
network what it has just answered, and watches the path of an attack: ART's attacks return where they stopped, not where they
first succeeded."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
from art.estimators import BaseEstimator, LossGradientsMixin, NeuralNetworkMixin
from art.estimators.classification.classifier import ClassGradientsMixin, ClassifierMixin

from art_entropic.backends.protocol import Ascent, AttackObjective
from art_entropic.evaluation.tally import Tally
from art_entropic.ops import Array

# Square asks for a point where it stood, where it stands, and where it might go.
MEMORY = 3
Succeeds = Callable[[Array, Array], Array]


class Trail:
    """The way of one batch of points through an attack.

    Args:
        x: where it begins, (n, ...).
        y: classes, int64 (n,).
        succeeds: (indices, candidates) -> bool, whether each candidate is an adversarial example for that point. Asked once a
            point looks broken.
        more: what the attack's objective knows of each point beside its class, (n, m).
    Attributes:
        tally: what has become of the points on the way; of a fallen one `x_adv` is the first adversarial example.
    """

    def __init__(self, x: Array, y: Array, succeeds: Succeeds, more: Array | None = None) -> None:
        n = len(x)
        self.tally, self._y, self._succeeds = Tally.on(x), y, succeeds
        self.more = np.zeros((n, 0), np.float32) if more is None else more
        self._values = np.zeros(n, np.float32)
        self._gradient = np.zeros_like(x)
        self._at: Array | None = None
        self._asked: Array | None = None
        self._right = np.arange(n)

    def __len__(self) -> int:
        return len(self.tally.broken)

    def points_of(self, n: int) -> Array | None:
        """The points that a query of n is about: all, or those that were right when all were last asked; None where unknown.

        Should an attack ask something else with as many points, nothing false can come of it: whatever falls is verified.
        """
        if n == len(self):
            return np.arange(n)
        return self._right if n == len(self._right) else None

    def unknown(self, x: Array, labels: Array) -> Array:
        """Indices of the points at which neither value nor gradient is known. A fallen point is asked nothing more."""
        standing = ~self.tally.broken
        if self._at is not None and self._asked is not None:
            standing &= _differ(x, self._at) | _differ(labels, self._asked)
        return np.flatnonzero(standing)

    def learn(self, index: Array, x: Array, labels: Array, values: Array, gradient: Array) -> None:
        """Keep what was answered at x; a point that has fallen in between has nothing left to climb."""
        flat = ~gradient.reshape(len(index), -1).any(axis=1)
        not_finite = ~np.isfinite(gradient).reshape(len(index), -1).all(axis=1)
        tally = self.tally
        first = tally.gradients[index] == 0
        tally.flat_at_start[index[first]] = (flat | not_finite)[first]
        tally.gradients[index] += 1
        tally.flat[index] += flat
        tally.not_finite[index] += not_finite
        self._at, self._asked = x.copy(), labels.copy()
        self._values[index], self._gradient[index] = values, _scaled(gradient)
        self._gradient[tally.broken] = 0.0
        # ART's APGD stops a batch in which every value is 0, be it that of a point that stands and has lost its precision.
        self._values[self._values == 0] = np.finfo(np.float32).tiny
        self._values[tally.broken] = 0.0 if tally.broken.all() else 1.0

    def known(self) -> tuple[Array, Array]:
        """Value and gradient of each point where it was last asked."""
        return self._values.copy(), self._gradient.copy()

    def see(self, index: Array, x: Array, logits: Array) -> None:
        """Note which of these points fall at x, (m, ...), where the network answered `logits`."""
        wrong = (np.argmax(logits, axis=1) != self._y[index]) | ~np.isfinite(logits).all(axis=1)
        if len(index) == len(self):
            self._right = np.flatnonzero(~wrong)
        suspects = np.flatnonzero(wrong & ~self.tally.broken[index])
        if not len(suspects):
            return
        sure = suspects[self._succeeds(index[suspects], x[suspects])]
        self.tally.fell(index[sure], x[sure])


def _scaled(gradient: Array) -> Array:
    """Each gradient with a largest entry of 1, finite, so that none drowns in what an attack adds to its norm."""
    clean = np.where(np.isfinite(gradient), gradient, np.float32(0))
    largest = np.abs(clean).reshape(len(clean), -1).max(axis=1).reshape(-1, *[1] * (clean.ndim - 1))
    return np.asarray(clean / np.where(largest > 0, largest, 1))


def _differ(a: Array, b: Array) -> Array:
    result: Array = (a != b).reshape(len(a), -1).any(axis=1)
    return result


class Attackable(Protocol):
    """What attacks ask of a network: the part of `Backend` that a head of another kind can answer too."""

    @property
    def estimator(self) -> Any: ...

    def logits(self, x: Array, batch_size: int = 256) -> Array: ...

    def input_gradient(self, x: Array, v: Array, batch_size: int = 256) -> Array: ...

    def ascent(self, objective: AttackObjective, nb_classes: int) -> Callable[[Array, Array, Array], Ascent]: ...


class Attacked(ClassGradientsMixin, LossGradientsMixin, ClassifierMixin, NeuralNetworkMixin, BaseEstimator):  # type: ignore[misc]
    """An ART estimator with the input side of `backend.estimator`, and the loss that an attack wants.

    Args:
        backend: of the classifier under attack, or a head in its place.
        objective: what a gradient attack climbs.
        batch_size: of predictions.
        input_shape: of one point.
        remembers: whether a point that was predicted in one of the last few calls is not asked again; only for a network that
            answers the same each time.
    Attributes:
        forward_passes: examples sent through the network so far.
    """

    def __init__(
        self,
        backend: Attackable,
        objective: AttackObjective,
        batch_size: int,
        input_shape: tuple[int, ...],
        *,
        remembers: bool,
    ) -> None:
        estimator = backend.estimator
        super().__init__(model=estimator.model, clip_values=estimator.clip_values, channels_first=estimator.channels_first)
        self.backend = backend
        self._batch_size = batch_size
        self._input_shape = input_shape
        self.nb_classes = int(estimator.nb_classes)
        self._ask = backend.ascent(objective, self.nb_classes)
        self.forward_passes = 0
        self._path: Trail | None = None
        self._last: tuple[Array, Array, Ascent] | None = None
        self._answers: deque[dict[bytes, Array]] = deque(maxlen=MEMORY if remembers else 0)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self._input_shape

    @contextlib.contextmanager
    def following(self, path: Trail) -> Iterator[None]:
        """Watch a path inside, which each query that fits it is taken to be about."""
        self._path, self._last = path, None
        self._answers.clear()
        try:
            yield
        finally:
            self._path = None

    def predict(self, x: Array, batch_size: int = 128, **_: Any) -> Array:
        """Logits, (n, nb_classes)."""
        x = np.ascontiguousarray(x, np.float32)
        index = None if self._path is None else self._path.points_of(len(x))
        logits = self._remembered(x, index)
        if self._path is not None and index is not None:
            self._path.see(index, x, logits)
        return logits

    def _remembered(self, x: Array, index: Array | None) -> Array:
        points = [point.tobytes() for point in x]
        known = {point: logits for answers in self._answers for point, logits in answers.items()}
        new = np.array([place for place, point in enumerate(points) if point not in known], dtype=np.int64)
        if len(new):
            self._count(new if index is None else index[new], located=index is not None)
            answers = self.backend.logits(x[new], self._batch_size)
            known.update(zip((points[place] for place in new), answers, strict=True))
        self._answers.append({point: known[point] for point in points})
        return np.stack([known[point] for point in points]) if points else np.zeros((0, self.nb_classes), np.float32)

    def compute_loss(self, x: Array, y: Array, reduction: str = "none", **_: Any) -> Array:
        values, _gradient = self._climb(x, y)
        if reduction == "none":
            return values
        return np.asarray(values.sum() if reduction == "sum" else values.mean())

    def loss_gradient(self, x: Array, y: Array, **_: Any) -> Array:
        _values, gradient = self._climb(x, y)
        return gradient

    def _climb(self, x: Array, y: Array) -> tuple[Array, Array]:
        x, y = np.asarray(x, np.float32), np.asarray(y, np.float32)
        path = self._path
        if path is None or len(x) != len(path):
            answer = self._unfollowed(x, y)
            return answer.values.copy(), answer.gradient.copy()
        index = path.unknown(x, y)
        if len(index):
            self._count(index, located=True)
            answer = self._ask(x[index], y[index], path.more[index])
            path.see(index, x[index], answer.logits)
            path.learn(index, x, y, answer.values, answer.gradient)
        return path.known()

    def _unfollowed(self, x: Array, y: Array) -> Ascent:
        """An attack asks for the value at a point and next for the gradient there: one pass answers both."""
        if self._last is not None and np.array_equal(x, self._last[0]) and np.array_equal(y, self._last[1]):
            return self._last[2]
        self._count(np.arange(len(x)), located=False)
        answer = self._ask(x, y, np.zeros((len(x), 0), np.float32))
        self._last = (x.copy(), y.copy(), answer) if self._answers.maxlen else None
        return answer

    def class_gradient(self, x: Array, label: Any = None, **_: Any) -> Array:
        """Gradient of logits with respect to x: of all classes, (n, nb_classes, ...), or of one for each point, (n, 1, ...)."""
        x = np.asarray(x, np.float32)
        self._count(np.arange(len(x)), located=False)
        rows = np.eye(self.nb_classes, dtype=np.float32)
        if label is None:
            wanted = [np.broadcast_to(row, (len(x), self.nb_classes)) for row in rows]
        else:
            wanted = [rows[np.broadcast_to(np.asarray(label, np.int64), (len(x),))]]
        return np.stack([self.backend.input_gradient(x, v) for v in wanted], axis=1)

    def _count(self, points: Array, *, located: bool) -> None:
        self.forward_passes += len(points)
        if self._path is not None and located:
            self._path.tally.queries[points] += 1

    def fit(self, x: Array, y: Array, **_: Any) -> None:
        raise NotImplementedError("a classifier under attack cannot be trained: train the original one")

    def get_activations(self, x: Array, layer: int | str, batch_size: int, framework: bool = False) -> Array:
        raise NotImplementedError("a classifier under attack does not show its layers: its `backend` does")
