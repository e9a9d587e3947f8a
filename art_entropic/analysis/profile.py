"""Where the information goes: what a perturbation, the data and the labels leave in each layer of a network.

Layers are read with finite resolution: tau is a share of the layer's own spread between points, one number for all its units,
so that neither the scale of a layer nor of the data counts. Three readings of the perturbation's information are ordered,
whatever the network, on every sample of perturbations, up to the float32 rounding of the boxes: a variance is at most a
quarter of the squared range (Popoviciu), a determinant at most the product of its diagonal (Hadamard):

    noise <= gaussian <= interval

Each layer is read with fresh noise of its own, so no data processing inequality ties a layer to the next one: the loss between
two layers is a difference of readings and may be negative."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from art_entropic._validate import (
    NORMS,
    check_inputs,
    check_labels,
    check_radius,
    choice,
    finite,
    flag,
    listed,
    norm_name,
    norm_of,
    positive_int,
    seed_of,
)
from art_entropic.backends.protocol import Backend
from art_entropic.backends.registry import backend_for
from art_entropic.extras import optional
from art_entropic.ops import Array
from art_entropic.records import ProfileRow
from art_entropic.statistics import bootstrap_interval

if TYPE_CHECKING:
    import pandas as pd
from art_entropic.analysis.figures import deepest_layers, label_of, layers_of, plot_layers
from art_entropic.analysis.network import Network
from art_entropic.analysis.reader import Reader, as_float, chunks
from art_entropic.analysis.readings import PROFILE_MEASURES

# Raised with every change of what a profile reads, so that old ones are not taken for new.
PROFILE_REVISION = 2


@dataclass(frozen=True, eq=False)
class InformationProfile:
    """Result of `information_profile`.

    Attributes:
        models: names of the networks, in the given order.
        rows: one row for each model, layer and measure, and one for each model and measure of the network as a whole.
        norm: norm of the ball, "inf" or "2".
        notes: remarks for the reader, such as layers that do not correspond.
        points: nats of each point, (n,), by (model, layer, measure), for the measures that have them; layer "" is the network.
    """

    models: tuple[str, ...]
    eps: float
    norm: str
    resolution: float
    n: int
    copies: int
    rows: tuple[ProfileRow, ...]
    notes: tuple[str, ...]
    seconds: float
    points: dict[tuple[str, str, str], Array] = field(repr=False)

    @property
    def drawable(self) -> tuple[str, ...]:
        """Names of the layer measures that have values to plot."""
        found = {row.measure for row in self.rows if row.layer and math.isfinite(as_float(row.value))}
        return tuple(name for name in PROFILE_MEASURES if name in found)

    def to_frame(self) -> pd.DataFrame:
        """Table, one row per model, layer and measure: value, interval, per unit, loss since the layer before, n, reason."""
        return frame(self.rows)

    def difference(self, model: str, reference: str) -> pd.DataFrame:
        """Compare two networks on the same points: how much more one lets through, layer by layer, in nats per unit.

        Returns:
            One row per layer and measure with values for each point in both: difference, 95 % bootstrap interval.
        Raises:
            ValueError: there is no such model, or the layers do not correspond.
        """
        for name, given in (("model", model), ("reference", reference)):
            choice(name, given, self.models)
        ours, theirs = (layers_of(self.rows, one) for one in (model, reference))
        if [units for _, units in ours] != [units for _, units in theirs]:
            raise ValueError(f"`reference` must have the layers of `model`, {ours}, got {theirs}")
        cells = []
        for (layer, units), (twin, _) in zip(ours, theirs, strict=True):
            for measure in PROFILE_MEASURES:
                first, second = self.points.get((model, layer, measure)), self.points.get((reference, twin, measure))
                if first is None or second is None:
                    continue
                with np.errstate(invalid="ignore"):  # between two infinities nothing can be said
                    each = (first - second) / units
                low, high = bootstrap_interval(each)
                cells.append({"layer": layer, "measure": measure, "difference": float(each.mean()), "low": low, "high": high})
        return optional("pandas").DataFrame(cells)

    def plot(self, measures: Sequence[str] = ("interval", "rivals"), colours: Mapping[str, str] | None = None) -> Any:
        """Plot the information per unit through the layers: a panel per measure, a line per model, bands for 95 % intervals.

        Args:
            measures: names of PROFILE_MEASURES that have values for layers.
            colours: colours by model; None takes grey for ``natural`` and a colour-blind safe palette for the others.
        Returns:
            A matplotlib figure.
        """
        return draw(self.rows, measures, colours)

    def summary(self) -> dict[str, Any]:
        """Everything except the values of single points, as plain values for `json.dump`."""
        names = ("models", "eps", "norm", "resolution", "n", "copies", "notes", "seconds", "rows")
        return {name: msgspec.to_builtins(getattr(self, name)) for name in names}

    def __str__(self) -> str:
        lines = [f"L{self.norm} eps {self.eps:g}, n = {self.n}, layers read at {self.resolution:g} of their spread"]
        deepest = {model: deepest_layers(self.rows, model) for model in self.models}
        labels = {row.layer: label_of(row) for row in self.rows}
        for name, row in PROFILE_MEASURES.items():
            found = [one for one in self.rows if one.measure == name and one.layer in ("", deepest[one.model])]
            last = dict.fromkeys(labels.get(layer, layer) for layer in deepest.values())
            where = "" if row.of_network else f", {' / '.join(last)}"
            said = ", ".join(f"{one.model} {_shown(one)}" for one in found)
            if said:
                lines.append(f"{row.title}{where} [{row.unit}]: {said}")
        return "\n".join([*lines, *self.notes])


def information_profile(
    classifiers: Mapping[str, Any],
    x: Any,
    y: Any = None,
    *,
    eps: float,
    norm: float | str = np.inf,
    measures: Sequence[str] | None = None,
    layers: Sequence[str] | None = None,
    resolution: float = 0.1,
    copies: int = 16,
    batch_size: int = 256,
    seed: int = 0,
    verbose: bool = True,
) -> InformationProfile:
    """Measure, layer by layer, the information that perturbations, data and labels leave in several networks.

    Args:
        classifiers: ART PyTorchClassifier, TensorFlowV2Classifier or KerasClassifier objects that return logits, by name; all
            with the same input shape and number of classes. They are not changed.
        x: points of shape (n, *input_shape), raw units, inside clip_values; n >= 2.
        y: classes of the points, indices (n,) or one-hot rows. With None each network's own predictions serve as labels, and
            measures that need labels are missing.
        eps: radius of the perturbations, in the units of x.
        norm: norm of the perturbations, infinity (also "inf") or 2.
        measures: names of PROFILE_MEASURES; None takes all.
        layers: names of layers, or "input"; each must be a layer of every network. None takes all.
        resolution: tau as a share of each layer's standard deviation between points.
        copies: number of random perturbations of each point, >= 2.
        batch_size: number of points in the network at a time; memory grows with it.
        seed: seed of perturbations and bootstrap.
        verbose: show progress on stderr.
    Returns:
        Means over the points with 95 % bootstrap intervals. A measure that does not work on a network gives a row with the
        reason and no value. Infinite values stay infinite.
    Raises:
        TypeError: a classifier is not a supported estimator.
        ValueError: an argument is out of its range.
    Source: arXiv 2008.03072 for the question; the bound is equation (1) of the method page, the others stand in
        `art_entropic.information`.
    """
    from tqdm.auto import tqdm

    began = time.perf_counter()
    backends = _check_classifiers(classifiers)
    first = next(iter(backends.values())).estimator
    exponent = norm_of(norm, NORMS)
    eps = check_radius(eps, exponent, first.clip_values, tuple(first.input_shape))
    x = check_inputs(x, input_shape=tuple(first.input_shape), clip_values=first.clip_values)
    if len(x) < 2:
        raise ValueError(f"`x` must hold at least 2 points, since their spread sets the scale of each layer, got {len(x)}")
    labels = None if y is None else check_labels(y, n=len(x), nb_classes=int(first.nb_classes))
    chosen = tuple(PROFILE_MEASURES) if measures is None else _check_measures(measures, PROFILE_MEASURES)
    if finite("resolution", resolution) <= 0:
        raise ValueError(f"`resolution` must be positive, got {resolution!r}")
    if positive_int("copies", copies) < 2:
        raise ValueError(f"`copies` must be at least 2, got {copies!r}")
    positive_int("batch_size", batch_size)
    seed_of("seed", seed)
    verbose = flag("verbose", verbose)

    networks = {}
    for name, backend in backends.items():
        own = np.asarray(backend.logits(x, batch_size)).argmax(axis=1) if labels is None else labels
        networks[name] = Network(backend, x, own, eps, exponent, resolution, batch_size), own
    kept = {name: _choose(name, network, layers) for name, (network, _) in networks.items()}
    rows: list[ProfileRow] = []
    points: dict[tuple[str, str, str], Array] = {}
    steps = len(chunks(len(x), batch_size, copies)) * len(networks)
    with tqdm(total=steps, desc="information", disable=not verbose, leave=False) as bar:
        for name, (network, own) in networks.items():
            reader = Reader(name, network, x, own, chosen, kept[name], seed, labelled=labels is not None)
            rows += reader.read(copies, batch_size, bar.update)
            points |= reader.points
    notes = _notes({name: network for name, (network, _) in networks.items()}, labels is not None)
    return InformationProfile(
        tuple(networks), eps, norm_name(exponent), resolution, len(x), copies, tuple(rows), notes,
        time.perf_counter() - began, points,
    )  # fmt: skip


def _check_classifiers(classifiers: Any) -> dict[str, Backend]:
    if not isinstance(classifiers, Mapping):
        raise TypeError(f"`classifiers` must map names to ART classifiers, got {type(classifiers).__name__}")
    if not classifiers:
        raise ValueError("`classifiers` must hold at least one classifier, got none")
    for name in classifiers:
        if not isinstance(name, str):
            raise TypeError(f"`classifiers` must have strings as names, got {name!r}")
    backends = {name: backend_for(one) for name, one in classifiers.items()}
    facts = {name: _facts(backend.estimator) for name, backend in backends.items()}
    first = next(iter(facts))
    for name, found in facts.items():
        if found != facts[first]:
            raise ValueError(
                "`classifiers` must share input shape, classes and clip_values: "
                f"{first!r} has {facts[first]}, got {found} for {name!r}"
            )
    return backends


def _facts(estimator: Any) -> tuple[tuple[int, ...], int, list[Any] | None]:
    clip_values = estimator.clip_values
    shown = None if clip_values is None else [np.asarray(end, np.float64).tolist() for end in clip_values]
    return tuple(estimator.input_shape), int(estimator.nb_classes), shown


def _check_measures(measures: Any, able: Iterable[str]) -> tuple[str, ...]:
    if not listed("measures", measures, "names of measures"):
        raise ValueError(f"`measures` must be a sequence of at least one measure's name, got {measures!r}")
    return tuple(dict.fromkeys(choice("measures", one, able) for one in measures))


def _choose(name: str, network: Network, layers: Sequence[str] | None) -> tuple[str, ...]:
    if layers is None:
        return network.layers
    if not listed("layers", layers, "names of layers"):
        raise ValueError(f"`layers` must be a sequence of at least one layer's name, got {layers!r}")
    for layer in layers:
        if not isinstance(layer, str) or layer not in network.layers:
            known = ", ".join(map(repr, network.layers))
            raise ValueError(f"`layers` must be among the layers of {name!r}, {known}; got {layer!r}")
    return tuple(layer for layer in network.layers if layer in layers)


def _notes(networks: Mapping[str, Network], labelled: bool) -> tuple[str, ...]:
    notes = [] if labelled else ["`y` was not given: each network's own predictions serve as labels."]
    shapes = {tuple(network.units.values()) for network in networks.values()}
    if len(shapes) > 1:
        told = "; ".join(f"{name}: {', '.join(network.layers)}" for name, network in networks.items())
        notes.append(f"The layers do not correspond and are aligned by their relative depth: {told}.")
    for name, network in networks.items():
        if network.blind is not None:
            notes.append(f"The layers of {name} cannot be read, only its input and its logits: {network.blind}")
        constant = [layer for layer in network.layers if network.resolution[layer] == 0]
        if constant:
            layers = ", ".join(constant)
            notes.append(f"{name} has the same values for all points in {layers}, so there is no scale to measure on.")
    return tuple(notes)


def frame(rows: Sequence[ProfileRow]) -> pd.DataFrame:
    """Table of the rows of a profile.

    `label` is what a reader calls a layer, `per_unit` is the value per unit of the layer, `low` and `high` are of the value.
    """
    numbers = ("value", "low", "high", "loss", "loss_low", "loss_high")
    cells = []
    for row in rows:
        values = {name: as_float(getattr(row, name)) for name in numbers}
        per_unit = values["value"] / row.units if row.units and PROFILE_MEASURES[row.measure].by_unit else math.nan
        known = {name: getattr(row, name) for name in ("model", "layer", "label", "position", "depth", "units", "measure")}
        cells.append({**known, **values, "per_unit": per_unit, "n": row.n, "reason": row.reason or ""})
    return optional("pandas").DataFrame(cells)


def draw(rows: Sequence[ProfileRow], measures: Sequence[str], colours: Mapping[str, str] | None = None) -> Any:
    """Plot the information per unit through the layers, a panel per measure; see `InformationProfile.plot`.

    Raises:
        ValueError: a measure has no values for layers, or none in these rows.
    """
    shown = _check_measures(measures, [name for name, one in PROFILE_MEASURES.items() if one.of_network is None])
    figure = optional("matplotlib.figure").Figure(figsize=(4.6 * len(shown), 3.6), layout="constrained")
    for axes, measure in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        plot_layers(axes, rows, measure, colours)
        axes.set_title(PROFILE_MEASURES[measure].title, loc="left", fontsize=10)
    figure.axes[0].legend(frameon=False, fontsize=9)
    return figure


def _shown(row: ProfileRow) -> str:
    return f"{as_float(row.value):.3g}" if row.value is not None else f"- ({row.reason})"
