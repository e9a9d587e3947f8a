"""What `Backend`, `View` and `Ops` promise, for every framework, with NumPy in float64 as oracle where there is a number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from art.defences.preprocessor import FeatureSqueezing
from small_network import ARCHITECTURE

from art_entropic import intervals
from art_entropic.backends import numpy
from art_entropic.backends.architecture import Conv, Dense, Flatten, MaxPool
from art_entropic.backends.errors import NoIntervalRuleError
from art_entropic.backends.protocol import (
    Activations,
    Backend,
    Batch,
    Controls,
    LayerActivation,
    LayerInterval,
    Propagation,
    View,
)
from art_entropic.backends.registry import FRAMEWORKS, backend_for, framework_module
from art_entropic.measures import Activation, Coding
from art_entropic.objective import EntropicObjective
from art_entropic.ops import Array, Box

SHAPE, CLASSES, EPS = (6, 6, 2), 3, 0.15
# Kernel and bias of each layer of ARCHITECTURE, channels last.
SHAPES = [(3, 3, 2, 3), (3,), (3, 3, 3, 4), (4,), (36, 8), (8,), (8, 3), (3,)]
CONTROLS = Controls(EPS, 0.5, 0.3)


# ---------------------------------------------------------------------------------------------------------- the oracle


def silu(z: Array) -> Array:
    return z / (1 + np.exp(-z))


class Layer(NamedTuple):
    """h -> activation(h W + b), with (n, units) on both sides."""

    weight: Array
    bias: Array
    activation: str | None

    def out(self, z: Array) -> Array:
        return {"relu": lambda: np.maximum(z, 0), "silu": lambda: silu(z), None: lambda: z}[self.activation]()

    def slope(self, z: Array) -> Array:
        gate = 1 / (1 + np.exp(-z))
        return {"relu": 1.0 * (z > 0), "silu": gate + z * gate * (1 - gate), None: np.ones_like(z)}[self.activation]

    def bounds(self, box: Box) -> Box:
        through = intervals.affine(lambda t: t @ self.weight + self.bias, lambda t: t @ np.abs(self.weight), box)
        return Box(*(end.astype(np.float64) for end in through))

    def bounds_out(self, box: Box) -> Box:
        if self.activation == "silu":
            return intervals.valley(numpy.ops, silu, intervals.SILU_ARGMIN, box)
        return intervals.monotone(self.out, box)


def unrolled(kernel: Array, bias: Array, layer: Conv, shape: tuple[int, int, int]) -> tuple[Array, Array]:
    """A convolution of images of that shape as a matrix and a bias."""
    units, pad = int(np.prod(shape)), layer.padding
    basis = np.pad(np.eye(units).reshape(units, *shape), ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    height, width = ((length + 2 * pad - layer.kernel) // layer.stride + 1 for length in shape[:2])
    windows = np.lib.stride_tricks.sliding_window_view(basis, (layer.kernel, layer.kernel), (1, 2))
    image = np.einsum("nhwcij,ijco->nhwo", windows[:, :: layer.stride, :: layer.stride], kernel)
    return image.reshape(units, -1), np.tile(bias, height * width)


class Reference:
    """`View` of the network of ARCHITECTURE in NumPy and float64. Inputs (n, 6, 6, 2), layers (n, units)."""

    ops = numpy.ops

    def __init__(self, arrays: list[Array], mean: Any = 0.0, std: Any = 1.0, clip_values: Any = (0.0, 1.0)) -> None:
        self._mean, self._std, self._clip_values = mean, std, clip_values
        first, second, *dense = (arrays[i : i + 2] for i in range(0, len(arrays), 2))
        convolutions = [unrolled(*first, ARCHITECTURE[0], (6, 6, 2)), unrolled(*second, ARCHITECTURE[1], (6, 6, 3))]
        self._layers = [
            Layer(*pair, a) for pair, a in zip([*convolutions, *dense], ("relu", "silu", "relu", None), strict=True)
        ]

    def _inputs(self, x: Array) -> Array:
        return ((x - self._mean) / self._std).reshape(len(x), -1)

    def _per_input(self, x: Array) -> Array:
        return np.broadcast_to(self._std, x.shape[1:]).reshape(-1, 1)

    def activations(self, x: Array) -> Activations:
        values, h = [], self._inputs(x)
        for layer in self._layers:
            values.append(h @ layer.weight + layer.bias)
            h = layer.out(values[-1])
        return Activations(h, tuple(LayerActivation(str(index), value) for index, value in enumerate(values)))

    def logits(self, x: Array) -> Array:
        return self.activations(x).logits

    def ball(self, x: Array, eps: float) -> Box:
        low, high = (-np.inf, np.inf) if self._clip_values is None else self._clip_values
        return Box(np.clip(x - eps, low, high), np.clip(x + eps, low, high))

    def propagate(self, x: Array, eps: float, norm: float = np.inf) -> Propagation:
        boxes, box = [], Box(*map(self._inputs, self.ball(x, eps)))
        for index, layer in enumerate(self._layers):
            boxes.append(layer.bounds(box))
            if norm == 2 and index == 0:
                far = eps * np.linalg.norm(layer.weight / self._per_input(x), axis=0)
                value = self._inputs(x) @ layer.weight + layer.bias
                boxes = [Box(np.maximum(boxes[0].lower, value - far), np.minimum(boxes[0].upper, value + far))]
            box = layer.bounds_out(boxes[-1])
        return Propagation(self.logits(x), box, tuple(LayerInterval(str(index), one) for index, one in enumerate(boxes)))

    def input_gradient(self, x: Array, direction: Callable[[Array], Array]) -> tuple[Array, Array]:
        logits, layers = self.activations(x)
        gradient = direction(logits)
        for layer, (_, value) in zip(reversed(self._layers), reversed(layers), strict=True):
            gradient = (gradient * layer.slope(value)) @ layer.weight.T
        return logits, gradient.reshape(x.shape) / self._std

    def linearised(self, x: Array, point: Array, direction: Callable[[Array], Array]) -> tuple[Array, Array, Array]:
        return self.logits(x), *self.input_gradient(point, direction)

    def penalty(self) -> None:
        return None


# -------------------------------------------------------------------------------------------------- networks and batches


class Pair(NamedTuple):
    """The same network twice: behind a backend, and where it is that of ARCHITECTURE, in NumPy."""

    framework: str
    backend: Backend
    oracle: Any = None
    arrays: Any = ()

    def inputs(self, x: Array) -> Array:
        """(n, 6, 6, 2) as the framework wants it, in float32."""
        first = FRAMEWORKS[self.framework].channels_first and x.ndim == 4
        return np.ascontiguousarray(x.transpose(0, 3, 1, 2) if first else x, np.float32)

    def units(self, values: Array) -> Array:
        """(n, ...) of the framework as the oracle has it, (n, units)."""
        first = FRAMEWORKS[self.framework].channels_first and values.ndim == 4
        return (values.transpose(0, 2, 3, 1) if first else values).reshape(len(values), -1)

    def state(self, arrays: list[Array]) -> dict[str, Array]:
        singles = [array.astype(np.float32) for array in arrays]
        return framework_module(self.framework).state_of(ARCHITECTURE, SHAPE, singles)


def with_settings(classifier: Any, **settings: Any) -> Any:
    """An estimator of the same network with other settings; ART's `set_params` forgets the framework's preprocessing."""
    return type(classifier)(**(classifier.get_params() | settings))


@pytest.fixture
def make_pair(framework: str, make_classifier: Any) -> Callable[..., Pair]:
    def make(preprocessing: Any = None, clip_values: Any = (0.0, 1.0)) -> Pair:
        classifier = with_settings(make_classifier(framework), preprocessing=preprocessing, clip_values=clip_values)
        rng = np.random.default_rng(5)
        arrays = [rng.normal(0, 1.5 / np.sqrt(np.prod((2, *shape[:-1]))), shape) for shape in SHAPES]
        pair = Pair(framework, backend_for(classifier), Reference(arrays, *(preprocessing or (0.0, 1.0)), clip_values), arrays)
        pair.backend.load_state(pair.state(arrays))
        return pair

    return make


@pytest.fixture
def pair(make_pair: Any) -> Pair:
    return make_pair()


def images(n: int = 7, seed: int = 0) -> Array:
    return np.random.default_rng(seed).random((n, *SHAPE))


def oracle_batch(n: int = 7, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    x = rng.random((n, *SHAPE))
    return Batch(x, np.eye(CLASSES)[rng.integers(0, CLASSES, n)], rng.uniform(-1, 1, x.shape), rng.random(n))


def batch_for(pair: Pair, n: int = 7, seed: int = 0) -> Batch:
    return Batch(*(pair.inputs(part) for part in oracle_batch(n, seed)[:4]))


def assert_same(one: dict[str, Array], other: dict[str, Array]) -> None:
    assert one.keys() == other.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name], err_msg=name)


def differs(one: dict[str, Array], other: dict[str, Array]) -> bool:
    return any(not np.array_equal(array, other[name]) for name, array in one.items())


def close(got: Any, wanted: Any) -> None:
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------------------------------- Ops

ROWS = np.array([[0.5, 2.0, -1.5], [3.0, -0.25, 0.125], [1.0, 1.5, 4.0], [-2.0, 0.75, 0.0]])
OTHER = ROWS[::-1] * 0.5 + 0.25
# fmt: off
OPERATIONS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "abs": lambda ops, x, y: ops.abs(x),
    "log1p": lambda ops, x, y: ops.log1p(ops.abs(x)),
    "sqrt": lambda ops, x, y: ops.sqrt(ops.abs(x)),
    "minimum": lambda ops, x, y: ops.minimum(x, y),
    "maximum": lambda ops, x, y: ops.maximum(x, y),
    "where": lambda ops, x, y: ops.where(x > y, x, y),
    "sum": lambda ops, x, y: ops.sum(x, axis=1) + ops.sum(y),
    "mean": lambda ops, x, y: ops.mean(x, axis=0) + ops.mean(y),
    "max": lambda ops, x, y: ops.max(x, axis=1),
    "largest": lambda ops, x, y: ops.largest(x, 2),
    "cumsum": lambda ops, x, y: ops.cumsum(x, axis=1),
    "one_hot": lambda ops, x, y: ops.cast_like(ops.one_hot(ops.sum(ops.cast_like(x > y, x), axis=1), 4), x),
    "softmax": lambda ops, x, y: ops.softmax(x),
    "log_softmax": lambda ops, x, y: ops.log_softmax(x),
    "flatten": lambda ops, x, y: ops.flatten(x[:, :, None] * x[:, None, :]),
    "reshape_like": lambda ops, x, y: ops.reshape_like(x[:, :, None], y),
    "constant": lambda ops, x, y: ops.constant([1.0, -2.0, 0.5], x) * x,
    "cast_like": lambda ops, x, y: ops.cast_like(x < y, x),
    "concatenate": lambda ops, x, y: ops.concatenate(x, y),
    "parts": lambda ops, x, y: ops.concatenate(*reversed(ops.parts(x, 0.6))),
    "halves": lambda ops, x, y: ops.concatenate(*reversed(ops.halves(x))),
    "gram of rows": lambda ops, x, y: ops.gram(x, 0),
    "gram of columns": lambda ops, x, y: ops.gram(x, 1),
    "logdet1p": lambda ops, x, y: ops.logdet1p(ops.gram(x, 1)),
    "logdet1p of no number": lambda ops, x, y: ops.logdet1p(ops.gram(x / 0.0, 1)),
}
# fmt: on


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_is_that_of_numpy(name: str, pair: Pair) -> None:
    def objective(view: View, x: Any, y: Any, more: Any) -> Any:
        return OPERATIONS[name](view.ops, y, more), view.ops.sum(y, axis=1)

    with np.errstate(divide="ignore", invalid="ignore"):
        wanted = OPERATIONS[name](numpy.ops, ROWS, OTHER)
    got = pair.backend.ascent(objective, CLASSES)(pair.inputs(images(4)), ROWS, OTHER).logits
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


# --------------------------------------------------------------------------------------------- arrays in, arrays out

STANDARDISATIONS = {"raw": None, "scalar": (0.3, 0.5), "per channel": (np.array([0.1, 0.4]), np.array([0.5, 2.0]))}


@pytest.mark.parametrize("kind", STANDARDISATIONS)
def test_logits_and_gradients_are_those_of_the_reference_and_of_art(kind: str, make_pair: Any) -> None:
    pair, x = make_pair(STANDARDISATIONS[kind]), images(9)
    estimator, v = pair.backend.estimator, np.eye(CLASSES)[np.arange(9) % CLASSES]
    for inputs, size in ((pair.inputs(x), 256), (pair.inputs(x), 4), (pair.inputs(x).astype(np.float64), 4)):
        logits = pair.backend.logits(inputs, batch_size=size)
        assert logits.dtype == np.float32
        close(logits, pair.oracle.logits(x))
    close(logits, estimator.predict(pair.inputs(x)))
    close(pair.backend.predict(pair.inputs(x)), logits)
    gradient = pair.backend.input_gradient(pair.inputs(x), v, batch_size=4)
    close(pair.units(gradient), pair.oracle.input_gradient(x, lambda _: v)[1].reshape(9, -1))
    close(gradient, estimator.class_gradient(pair.inputs(x), label=np.argmax(v, 1))[:, 0])


@pytest.mark.parametrize("norm", [np.inf, 2.0])
@pytest.mark.parametrize("kind", STANDARDISATIONS)
@pytest.mark.parametrize("clip_values", [(0.0, 1.0), None], ids=["clipped", "whole"])
def test_values_and_bounds_of_the_layers_are_those_of_the_reference(
    kind: str, clip_values: Any, norm: float, make_pair: Any
) -> None:
    pair, x = make_pair(STANDARDISATIONS[kind], clip_values), images(9)
    values = pair.backend.activations(pair.inputs(x), batch_size=4)
    bounds = pair.backend.intervals(pair.inputs(x), EPS, batch_size=4, norm=norm)
    assert tuple(values) == tuple(bounds) == pair.backend.layer_names()
    for value, wanted in zip(values.values(), pair.oracle.activations(x).layers, strict=True):
        close(pair.units(value), wanted.value)
    for box, wanted in zip(bounds.values(), pair.oracle.propagate(x, EPS, norm).layers, strict=True):
        assert isinstance(box, Box) and isinstance(box.lower, np.ndarray)
        close([pair.units(end) for end in box], wanted.box)
    close(pair.backend.logit_bounds(pair.inputs(x), EPS, batch_size=4, norm=norm), box)


def test_no_point_of_the_ball_leaves_the_bounds_of_any_layer_nor_does_a_climb_on_the_margin(pair: Pair) -> None:
    x, rng = pair.inputs(images()), np.random.default_rng(1)
    bounds = pair.backend.intervals(x, EPS)
    noise = [rng.uniform(-1, 1, x.shape) for _ in range(4)]
    points = [np.clip(x + EPS * step, 0, 1) for step in (*noise, *map(np.sign, noise))]
    for target in range(CLASSES):
        margin = pair.backend.ascent(lambda view, x, y, _: ((z := view.logits(x)), view.ops.sum(y * z, axis=1)), CLASSES)
        for sign in (-1.0, 1.0):
            point, y = x, np.tile(sign * np.eye(CLASSES)[target], (len(x), 1))
            for _ in range(10):
                step = 0.03 * np.sign(margin(point, y, y).gradient)
                point = np.clip(point + step, np.maximum(x - EPS, 0), np.minimum(x + EPS, 1))
            points.append(point)
    for point in points:
        for name, value in pair.backend.activations(point.astype(np.float32)).items():
            slack = 1e-5 * (1 + np.abs(value))
            assert np.all(value >= bounds[name].lower - slack) and np.all(value <= bounds[name].upper + slack), name


# ------------------------------------------------------------------------------------------------------------------ View

# What an objective may ask of the network, as (n, ...).
PASSES: dict[str, Callable[[Any, Any], Any]] = {
    "logits": lambda view, x: view.logits(x),
    "ball": lambda view, x: sum(view.ball(x, EPS)),
    "logits of the joint pass": lambda view, x: view.propagate(x, EPS).logits,
    "lower": lambda view, x: view.propagate(x, EPS).box.lower,
    "upper": lambda view, x: view.propagate(x, EPS).box.upper,
    "lower over the L2 ball": lambda view, x: view.propagate(x, EPS, 2.0).box.lower,
    "half width": lambda view, x: view.propagate(x, EPS).layers[1].half_width,
    "activation": lambda view, x: view.activations(x).layers[1].value,
    "logits of the traced pass": lambda view, x: view.activations(x).logits,
    "input gradient": lambda view, x: view.input_gradient(x, lambda z: z * 0.0 + 1.0)[1],
}


@pytest.mark.parametrize("name", PASSES)
def test_what_a_view_gives_and_its_gradient_in_x_are_those_of_the_reference(name: str, pair: Pair) -> None:
    def objective(view: Any, x: Any, y: Any, more: Any) -> Any:
        asked = PASSES[name](view, x)
        return asked, view.ops.sum(view.ops.flatten(asked * asked), axis=1)

    x, step = images(), np.random.default_rng(3).normal(size=(7, *SHAPE))
    y = np.zeros((7, CLASSES))
    got = pair.backend.ascent(objective, CLASSES)(pair.inputs(x), y, y)
    wanted, values = objective(pair.oracle, x, y, y)
    close(pair.units(got.logits), wanted.reshape(7, -1))
    close(got.values, values)
    there, back = (objective(pair.oracle, x + t * step, y, y)[1] for t in (1e-6, -1e-6))
    slope = (pair.units(got.gradient) * step.reshape(7, -1)).sum(axis=1)
    np.testing.assert_allclose(slope, (there - back) / 2e-6, rtol=1e-3, atol=1e-3 * np.abs(slope).max())


def test_direction_is_told_the_logits_and_carries_no_gradient(pair: Pair) -> None:
    batch = batch_for(pair)
    tripled = batch._replace(y=3 * pair.backend.logits(batch.x))

    def size(direction: Callable[[Any, Any], Any]) -> Any:
        def objective(view: View, batch: Batch, controls: Controls) -> Any:
            _, gradient = view.input_gradient(batch.x, lambda z: direction(z, batch.y))
            return {"loss": view.ops.sum(gradient * gradient)}

        return pair.backend.dry_step(objective, tripled, CONTROLS)

    told, given = size(lambda z, y: 3 * z), size(lambda z, y: y)
    np.testing.assert_allclose([*told.values()], [*given.values()], rtol=1e-4)


# ----------------------------------------------------------------------------------------------------------------- steps


def cross_entropy(ops: Any, logits: Any, y: Any) -> Any:
    return -ops.mean(ops.sum(y * ops.log_softmax(logits), axis=1))


def natural(view: Any, batch: Batch, controls: Controls) -> dict[str, Any]:
    return {"loss": cross_entropy(view.ops, view.logits(batch.x), batch.y)}


def worst_case(view: Any, batch: Batch, controls: Controls) -> dict[str, Any]:
    ops, result = view.ops, view.propagate(batch.x, controls.eps)
    worst = batch.y * result.box.lower + (1.0 - batch.y) * result.box.upper
    spread = sum(ops.mean(ops.log1p(2.0 * layer.half_width)) for layer in result.layers)
    terms = {"clean": cross_entropy(ops, result.logits, batch.y), "worst": cross_entropy(ops, worst, batch.y), "spread": spread}
    return {"loss": terms["clean"] + controls.k * terms["worst"] + controls.beta * spread, **terms}


def gradient_size(view: Any, batch: Batch, controls: Controls) -> dict[str, Any]:
    ops = view.ops
    _, gradient = view.input_gradient(batch.x + controls.eps * batch.ball_noise, lambda z: batch.y)
    size = ops.mean(ops.sum(ops.abs(ops.flatten(gradient)), axis=1))
    return {"loss": cross_entropy(ops, view.logits(batch.x), batch.y) + size, "size": size}


def size_of_layers(view: Any, batch: Batch, controls: Controls) -> dict[str, Any]:
    logits, layers = view.activations(batch.x)
    return {"loss": cross_entropy(view.ops, logits, batch.y) + sum(view.ops.mean(one.value * one.value) for one in layers)}


NUMBERS = [natural, worst_case, gradient_size, size_of_layers]
ENTROPIC = [EntropicObjective(Coding(layers="dense", read_share=1.0)), EntropicObjective(Activation())]
OBJECTIVES = [*NUMBERS, *ENTROPIC]


def plain_descent(pair: Pair, rate: float) -> None:
    """An optimizer whose step is the gradient."""
    if pair.framework == "pytorch":
        import torch

        pair.backend.estimator._optimizer = torch.optim.SGD(pair.backend.estimator.model.parameters(), lr=rate)
    else:
        import keras

        pair.backend.estimator._optimizer = keras.optimizers.SGD(rate)


@pytest.mark.parametrize("objective", NUMBERS)
def test_a_step_goes_down_the_gradient_of_the_reference(objective: Any, pair: Pair) -> None:
    """Along random directions of all weights, by central differences."""
    plain_descent(pair, 1.0)
    before, wanted = pair.backend.state(), objective(pair.oracle, oracle_batch(), CONTROLS)
    measured = pair.backend.measuring_step(objective)(batch_for(pair), CONTROLS)
    dry = pair.backend.dry_step(objective, batch_for(pair), CONTROLS)
    terms = pair.backend.training_step(objective)(batch_for(pair), CONTROLS)
    moved = {name: before[name] - array for name, array in pair.backend.state().items()}
    assert terms.keys() == dry.keys() == measured.keys() | {"gradient_norm"} == wanted.keys() | {"gradient_norm"}
    for name, value in wanted.items():
        close([terms[name], dry[name], measured[name]], [value] * 3)
    norm = np.sqrt(sum(np.sum(array.astype(np.float64) ** 2) for array in moved.values()))
    np.testing.assert_allclose([terms["gradient_norm"], dry["gradient_norm"]], norm, rtol=1e-4)
    rng = np.random.default_rng(4)
    for _ in range(4):
        direction = [rng.normal(size=shape) for shape in SHAPES]

        def along(t: float, direction: list[Array] = direction) -> float:
            arrays = [array + t * step for array, step in zip(pair.arrays, direction, strict=True)]
            return float(objective(Reference(arrays), oracle_batch(), CONTROLS)["loss"])

        slope = sum(float(np.sum(moved[name] * step)) for name, step in pair.state(direction).items())
        np.testing.assert_allclose(slope, (along(1e-6) - along(-1e-6)) / 2e-6, rtol=1e-3, atol=1e-3 * norm)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_steps_take_uneven_batches_and_learn(objective: Any, pair: Pair) -> None:
    with pair.backend.training(seed=0):
        step = pair.backend.training_step(objective)
        first = step(batch_for(pair, 16), CONTROLS)
        for n, eps in ((7, 0.02), (1, 0.03), (16, 0.05)):
            step(batch_for(pair, n), Controls(eps, 0.3, 0.2))
        for _ in range(12):
            last = step(batch_for(pair, 16), CONTROLS)
    assert last["loss"] < first["loss"]
    assert last["gradient_norm"] > 0


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_step_that_is_not_finite_leaves_weights_and_optimizer_alone(objective: Any, pair: Pair) -> None:
    step = pair.backend.training_step(objective)
    step(batch_for(pair), CONTROLS)
    weights, slots = pair.backend.state(), pair.backend.optimizer_state()
    broken = batch_for(pair)
    broken.y[3] = np.nan  # not x: TensorFlow's ReLU makes 0 of NaN
    assert not np.isfinite(step(broken, CONTROLS)["loss"])
    assert_same(pair.backend.state(), weights)
    assert_same(pair.backend.optimizer_state(), slots)
    assert np.isfinite(step(batch_for(pair), CONTROLS)["loss"])


# ------------------------------------------------------------------------------------- networks that draw and remember


def small_classifier(framework: str, odd: str = "") -> Any:
    """Dense layers around others: batch norm, ReLU and dropout, or the one that is asked for, which is then named "odd"."""
    if framework == "pytorch":
        from collections import OrderedDict

        import torch
        from art.estimators.classification import PyTorchClassifier
        from torch import nn

        class Sine(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return torch.sin(x)

        torch.manual_seed(0)
        usual = {"norm": nn.BatchNorm1d(20), "relu": nn.ReLU(), "drop": nn.Dropout(0.5)}
        middle = {"": usual, "softmax": {"odd": nn.Softmax(1)}, "sine": {"odd": Sine()}}[odd]
        layers = {"flat": nn.Flatten(), "first": nn.Linear(72, 20), **middle, "logits": nn.Linear(20, CLASSES)}
        model = nn.Sequential(OrderedDict(layers))
        model[3].eval()  # a mode of its own, which must survive
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        return PyTorchClassifier(model, nn.CrossEntropyLoss(), (2, 6, 6), CLASSES, optimizer, clip_values=(0.0, 1.0))
    import keras
    import tensorflow as tf
    from art.estimators.classification import TensorFlowV2Classifier
    from keras import layers as L

    keras.utils.set_random_seed(0)
    usual = [L.BatchNormalization(), L.ReLU(), L.Dropout(0.5)]
    middle = {"": usual, "softmax": [L.Softmax(name="odd")], "sine": [L.Activation(tf.sin, name="odd")]}[odd]
    model = keras.Sequential([keras.Input(SHAPE), L.Flatten(), L.Dense(20), *middle, L.Dense(CLASSES, name="logits")])
    loss, adam = keras.losses.CategoricalCrossentropy(from_logits=True), keras.optimizers.Adam(0.01)
    return TensorFlowV2Classifier(model, CLASSES, SHAPE, loss, adam, clip_values=(0.0, 1.0))


@pytest.fixture
def random_pair(framework: str) -> Callable[[], Pair]:
    """Networks with the same weights, batch norm and dropout; no oracle."""
    return lambda: Pair(framework, backend_for(small_classifier(framework)))


def generator_draws(framework: str) -> tuple[Callable[[], None], Callable[[], Array]]:
    """To set the seed of the framework's own generator, and two numbers of it."""
    if framework == "pytorch":
        import torch

        return lambda: torch.manual_seed(3), lambda: torch.rand(2).numpy()
    import tensorflow as tf

    return lambda: tf.random.set_seed(3), lambda: tf.random.uniform((2,)).numpy()


def fails(view: Any, batch: Batch, controls: Controls) -> dict[str, Any]:
    natural(view, batch, controls)
    raise RuntimeError("as asked")


def failing_dry_step(pair: Pair, batch: Batch) -> None:
    with pytest.raises(RuntimeError, match="as asked"):
        pair.backend.dry_step(fails, batch, CONTROLS)


def training_put_back(pair: Pair, batch: Batch) -> None:
    """Only modes, gradients and generators come back by themselves."""
    weights, rest = pair.backend.state(), pair.backend.optimizer_state()
    with pair.backend.training(seed=8):
        pair.backend.training_step(natural)(batch, CONTROLS)
    generators = {name: array for name, array in pair.backend.optimizer_state().items() if name.startswith("generator")}
    pair.backend.load_state(weights)
    pair.backend.load_optimizer_state(rest | generators)


# fmt: off
LOOKS: dict[str, Callable[[Pair, Batch], Any]] = {
    "logits": lambda pair, batch: pair.backend.logits(batch.x),
    "predict": lambda pair, batch: pair.backend.predict(batch.x),
    "both logits": lambda pair, batch: pair.backend.both_logits(batch.x, EPS, training=True),
    "layer names": lambda pair, batch: pair.backend.layer_names(),
    "curved operation": lambda pair, batch: pair.backend.curved_operation(batch.x),
    "activations": lambda pair, batch: pair.backend.activations(batch.x),
    "intervals": lambda pair, batch: pair.backend.intervals(batch.x, EPS),
    "logit bounds": lambda pair, batch: pair.backend.logit_bounds(batch.x, EPS),
    "input gradient": lambda pair, batch: pair.backend.input_gradient(batch.x, batch.y),
    "ascent": lambda pair, batch: pair.backend.ascent(
        lambda view, x, y, more: ((z := view.logits(x)), view.ops.sum(y * z, axis=1)), CLASSES
    )(batch.x, batch.y, batch.y),
    "measuring step": lambda pair, batch: pair.backend.measuring_step(worst_case)(batch, CONTROLS),
    "dry step": lambda pair, batch: pair.backend.dry_step(worst_case, batch, CONTROLS),
    "dry step that raises": failing_dry_step,
    "training": training_put_back,
}
# fmt: on


@pytest.mark.parametrize("name", LOOKS)
def test_what_only_looks_leaves_everything_as_it_was(name: str, random_pair: Any) -> None:
    pair, (reset, draw) = random_pair(), generator_draws(random_pair().framework)
    batch = batch_for(pair)
    reset()
    expected = [draw(), draw()]
    reset()
    first, before = draw(), remembered(pair)
    LOOKS[name](pair, batch)
    assert_same(remembered(pair), before)
    np.testing.assert_array_equal([first, draw()], expected)


def remembered(pair: Pair) -> dict[str, Array]:
    """Weights, statistics, generators and slots of the optimizer; on PyTorch the modes and gradients that modules have, too."""
    told = pair.backend.state() | pair.backend.optimizer_state()
    if pair.framework == "pytorch":
        model = pair.backend.estimator.model
        told |= {f"{name} in training": np.array(module.training) for name, module in model.named_modules()}
        told |= {f"{name} without gradient": np.array(one.grad is None) for name, one in model.named_parameters()}
    return told


def test_measuring_is_in_inference_mode_and_training_is_not(random_pair: Any) -> None:
    pair = random_pair()
    measure, batch = pair.backend.measuring_step(worst_case), batch_for(pair)
    one, two = measure(batch, CONTROLS), measure(batch, CONTROLS)
    assert one == two
    logits = pair.backend.logits(batch.x)
    close(one["clean"], cross_entropy(numpy.ops, logits, batch.y))
    assert abs(pair.backend.dry_step(natural, batch, CONTROLS)["loss"] - one["clean"]) > 1e-3


def test_the_joint_pass_has_the_masks_and_statistics_of_the_plain_one_and_moves_them_once(random_pair: Any) -> None:
    plain, joint = random_pair().backend.both_logits(batch_for(random_pair()).x, EPS, training=True)
    close(joint, plain)
    moved = []
    for objective in (natural, worst_case, size_of_layers):
        pair = random_pair()
        pair.backend.learning_rate = 0.0
        with pair.backend.training(seed=1):
            pair.backend.training_step(objective)(batch_for(pair), CONTROLS)
        moved.append(pair.backend.state())
    assert differs(moved[0], random_pair().backend.state())
    for state in moved[1:]:
        for name, array in state.items():
            close(array, moved[0][name])


def test_one_seed_gives_one_result_bit_for_bit_and_another_seed_another(random_pair: Any) -> None:
    def run(seed: int) -> dict[str, Array]:
        pair = random_pair()
        generator_draws(pair.framework)[0]()
        with pair.backend.training(seed):
            step = pair.backend.training_step(worst_case)
            for index in range(4):
                step(batch_for(pair, 16, index), CONTROLS)
        return pair.backend.state()

    one = run(1)
    assert_same(run(1), one)
    assert differs(run(2), one)


# ----------------------------------------------------------------------------------------------------------------- state


def test_training_resumes_exactly(random_pair: Any) -> None:
    def steps(pair: Pair, seeds: range) -> None:
        step = pair.backend.training_step(worst_case)
        for seed in seeds:
            step(batch_for(pair, 8, seed), CONTROLS)

    whole, resumed = random_pair(), random_pair()
    with whole.backend.training(seed=1):
        steps(whole, range(3))
        weights, rest = whole.backend.state(), whole.backend.optimizer_state()
        steps(whole, range(3, 6))
    with resumed.backend.training(seed=99):
        resumed.backend.load_state(weights)
        resumed.backend.load_optimizer_state(rest)
        assert_same(resumed.backend.optimizer_state(), rest)
        steps(resumed, range(3, 6))
    assert_same(resumed.backend.state(), whole.backend.state())


def test_state_is_a_copy_and_fits_only_its_own_network(pair: Pair) -> None:
    state = pair.backend.state()
    for array in state.values():
        array += 1.0
    assert differs(state, pair.backend.state())
    pair.backend.load_state(state)
    assert_same(pair.backend.state(), state)
    name = next(iter(state))
    # PyTorch has an error of its own for this.
    with pytest.raises((ValueError, RuntimeError), match=name):
        pair.backend.load_state({**state, name: state[name][..., :1]})


def test_weights_travel_in_the_format_of_the_framework(make_pair: Any, random_pair: Any, tmp_path: Any) -> None:
    for one, two in ((make_pair(), make_pair()), (random_pair(), random_pair())):
        two.backend.load_state({name: array * 0 for name, array in two.backend.state().items()})
        path = tmp_path / f"network{one.backend.weights_suffix}"
        one.backend.save_weights(path)
        two.backend.load_weights(path)
        assert_same(two.backend.state(), one.backend.state())


def test_learning_rates_are_those_of_the_optimizer_and_can_be_set(pair: Pair) -> None:
    assert pair.backend.rate_is_settable
    np.testing.assert_allclose([pair.backend.learning_rate, *pair.backend.learning_rates], 0.01, rtol=1e-6)
    pair.backend.learning_rate = 0.125
    assert pair.backend.learning_rates == (0.125,)
    pair.backend.learning_rates = (0.0,)
    before = pair.backend.state()
    pair.backend.training_step(natural)(batch_for(pair), CONTROLS)
    assert_same(pair.backend.state(), before)


def test_data_that_are_held_give_the_batches_of_arrays(pair: Pair) -> None:
    batch, order = batch_for(pair), np.array([4, 0, 2])
    held = pair.backend.hold(batch.x)
    assert len(held) == len(batch.x) and tuple(held.shape) == batch.x.shape
    step = pair.backend.measuring_step(natural)
    some = [part[order] for part in batch[1:4]]
    assert step(Batch(held[order], *some), CONTROLS) == step(Batch(batch.x[order], *some), CONTROLS)


# ---------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("operation", ["softmax", "sine"])
def test_an_operation_without_a_rule_names_itself_its_layer_and_the_measure_that_serves(framework: str, operation: str) -> None:
    pair = Pair(framework, backend_for(small_classifier(framework, operation)))
    batch = batch_for(pair)
    for ask in (
        lambda: pair.backend.intervals(batch.x, EPS),
        lambda: pair.backend.logit_bounds(batch.x, EPS),
        lambda: pair.backend.both_logits(batch.x, EPS, training=False),
        lambda: pair.backend.training_step(worst_case)(batch, CONTROLS),
    ):
        with pytest.raises(NoIntervalRuleError, match='measure="channel"') as caught:
            ask()
        assert operation[:3] in str(caught.value).lower() and caught.value.layer == "odd"
    # What needs no bounds goes on.
    close(pair.backend.logits(batch.x), pair.backend.predict(batch.x))
    assert np.any(pair.backend.input_gradient(batch.x, batch.y) != 0)
    assert pair.backend.training_step(gradient_size)(batch, CONTROLS)["size"] > 0


def test_other_preprocessing_is_refused_by_name(framework: str, make_classifier: Any) -> None:
    squeezing = FeatureSqueezing(clip_values=(0.0, 1.0), bit_depth=4)
    with pytest.raises(ValueError, match="FeatureSqueezing"):
        backend_for(with_settings(make_classifier(framework), preprocessing_defences=squeezing))


@pytest.mark.parametrize("part", ["optimizer", "loss"])
def test_an_estimator_that_lacks_what_trains_it_is_refused_by_what_is_missing(part: str, pair: Pair) -> None:
    pair.backend.check_trainable()
    attribute = "_loss_object" if (part, pair.framework) == ("loss", "tensorflow") else f"_{part}"
    setattr(pair.backend.estimator, attribute, None)
    with pytest.raises(ValueError, match=rf"(?i)`classifier` must have a.*{part}"):
        pair.backend.check_trainable()


def test_a_scheduler_must_be_callable_or_the_frameworks_own(pair: Pair) -> None:
    pair.backend.check_scheduler(None, validates=False)
    pair.backend.check_scheduler(lambda epoch: 0.1, validates=False)
    with pytest.raises(TypeError, match=r"`scheduler`.*int"):
        pair.backend.check_scheduler(3, validates=True)


# ------------------------------------------------------------------------------------------------------------- Framework


def test_a_built_network_has_its_seed_and_its_rate_and_trains_in_art(framework: str, make_classifier: Any, points: Any) -> None:
    one, two, other = (backend_for(make_classifier(framework, seed=seed, learning_rate=0.25)) for seed in (0, 0, 1))
    assert_same(one.state(), two.state())
    assert differs(one.state(), other.state())
    assert one.learning_rate == 0.25
    x, labels = points(framework, n=20)
    y = np.eye(CLASSES, dtype=np.float32)[labels]
    one.estimator.fit(x, y, batch_size=8, nb_epochs=1)
    assert differs(one.state(), two.state())
    assert one.estimator.loss_gradient(x, y).shape == x.shape


def test_convolution_and_pooling_are_the_described_ones_whatever_the_padding_of_the_framework(framework: str) -> None:
    """Keras would pad 6 columns at stride 2 on one side only, or not at all."""
    architecture = (Conv(3, 2, stride=2, padding=1), MaxPool(), Flatten(), Dense(CLASSES, None))
    rng = np.random.default_rng(2)
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in [(2, 2, 2, 3), (3,), (12, CLASSES), (CLASSES,)]]
    module = framework_module(framework)
    classifier = module.build_classifier(
        architecture, input_shape=SHAPE, nb_classes=CLASSES, clip_values=(0.0, 1.0), learning_rate=0.1, seed=0
    )
    pair = Pair(framework, backend_for(classifier))
    pair.backend.load_state(module.state_of(architecture, SHAPE, arrays))
    weight, bias = unrolled(arrays[0], arrays[1], architecture[0], SHAPE)
    convolved = np.maximum(images().reshape(7, -1) @ weight + bias, 0)
    pooled = convolved.reshape(7, 2, 2, 2, 2, 3).max(axis=(2, 4)).reshape(7, -1)
    close(pair.backend.logits(pair.inputs(images())), pooled @ arrays[2] + arrays[3])
    with pytest.raises(ValueError, match="`arrays` must hold the 4 arrays of the network, got 3"):
        module.state_of(architecture, SHAPE, arrays[1:])


def test_inside_untouched_everything_is_seeded_and_all_is_as_before_after(framework: str) -> None:
    classifier, (reset, draw) = small_classifier(framework), generator_draws(framework)
    inside = []
    reset()
    expected = [draw(), draw()]
    reset()
    first = draw()
    for _ in range(2):
        with framework_module(framework).untouched(classifier, seed=7):
            inside.append(draw())
    np.testing.assert_array_equal(*inside)
    np.testing.assert_array_equal([first, draw()], expected)
