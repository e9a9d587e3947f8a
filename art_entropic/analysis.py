"""Where the information goes: what a perturbation, the data and the labels leave in each layer of a network.

Layers are read with finite resolution: tau is a share of the layer's own spread between points, one number for all its units,
so that neither the scale of a layer nor of the data counts. Three readings of the perturbation's information are ordered,
whatever the network, on every sample of perturbations, up to the float32 rounding of the boxes: a variance is at most a
quarter of the squared range (Popoviciu), a determinant at most the product of its diagonal (Hadamard):

    noise <= gaussian <= interval

Each layer is read with fresh noise of its own, so no data processing inequality ties a layer to the next one: the loss between
two layers is a difference of readings and may be negative.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from art_entropic import intervals
from art_entropic._validate import (
    check_eps,
    check_inputs,
    check_labels,
    check_logits,
    choice,
    finite,
    flag,
    listed,
    positive_int,
    whole_number,
)
from art_entropic.backends import Array, Backend, Interval, NoIntervalRuleError, backend_for
from art_entropic.backends.numpy import ops
from art_entropic.guards import check_bounds, check_predictions
from art_entropic.information import coding_rate, first_order_loss_of_margin, gaussian_channels, transmitted_information
from art_entropic.palette import colours as palette
from art_entropic.records import ProfileRow, number
from art_entropic.statistics import bootstrap_interval

if TYPE_CHECKING:
    import pandas as pd

INPUT = "input"
LOGITS = "logits"
BLOCK = 100  # points of which the entropies of a layer are estimated at a time
LEAST = 10  # points that such an estimate needs, and blocks that an interval needs
MOST_RIVALS = 9


# ------------------------------------------------------------------------------------------------------------ measures


class Chunk:
    """A few points of one network, with what was perturbed of them; each thing is computed when it is first asked for."""

    def __init__(self, network: _Network, x: Array, labels: Array, noise: Array) -> None:
        self.network, self.x, self._noise = network, x, noise
        self.labels = labels

    @cached_property
    def natural(self) -> dict[str, Array]:
        """Values of each layer, (m, ...)."""
        return self.network.activations(self.x)

    @cached_property
    def ball(self) -> Interval:
        return intervals.ball(ops, self.x, self.network.eps, self.network.clip_values)

    @cached_property
    def boxes(self) -> dict[str, Interval]:
        """Bounds of each layer over the ball.

        Raises:
            NoIntervalRuleError: an operation has no rule.
        """
        return _behind_input(self.ball, self.network.boxes(self.x))

    @cached_property
    def random(self) -> dict[str, Array]:
        """Values of each layer at random points of the ball, (m, copies, units)."""
        return self._copies(self.ball.lower[:, None] + self._noise * (self.ball.upper - self.ball.lower)[:, None])

    @cached_property
    def towards_rivals(self) -> dict[str, Array]:
        """Values of each layer at the corner of the ball that a first-order adversary picks for each rival, and at x itself."""
        logits = self.logits.copy()
        rows = np.arange(len(logits))
        logits[rows, self.labels] = -np.inf
        rivals = np.argsort(-logits, axis=1)[:, : min(MOST_RIVALS, logits.shape[1] - 1)]
        corners = [self.x]
        for place in range(rivals.shape[1]):
            direction = np.zeros_like(logits, dtype=np.float32)
            direction[rows, self.labels], direction[rows, rivals[:, place]] = -1.0, 1.0
            gradient = self.network.input_gradient(self.x, direction)
            corners.append(np.where(gradient > 0, self.ball.upper, np.where(gradient < 0, self.ball.lower, self.x)))
        return self._copies(np.stack(corners, axis=1))

    @cached_property
    def logits(self) -> Array:
        return np.asarray(self.network.logits(self.x), np.float64)

    @cached_property
    def one_hot(self) -> Array:
        return np.asarray(ops.one_hot(self.labels, self.logits.shape[1]))

    def _copies(self, points: Array) -> dict[str, Array]:
        m, copies = points.shape[:2]
        values = self.network.activations(points.astype(np.float32).reshape(m * copies, *points.shape[2:]))
        return {layer: value.reshape(m, copies, -1) for layer, value in values.items()}


def _behind_input(x: Any, layers: Mapping[str, Any]) -> dict[str, Any]:
    """The input before the layers; a layer that has its name gets another."""
    return {INPUT: x, **{f"{INPUT}#2" if name == INPUT else name: value for name, value in layers.items()}}


def _from_boxes(chunk: Chunk, layer: str, resolution: float) -> Array:
    box = chunk.boxes[layer]
    width = np.asarray(box.upper, np.float64) - np.asarray(box.lower, np.float64)
    width = np.where(np.isnan(width), np.inf, width)  # a bound that overflowed bounds nothing
    return _unless_constant(width, resolution, lambda: transmitted_information(ops, width, resolution=resolution))


def _from_variances(chunk: Chunk, layer: str, resolution: float) -> Array:
    variance = chunk.random[layer].astype(np.float64).var(axis=1)
    return _unless_constant(variance, resolution, lambda: gaussian_channels(ops, variance, resolution=resolution / 2))


def _from_noise(chunk: Chunk, layer: str, resolution: float) -> Array:
    return _joint(chunk.random[layer], resolution)


def _from_rivals(chunk: Chunk, layer: str, resolution: float) -> Array:
    return _joint(chunk.towards_rivals[layer], resolution)


def _joint(copies: Array, resolution: float) -> Array:
    shifts = copies.astype(np.float64) - copies.mean(axis=1, keepdims=True, dtype=np.float64)
    return _unless_constant(
        shifts, resolution, lambda: np.array([coding_rate(ops, one, resolution=resolution / 2) for one in shifts])
    )


def _unless_constant(signal: Array, resolution: float, read: Callable[[], Array]) -> Array:
    """A layer that is the same for all points has no scale to be read in: any signal at all tells infinitely much."""
    if resolution > 0:
        return read()
    return np.where(np.any(signal.reshape(len(signal), -1) != 0, axis=1), np.inf, 0.0)


def _information(values: Array, resolution: float) -> float:
    centred = values - values.mean(axis=0)
    return float(coding_rate(ops, centred, resolution=resolution / 2)) if resolution > 0 else 0.0


def _entropy(values: Array, resolution: float) -> float:
    if resolution == 0:
        return -math.inf
    noise: float = 0.5 * values.shape[1] * math.log(2 * math.pi * math.e * (resolution / 2) ** 2)
    return _information(values, resolution) + noise


def matrix_renyi_entropy(values: Array) -> float:
    """Matrix-based Renyi entropy of order 2 of points, -log tr(A^2), A the normalised Gram matrix of a Gaussian kernel.

    Args:
        values: (n, units), n >= 1. The width of the kernel is the median distance between two points, so the scale is of
            no matter.
    Returns:
        Nats, in [0, log n]: 0 where all points are the same, log n where no point is near another.
    Source: Giraldo, Rao & Principe, IEEE Transactions on Information Theory 61, 2015; order 2 as in Yu et al. 2019.
    """
    from scipy.spatial.distance import pdist, squareform

    distances = pdist(values, "sqeuclidean")
    scale = float(np.median(distances)) if distances.any() else 1.0
    # The median is 0 where most points are the same and some are not: then nearness to these is all that counts.
    kernel = np.exp(-squareform(distances) / (2.0 * scale)) if scale > 0 else (squareform(distances) == 0).astype(float)
    normalised = kernel / len(values)
    return max(0.0, -math.log(float((normalised**2).sum())))


def _renyi(values: Array, resolution: float) -> float:
    return matrix_renyi_entropy(values)


def _kept_on_the_data(chunk: Chunk) -> Array:
    return _kept(chunk, chunk.logits)


def _kept_in_the_worst_case(chunk: Chunk) -> Array:
    box = Interval(*(np.asarray(end, np.float64) for end in list(chunk.boxes.values())[-1]))
    return _kept(chunk, intervals.worst_case_logits(box, chunk.one_hot))


def _kept(chunk: Chunk, logits: Array) -> Array:
    """Label information by each point, H(Y) + log p(y); its mean is H(Y) - cross-entropy."""
    kept = np.asarray(chunk.network.label_entropy + (chunk.one_hot * ops.log_softmax(logits)).sum(axis=1))
    return np.where(np.isnan(kept), -np.inf, kept)


def _output_entropy(chunk: Chunk) -> Array:
    logs = ops.log_softmax(chunk.logits)
    return np.asarray(-(np.exp(logs) * logs).sum(axis=1))


def _reach_of_the_gradient(chunk: Chunk) -> Array:
    rivals = np.where(chunk.one_hot > 0, -np.inf, chunk.logits)
    margin = chunk.logits[np.arange(len(rivals)), chunk.labels] - rivals.max(axis=1)
    direction = chunk.one_hot - ops.one_hot(rivals.argmax(axis=1), rivals.shape[1])
    gradient = chunk.network.input_gradient(chunk.x, direction.astype(np.float32)).astype(np.float64)
    fall = first_order_loss_of_margin(ops, gradient, chunk.x, chunk.ball)
    return np.where(margin > 0, fall / np.where(margin > 0, margin, 1.0), np.nan)


@dataclass(frozen=True)
class ProfileMeasure:
    """One row of PROFILE_MEASURES; exactly one of the three ways to read is given.

    Attributes:
        of_layer: (chunk, layer, tau) -> nats of each point, (m,).
        of_block: (values (n, units), tau) -> nats of the block.
        of_network: chunk -> one number of each point, (m,), NaN where the point does not count.
        transmitted: the perturbation's information, of which the loss between layers is taken.
        needs_labels: has no meaning without `y`.
        median: over the points, where the mean would be that of the outliers.
        by_unit: grows with the number of units, so that layers are compared per unit.
    """

    title: str
    unit: str
    caveat: str
    of_layer: Callable[[Chunk, str, float], Array] | None = None
    of_block: Callable[[Array, float], float] | None = None
    of_network: Callable[[Chunk], Array] | None = None
    transmitted: bool = False
    needs_labels: bool = False
    median: bool = False
    by_unit: bool = True


PROFILE_MEASURES: dict[str, ProfileMeasure] = {
    "interval": ProfileMeasure(
        "perturbation, worst case (interval bound)",
        "nats",
        "an upper bound for every distribution of perturbations; loose where the boxes are, the more so the deeper the layer",
        of_layer=_from_boxes,
        transmitted=True,
    ),
    "gaussian": ProfileMeasure(
        "perturbation, random, units one by one",
        "nats",
        "uniform perturbations, not the worst ones; the variance of k copies is (k - 1) / k of the true one on average",
        of_layer=_from_variances,
        transmitted=True,
    ),
    "noise": ProfileMeasure(
        "perturbation, random, units together",
        "nats",
        "uniform perturbations, not the worst ones; k copies span k - 1 directions, so too low where more matter",
        of_layer=_from_noise,
        transmitted=True,
    ),
    "rivals": ProfileMeasure(
        "perturbation, aimed at the rivals (Gaussian)",
        "nats",
        "what a Gaussian signal with the covariance of ten points sends: x, and where one gradient step leads towards each of "
        "up to nine rivals. Above what the ten send by themselves, at most log 10; below what a stronger adversary sends",
        of_layer=_from_rivals,
        transmitted=True,
    ),
    "information": ProfileMeasure(
        "natural input (Gaussian)",
        "nats",
        f"of blocks of up to {BLOCK} points, which span one direction less, so too low in wide layers; exact for Gaussian ones",
        of_block=_information,
    ),
    "entropy": ProfileMeasure(
        "entropy of the layer (Gaussian)",
        "nats",
        "differential, of the layer with its read-out noise: it moves with the scale of the layer; biased as `information`",
        of_block=_entropy,
    ),
    "renyi": ProfileMeasure(
        "entropy of the layer (matrix Renyi, order 2)",
        "nats",
        f"at most the log of the points of a block, up to {BLOCK}; depends on the kernel's width, the median distance",
        of_block=_renyi,
        by_unit=False,
    ),
    "label": ProfileMeasure(
        "label information kept on the data",
        "nats",
        "a lower bound of the mutual information, H(Y) - cross-entropy: an overconfident network has too little",
        of_network=_kept_on_the_data,
        needs_labels=True,
    ),
    "label_worst": ProfileMeasure(
        "label information kept in the worst case",
        "nats",
        "the same under the interval bound: below 0 nothing is guaranteed",
        of_network=_kept_in_the_worst_case,
        needs_labels=True,
    ),
    "output_entropy": ProfileMeasure(
        "entropy of the predicted classes",
        "nats",
        "of the network's own posterior, right or wrong",
        of_network=_output_entropy,
    ),
    "gradient": ProfileMeasure(
        "reach of the gradient: fall of the margin over the ball / margin",
        "ratio",
        "to first order, of points that are right: above 1 one gradient step can change the decision",
        of_network=_reach_of_the_gradient,
        median=True,
    ),
}


# ------------------------------------------------------------------------------------------------------------- network


def _whole(values: dict[str, Array], n: int) -> dict[str, Array]:
    """Refuse layers that do not see every point, as the experts of a mixture do."""
    for layer, value in values.items():
        if len(value) != n:
            raise NoIntervalRuleError(layer, "a choice between points", f"it sees {len(value)} of {n} points")
    return values


class _Network:
    """One classifier, its layers in order, the input first, and the scale in which each is read."""

    def __init__(self, backend: Backend, x: Array, labels: Array, eps: float, resolution: float, batch_size: int) -> None:
        self._backend, self._batch_size = backend, batch_size
        self.eps, self.clip_values = eps, backend.estimator.clip_values
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
                return _behind_input(x, _whole(self._backend.activations(x, self._batch_size), len(x)))
            except NoIntervalRuleError as error:
                self.blind = error.reason
        return {INPUT: x, LOGITS: self._backend.logits(x, self._batch_size)}

    def boxes(self, x: Array) -> dict[str, Interval]:
        if not self._bounds_were_checked:
            check_bounds(self._backend, x, self.eps)
            self._bounds_were_checked = True
        return self._backend.intervals(x, self.eps, self._batch_size)

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
                raise ValueError(f"`classifiers` must have finite values in every layer, got others in {layer!r}")
        return {layer: math.sqrt(max(0.0, variance)) for layer, variance in variances.items()}


# ------------------------------------------------------------------------------------------------------------- profile


@dataclass(frozen=True, eq=False)
class InformationProfile:
    """What `information_profile` found.

    Attributes:
        models: names, in the order they were given.
        rows: one for each model, layer and measure, and one for each model and measure of the network as a whole.
        notes: what a reader should know, such as layers that do not correspond.
        points: nats of each point, (n,), by (model, layer, measure), for the measures that have them; layer "" is the network.
    """

    models: tuple[str, ...]
    eps: float
    resolution: float
    n: int
    copies: int
    rows: tuple[ProfileRow, ...]
    notes: tuple[str, ...]
    seconds: float
    points: dict[tuple[str, str, str], Array] = field(repr=False)

    @property
    def drawable(self) -> tuple[str, ...]:
        """Measures of layers that have values to be drawn."""
        found = {row.measure for row in self.rows if row.layer and math.isfinite(_float(row.value))}
        return tuple(name for name in PROFILE_MEASURES if name in found)

    def to_frame(self) -> pd.DataFrame:
        """One row for each model, layer and measure: value, interval, per unit, loss since the layer before, n, reason."""
        return frame(self.rows)

    def difference(self, model: str, reference: str) -> pd.DataFrame:
        """What one network lets through more than another, layer by layer, in nats per unit, on the same points.

        Returns:
            One row for each layer and measure that has numbers of each point in both: difference, 95 % bootstrap interval.
        Raises:
            ValueError: no such model, or their layers do not correspond.
        """
        import pandas as pd

        for name, given in (("model", model), ("reference", reference)):
            choice(name, given, self.models)
        ours, theirs = (_layers_of(self.rows, one) for one in (model, reference))
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
        return pd.DataFrame(cells)

    def plot(self, measures: Sequence[str] = ("interval", "rivals"), colours: Mapping[str, str] | None = None) -> Any:
        """Information per unit through the layers, one panel a measure, one line a model, bands for the 95 % intervals.

        Args:
            measures: names of PROFILE_MEASURES that read layers.
            colours: of models; None takes grey for ``natural`` and a palette for colour-blind readers for the others.
        Returns:
            A matplotlib figure.
        """
        return draw(self.rows, measures, colours)

    def summary(self) -> dict[str, Any]:
        """Everything but what was found of each point, as plain values for `json.dump`."""
        import msgspec

        names = ("models", "eps", "resolution", "n", "copies", "notes", "seconds", "rows")
        return {name: msgspec.to_builtins(getattr(self, name)) for name in names}

    def __str__(self) -> str:
        lines = [f"Linf eps {self.eps:g}, n = {self.n}, layers read at {self.resolution:g} of their spread"]
        deepest = {model: _deepest(self.rows, model) for model in self.models}
        for name, row in PROFILE_MEASURES.items():
            found = [one for one in self.rows if one.measure == name and one.layer in ("", deepest[one.model])]
            where = "" if row.of_network else f", {' / '.join(dict.fromkeys(deepest.values()))}"
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
    measures: Sequence[str] | None = None,
    layers: Sequence[str] | None = None,
    resolution: float = 0.1,
    copies: int = 16,
    batch_size: int = 256,
    seed: int = 0,
    verbose: bool = True,
) -> InformationProfile:
    """Read, layer by layer, what a perturbation, the data and the labels leave in several networks.

    Args:
        classifiers: name -> ART PyTorchClassifier, TensorFlowV2Classifier or KerasClassifier that returns logits; all of the
            same input shape and number of classes. They leave as they came.
        x: points of shape (n, *input_shape), raw units, inside clip_values; n >= 2.
        y: their classes, indices (n,) or one-hot rows. Without, each network's own predictions stand for them, and what needs
            labels is missing.
        eps: Linf radius of the perturbations, in the units of x.
        measures: names of PROFILE_MEASURES; None takes all.
        layers: names of `Backend.layer_names`, or "input"; each must be a layer of every network. None takes all.
        resolution: tau as a share of each layer's standard deviation between points.
        copies: random perturbations of each point, >= 2.
        batch_size: points in the network at a time: what memory grows with.
        seed: of perturbations and bootstrap.
        verbose: show progress on stderr.
    Returns:
        Means over the points with 95 % bootstrap intervals. A measure that a network has no rule for is a row without a
        value and with the reason; infinite values stay infinite.
    Raises:
        TypeError: not a supported estimator.
        ValueError: an argument is out of its range.
    Source: arXiv 2008.03072 for the question; the bound is equation (1) of the method page, the others stand in
        `art_entropic.information`.
    """
    from tqdm.auto import tqdm

    began = time.perf_counter()
    backends = _check_classifiers(classifiers)
    first = next(iter(backends.values())).estimator
    eps = check_eps(eps, first.clip_values)
    x = check_inputs(x, input_shape=tuple(first.input_shape), clip_values=first.clip_values)
    if len(x) < 2:
        raise ValueError(f"`x` must hold at least 2 points, whose spread is the scale that layers are read in, got {len(x)}")
    labels = None if y is None else check_labels(y, n=len(x), nb_classes=int(first.nb_classes))
    chosen = tuple(PROFILE_MEASURES) if measures is None else _check_measures(measures, PROFILE_MEASURES)
    if finite("resolution", resolution) <= 0:
        raise ValueError(f"`resolution` must be positive, got {resolution!r}")
    if positive_int("copies", copies) < 2:
        raise ValueError(f"`copies` must be at least 2, got {copies!r}")
    positive_int("batch_size", batch_size)
    whole_number("seed", seed)
    verbose = flag("verbose", verbose)

    networks = {}
    for name, backend in backends.items():
        own = np.asarray(backend.logits(x, batch_size)).argmax(axis=1) if labels is None else labels
        networks[name] = _Network(backend, x, own, eps, resolution, batch_size), own
    kept = {name: _choose(name, network, layers) for name, (network, _) in networks.items()}
    rows: list[ProfileRow] = []
    points: dict[tuple[str, str, str], Array] = {}
    steps = len(_chunks(len(x), batch_size, copies)) * len(networks)
    with tqdm(total=steps, desc="information", disable=not verbose, leave=False) as bar:
        for name, (network, own) in networks.items():
            reader = _Reader(name, network, x, own, chosen, kept[name], seed, labelled=labels is not None)
            rows += reader.read(copies, batch_size, bar.update)
            points |= reader.points
    notes = _notes({name: network for name, (network, _) in networks.items()}, labels is not None)
    return InformationProfile(
        tuple(networks), eps, resolution, len(x), copies, tuple(rows), notes, time.perf_counter() - began, points
    )


def _check_classifiers(classifiers: Any) -> dict[str, Backend]:
    if not isinstance(classifiers, Mapping):
        raise TypeError(f"`classifiers` must map names to ART classifiers, got {type(classifiers).__name__}")
    if not classifiers:
        raise ValueError("`classifiers` must hold at least one classifier, got none")
    for name in classifiers:
        if not isinstance(name, str):
            raise TypeError(f"`classifiers` must have names that are texts, got {name!r}")
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


def _choose(name: str, network: _Network, layers: Sequence[str] | None) -> tuple[str, ...]:
    if layers is None:
        return network.layers
    if not listed("layers", layers, "names of layers"):
        raise ValueError(f"`layers` must be a sequence of at least one layer's name, got {layers!r}")
    for layer in layers:
        if not isinstance(layer, str) or layer not in network.layers:
            known = ", ".join(map(repr, network.layers))
            raise ValueError(f"`layers` must be among the layers of {name!r}, {known}; got {layer!r}")
    return tuple(layer for layer in network.layers if layer in layers)


def _chunks(n: int, batch_size: int, copies: int) -> list[slice]:
    size = max(1, batch_size // (max(copies, MOST_RIVALS + 1)))
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


class _Reader:
    """All measures of one network."""

    def __init__(
        self,
        name: str,
        network: _Network,
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
        for where in _chunks(len(self._x), batch_size, copies):
            x = self._x[where]
            noise = rng.random((len(x), copies, *x.shape[1:]), dtype=np.float32)
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


def _notes(networks: Mapping[str, _Network], labelled: bool) -> tuple[str, ...]:
    notes = [] if labelled else ["Without labels each network's own predictions stand for them."]
    shapes = {tuple(network.units.values()) for network in networks.values()}
    if len(shapes) > 1:
        told = "; ".join(f"{name}: {', '.join(network.layers)}" for name, network in networks.items())
        notes.append(f"The layers do not correspond and are aligned by their relative depth: {told}.")
    for name, network in networks.items():
        if network.blind is not None:
            notes.append(f"{name} cannot be looked into, only its input and its logits are read: {network.blind}")
        constant = [layer for layer in network.layers if network.resolution[layer] == 0]
        if constant:
            notes.append(f"{name} has the same values for all points in {', '.join(constant)}: no scale to read it in.")
    return tuple(notes)


# ------------------------------------------------------------------------------------------------------ tables, figures


def frame(rows: Sequence[ProfileRow]) -> pd.DataFrame:
    """Rows of a profile as a table; `per_unit` is the value per unit of the layer, `low` and `high` are of the value."""
    import pandas as pd

    numbers = ("value", "low", "high", "loss", "loss_low", "loss_high")
    cells = []
    for row in rows:
        values = {name: _float(getattr(row, name)) for name in numbers}
        per_unit = values["value"] / row.units if row.units and PROFILE_MEASURES[row.measure].by_unit else math.nan
        known = {name: getattr(row, name) for name in ("model", "layer", "position", "depth", "units", "measure")}
        cells.append({**known, **values, "per_unit": per_unit, "n": row.n, "reason": row.reason or ""})
    return pd.DataFrame(cells)


def draw(rows: Sequence[ProfileRow], measures: Sequence[str], colours: Mapping[str, str] | None = None) -> Any:
    """Information per unit through the layers, one panel a measure; see `InformationProfile.plot`.

    Raises:
        ValueError: a measure does not read layers, or has no value in any of the rows.
    """
    from matplotlib.figure import Figure

    shown = _check_measures(measures, [name for name, one in PROFILE_MEASURES.items() if one.of_network is None])
    figure = Figure(figsize=(4.6 * len(shown), 3.6), layout="constrained")
    for axes, measure in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        plot_layers(axes, rows, measure, colours)
        axes.set_title(PROFILE_MEASURES[measure].title, loc="left", fontsize=10)
    figure.axes[0].legend(frameon=False, fontsize=9)
    return figure


def plot_layers(axes: Any, rows: Sequence[ProfileRow], measure: str, colours: Mapping[str, str] | None = None) -> None:
    """One measure through the layers, in nats per unit, into matplotlib axes; see `draw`."""
    shown = [row for row in rows if row.measure == measure and math.isfinite(_float(row.value))]
    if not shown:
        reasons = "; ".join(dict.fromkeys(row.reason for row in rows if row.measure == measure and row.reason))
        raise ValueError(f"`measures` must have values to be drawn, {measure!r} has none{': ' + reasons if reasons else ''}")
    models = tuple(dict.fromkeys(row.model for row in rows))
    shades = {**palette(models), **(colours or {})}
    for model in models:
        line = [row for row in shown if row.model == model]
        depth = [row.depth for row in line]
        by_unit = PROFILE_MEASURES[measure].by_unit
        low, value, high = (
            [_float(getattr(row, end)) / (row.units if by_unit else 1) for row in line] for end in ("low", "value", "high")
        )
        axes.fill_between(depth, low, high, color=shades[model], alpha=0.2, linewidth=0)
        axes.plot(depth, value, marker="o", color=shades[model], label=model, markersize=4.5, linewidth=1.8)
    _name_layers(axes, shown)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.set_ylabel("nats per unit" if PROFILE_MEASURES[measure].by_unit else "nats")


def _name_layers(axes: Any, shown: Sequence[ProfileRow]) -> None:
    names = {tuple((row.layer, row.depth) for row in shown if row.model == model) for model in {row.model for row in shown}}
    if len(names) > 1:
        axes.set_xlabel("relative depth (0 input, 1 logits)")
        return
    layers = names.pop()
    axes.set_xticks([depth for _, depth in layers], [layer for layer, _ in layers], rotation=30, ha="right")
    axes.set_xlabel("layer")


def _layers_of(rows: Sequence[ProfileRow], model: str) -> list[tuple[str, int]]:
    return list(dict.fromkeys((row.layer, row.units) for row in rows if row.model == model and row.layer))


def _deepest(rows: Sequence[ProfileRow], model: str) -> str:
    found = [row for row in rows if row.model == model and row.layer]
    return max(found, key=lambda row: row.position).layer if found else ""


def _shown(row: ProfileRow) -> str:
    return f"{_float(row.value):.3g}" if row.value is not None else f"- ({row.reason})"


def _float(value: Any) -> float:
    return math.nan if value is None else float(value)


__all__ = ["PROFILE_MEASURES", "InformationProfile", "ProfileMeasure", "information_profile", "matrix_renyi_entropy"]
