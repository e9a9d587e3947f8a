"""One network as the readings ask it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from art_entropic._validate import check_logits
from art_entropic.backends.errors import NoIntervalRuleError
from art_entropic.backends.labels import LOGITS
from art_entropic.backends.protocol import Backend
from art_entropic.guards import check_bounds, check_predictions
from art_entropic.ops import Array, Box

INPUT = "input"
BLOCK = 100  # points of which the entropies of a layer are estimated at a time


def behind_input(x: Any, layers: Mapping[str, Any]) -> dict[str, Any]:
    """The input before the layers; a layer that has its name gets another."""
    return {INPUT: x, **{f"{INPUT}#2" if name == INPUT else name: value for name, value in layers.items()}}


def _whole(values: dict[str, Array], n: int) -> dict[str, Array]:
    """Refuse layers that do not see every point, as the experts of a mixture do."""
    for layer, value in values.items():
        if len(value) != n:
            raise NoIntervalRuleError(layer, "a choice between points", f"it runs on {len(value)} of {n} points only")
    return values


class Network:
    """One classifier, its layers in order, the input first, and the scale in which each is read."""

    def __init__(
        self, backend: Backend, x: Array, labels: Array, eps: float, norm: float, resolution: float, batch_size: int
    ) -> None:
        self._backend, self._batch_size = backend, batch_size
        self.eps, self.norm, self.clip_values = eps, norm, backend.estimator.clip_values
        self.blind: str | None = None  # why only input and logits are seen
        check_predictions(backend, x)
        check_logits(backend.logits(x, batch_size), int(backend.estimator.nb_classes))
        self._bounds_were_checked = False
        counts = np.bincount(labels) / len(labels)
        self.label_entropy = float(-(counts[counts > 0] * np.log(counts[counts > 0])).sum())
        self.units: dict[str, int] = {}
        self.resolution = {layer: resolution * spread for layer, spread in self._spreads(x).items()}

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(self.units)

    def activations(self, x: Array) -> dict[str, Array]:
        """The input and every measured layer; the logits alone where the network cannot be looked into."""
        if self.blind is None:
            try:
                return behind_input(x, _whole(self._backend.activations(x, self._batch_size), len(x)))
            except NoIntervalRuleError as error:
                self.blind = error.reason
        return {INPUT: x, LOGITS: self._backend.logits(x, self._batch_size)}

    @property
    def labels(self) -> dict[str, str]:
        """What a reader calls each layer."""
        names = [INPUT if layer == f"{INPUT}#2" else layer for layer in self.layers[1:]]
        return behind_input(INPUT, self._backend.layer_labels(names))

    def boxes(self, x: Array) -> dict[str, Box]:
        if not self._bounds_were_checked:
            check_bounds(self._backend, x, self.eps, self.norm)
            self._bounds_were_checked = True
        return self._backend.intervals(x, self.eps, self._batch_size, self.norm)

    def logits(self, x: Array) -> Array:
        return self._backend.logits(x, self._batch_size)

    def input_gradient(self, x: Array, direction: Array) -> Array:
        return self._backend.input_gradient(x, direction, self._batch_size)

    def _spreads(self, x: Array) -> dict[str, float]:
        """Standard deviation of each layer between the points, root mean square over its units."""
        origin: dict[str, Array] = {}
        sums: dict[str, Array] = {}
        squares: dict[str, Array] = {}
        for start in range(0, len(x), self._batch_size):
            for layer, value in self.activations(x[start : start + self._batch_size]).items():
                flat = value.reshape(len(value), -1).astype(np.float64)
                # Shifted, so that a constant layer has no spread at all, not that of rounding.
                shifted = flat - origin.setdefault(layer, flat[0])
                sums[layer] = sums.get(layer, 0.0) + shifted.sum(axis=0)
                squares[layer] = squares.get(layer, 0.0) + (shifted**2).sum(axis=0)
        self.units = {layer: len(values) for layer, values in origin.items()}
        variances = {layer: float((squares[layer] / len(x) - (sums[layer] / len(x)) ** 2).mean()) for layer in origin}
        for layer, variance in variances.items():
            if not math.isfinite(variance):
                raise ValueError(f"`classifiers` must have finite values in every layer, got NaN or infinite ones in {layer!r}")
        return {layer: math.sqrt(max(0.0, variance)) for layer, variance in variances.items()}
