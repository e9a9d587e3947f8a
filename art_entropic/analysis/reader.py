"""Reads networks batch by batch, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from art_entropic.analysis.network import BLOCK, Network
from art_entropic.analysis.readings import LEAST, MOST_RIVALS, PROFILE_MEASURES, Chunk
from art_entropic.backends.errors import NoIntervalRuleError
from art_entropic.ops import Array
from art_entropic.perturbations import unit_ball
from art_entropic.records import ProfileRow, number
from art_entropic.statistics import bootstrap_interval


def chunks(n: int, batch_size: int, copies: int) -> list[slice]:
    size = max(1, batch_size // (max(copies, MOST_RIVALS + 1)))
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


class Reader:
    """All measures of one network."""

    def __init__(
        self,
        name: str,
        network: Network,
        x: Array,
        labels: Array,
        measures: Sequence[str],
        layers: Sequence[str],
        seed: int,
        *,
        labelled: bool,
    ) -> None:
        self._name, self._network, self._x, self._labels = name, network, x, labels
        self._measures, self._layers, self._seed = measures, layers, seed
        self._values: dict[tuple[str, str], Array] = {}
        self._labels_of = network.labels
        rows = PROFILE_MEASURES.items()
        self._reasons = {one: "needs labels, give `y`" for one, row in rows if row.needs_labels and not labelled}

    def read(self, copies: int, batch_size: int, advance: Callable[[], Any]) -> list[ProfileRow]:
        self._read_points(copies, batch_size, advance)
        self._read_blocks()
        return [
            self._row(layer, measure)
            for measure in self._measures
            for layer in (("",) if PROFILE_MEASURES[measure].of_network is not None else self._layers)
        ]

    @property
    def points(self) -> dict[tuple[str, str, str], Array]:
        """The numbers of each point."""
        found = self._values.items()
        return {(self._name, *place): values for place, values in found if PROFILE_MEASURES[place[1]].of_block is None}

    def _read_points(self, copies: int, batch_size: int, advance: Callable[[], Any]) -> None:
        parts: dict[tuple[str, str], list[Array]] = {}
        rng = np.random.default_rng(self._seed)
        for where in chunks(len(self._x), batch_size, copies):
            x = self._x[where]
            noise = unit_ball(rng, (len(x) * copies, *x.shape[1:]), self._network.norm).reshape(len(x), copies, *x.shape[1:])
            chunk = Chunk(self._network, x, self._labels[where], noise)
            for measure in self._measures:
                if measure in self._reasons:
                    continue
                try:
                    for layer, values in self._of_chunk(chunk, measure):
                        parts.setdefault((layer, measure), []).append(np.asarray(values, np.float64))
                except NoIntervalRuleError as error:
                    self._reasons[measure] = error.reason
            advance()
        self._values |= {place: np.concatenate(found) for place, found in parts.items() if place[1] not in self._reasons}

    def _of_chunk(self, chunk: Chunk, measure: str) -> Iterator[tuple[str, Array]]:
        row = PROFILE_MEASURES[measure]
        if row.of_network is not None:
            yield "", row.of_network(chunk)
        if row.of_layer is not None:
            # The losses need every layer, whichever are shown.
            for layer in self._network.layers:
                yield layer, row.of_layer(chunk, layer, self._network.resolution[layer])

    def _read_blocks(self) -> None:
        """Entropies of the layers, one number a block; blocks are of one size, because the estimates depend on it."""
        reads = {one: read for one in self._measures if (read := PROFILE_MEASURES[one].of_block) is not None}
        n = len(self._x)
        if n < LEAST:
            self._reasons |= dict.fromkeys(reads, f"needs at least {LEAST} points, got {n}")
            return
        size = min(BLOCK, n)
        # Not in the order of the points, which may be sorted by class.
        order = np.random.default_rng(self._seed).permutation(n)
        parts: dict[tuple[str, str], list[float]] = {}
        for start in range(0, n - size + 1, size) if reads else ():
            values = self._network.activations(self._x[order[start : start + size]])
            for layer in self._layers:
                flat = values[layer].reshape(size, -1).astype(np.float64)
                for measure, read in reads.items():
                    parts.setdefault((layer, measure), []).append(read(flat, self._network.resolution[layer]))
        self._values |= {place: np.array(found) for place, found in parts.items()}

    def _row(self, layer: str, measure: str) -> ProfileRow:
        layers, row = self._network.layers, PROFILE_MEASURES[measure]
        position = layers.index(layer) if layer else 0
        place: dict[str, Any] = {
            "model": self._name,
            "layer": layer,
            "label": self._labels_of.get(layer, layer),
            "measure": measure,
            "position": position,
            "depth": position / max(1, len(layers) - 1),
            "units": self._network.units[layer] if layer else 0,
        }
        found = self._values.get((layer, measure), np.array([]))
        counted = found[~np.isnan(found)] if measure == "gradient" else found
        if not len(counted):
            return ProfileRow(value=None, reason=self._reasons.get(measure, "no point is right"), **place)
        few = row.of_block is not None and len(counted) < LEAST
        low, high = (math.nan, math.nan) if few else bootstrap_interval(counted, median=row.median, seed=self._seed)
        value = float(np.median(counted) if row.median else counted.mean())
        loss = self._loss(layers[position - 1], layer, measure) if row.transmitted and position else {}
        return ProfileRow(value=number(value), low=number(low), high=number(high), n=len(counted), **loss, **place)

    def _loss(self, before: str, layer: str, measure: str) -> dict[str, Any]:
        with np.errstate(invalid="ignore"):  # between two infinities nothing can be said: NaN, a missing number
            lost = self._values[before, measure] - self._values[layer, measure]
            numbers = (float(lost.mean()), *bootstrap_interval(lost, seed=self._seed))
        return dict(zip(("loss", "loss_low", "loss_high"), map(number, numbers), strict=True))


def as_float(value: Any) -> float:
    return math.nan if value is None else float(value)
