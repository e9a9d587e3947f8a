"""A classifier as ART's attacks see it: one ART estimator for every framework, over a `Backend`.

It answers a gradient and a loss at the same point with one pass, compiled where the framework compiles, does not ask the
network what it has just answered, and watches the path of an attack: ART's attacks return where they stopped, not where they
first succeeded.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from art.estimators import BaseEstimator, LossGradientsMixin, NeuralNetworkMixin
from art.estimators.classification.classifier import ClassifierMixin

from art_entropic.backends import Array, AttackObjective, Backend

# Square asks for a point where it stood, where it stands, and where it might go.
MEMORY = 3
Succeeds = Callable[[Array, Array], Array]


class Path:
    """The way of one batch of points through an attack.

    Args:
        x: where it begins, (n, ...).
        y: classes, int64 (n,).
        succeeds: (indices, candidates) -> bool, whether each candidate is an adversarial example for that point. Asked once a
            point looks broken.
    Attributes:
        fallen: bool (n,).
        x_adv: (n, ...), the first adversarial example of a fallen point, x of any other.
    """

    def __init__(self, x: Array, y: Array, succeeds: Succeeds) -> None:
        n = len(x)
        self.x_adv, self._y, self._succeeds = x.copy(), y, succeeds
        self.fallen = np.zeros(n, dtype=bool)
        self.values = np.zeros(n, np.float32)
        self.gradient = np.zeros_like(x)
        self._at: Array | None = None
        self._asked: Array | None = None

    def __len__(self) -> int:
        return len(self.fallen)

    def unknown(self, x: Array, labels: Array) -> Array:
        """Indices of the points at which neither value nor gradient is known. A fallen point is asked nothing more."""
        standing = ~self.fallen
        if self._at is not None and self._asked is not None:
            moved = _differ(x, self._at) | _differ(labels, self._asked)
            standing &= moved
        return np.flatnonzero(standing)

    def learn(self, index: Array, x: Array, labels: Array, values: Array, gradient: Array) -> None:
        """Keep what was answered at x; a point that has fallen in between has nothing left to climb."""
        self._at, self._asked = x.copy(), labels.copy()
        self.values[index], self.gradient[index] = values, gradient
        self.values[self.fallen], self.gradient[self.fallen] = 0.0, 0.0

    def see(self, index: Array, x: Array, logits: Array) -> None:
        """Note which of these points fall at x, (m, ...), where the network answered `logits`."""
        wrong = (np.argmax(logits, axis=1) != self._y[index]) | ~np.isfinite(logits).all(axis=1)
        suspects = np.flatnonzero(wrong & ~self.fallen[index])
        if not len(suspects):
            return
        sure = suspects[self._succeeds(index[suspects], x[suspects])]
        self.fallen[index[sure]] = True
        self.x_adv[index[sure]] = x[sure]


def _differ(a: Array, b: Array) -> Array:
    result: Array = (a != b).reshape(len(a), -1).any(axis=1)
    return result


class Attacked(LossGradientsMixin, ClassifierMixin, NeuralNetworkMixin, BaseEstimator):  # type: ignore[misc]
    """An ART estimator with the input side of `backend.estimator`, and the loss that an attack wants.

    Args:
        backend: of the classifier under attack.
        objective: what a gradient attack climbs.
        batch_size: of predictions.
        remembers: whether a point that was predicted in one of the last few calls is not asked again; only for a network that
            answers the same each time.
    Attributes:
        forward_passes: examples sent through the network so far.
        backward_passes: examples whose gradient was taken so far.
    """

    def __init__(self, backend: Backend, objective: AttackObjective, batch_size: int, *, remembers: bool) -> None:
        estimator = backend.estimator
        super().__init__(model=estimator.model, clip_values=estimator.clip_values, channels_first=estimator.channels_first)
        self._backend, self._batch_size = backend, batch_size
        self._ask = backend.ascent(objective)
        self._input_shape = tuple(estimator.input_shape)
        self.nb_classes = int(estimator.nb_classes)
        self.forward_passes = self.backward_passes = 0
        self._path: Path | None = None
        self._answers: deque[dict[bytes, Array]] = deque(maxlen=MEMORY if remembers else 0)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self._input_shape

    @contextlib.contextmanager
    def following(self, path: Path) -> Iterator[None]:
        """Watch a path inside: queries with as many points as it has are its points, in their order.

        Should an attack ask something else with as many points, nothing false can come of it: whatever falls is verified.
        """
        self._path = path
        try:
            yield
        finally:
            self._path = None

    def predict(self, x: Array, batch_size: int = 128, **_: Any) -> Array:
        """Logits, (n, nb_classes)."""
        logits = self._logits(np.ascontiguousarray(x, np.float32))
        if self._path is not None and len(x) == len(self._path):
            self._path.see(np.arange(len(x)), x, logits)
        return logits

    def _logits(self, x: Array) -> Array:
        points = [point.tobytes() for point in x]
        known = {point: logits for answers in self._answers for point, logits in answers.items()}
        new = [index for index, point in enumerate(points) if point not in known]
        self.forward_passes += len(new)
        if new:
            known.update(zip((points[index] for index in new), self._backend.logits(x[new], self._batch_size), strict=True))
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
            self._count(len(x))
            answer = self._ask(x, y)
            return answer.values, answer.gradient
        index = path.unknown(x, y)
        if len(index):
            self._count(len(index))
            answer = self._ask(x[index], y[index])
            path.see(index, x[index], answer.logits)
            path.learn(index, x, y, answer.values, answer.gradient)
        return path.values.copy(), path.gradient.copy()

    def _count(self, n: int) -> None:
        self.forward_passes += n
        self.backward_passes += n

    def fit(self, x: Array, y: Array, **_: Any) -> None:
        raise NotImplementedError("a classifier under attack is not trained")

    def get_activations(self, x: Array, layer: int | str, batch_size: int, framework: bool = False) -> Array:
        raise NotImplementedError("the layers of a classifier under attack are asked of its backend")
