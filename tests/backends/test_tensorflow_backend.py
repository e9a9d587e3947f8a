"""The TensorFlow side of the seam: rules that never lose a point, steps that train as Keras does, state that comes back."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")

from art.estimators.classification import KerasClassifier, TensorFlowV2Classifier  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from art_entropic import EntropicTrainer, intervals  # noqa: E402
from art_entropic.backends.architecture import Conv, Dense, Flatten, MaxPool  # noqa: E402
from art_entropic.backends.errors import NoIntervalRuleError  # noqa: E402
from art_entropic.backends.protocol import Batch, Controls  # noqa: E402
from art_entropic.backends.registry import backend_for  # noqa: E402
from art_entropic.backends.tensorflow.backend import TensorFlowView  # noqa: E402
from art_entropic.backends.tensorflow.building import build_classifier  # noqa: E402
from art_entropic.backends.tensorflow.joint import Joint  # noqa: E402
from art_entropic.backends.tensorflow.ops import ops  # noqa: E402
from art_entropic.backends.tensorflow.rules import FUNCTIONS  # noqa: E402
from art_entropic.backends.tensorflow.walk import Walk  # noqa: E402
from art_entropic.measures import Activation, Coding  # noqa: E402
from art_entropic.objective import EntropicObjective  # noqa: E402
from art_entropic.ops import Box  # noqa: E402

L = keras.layers
VECTOR, SEQUENCE, IMAGE, VOLUME = (6,), (7, 3), (6, 6, 3), (4, 4, 4, 2)
Build = Callable[[Any], Any]


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    keras.utils.set_random_seed(0)
    yield


def graph(build: Build, shape: tuple[int, ...]) -> Any:
    """A functional model with weights that are random everywhere, moving statistics and alphas included."""
    inputs = keras.Input(shape)
    model = keras.Model(inputs, build(inputs))
    rng = np.random.default_rng(1)
    for variable in model.weights:
        values = rng.normal(0.0, 0.6, variable.shape)
        variable.assign(np.abs(values) + 0.3 if "variance" in variable.name else values)
    return model


def view_of(model: Any, *, training: bool = False) -> TensorFlowView:
    return TensorFlowView(model, lambda x: x, None, training=training)


def ball_points(x: np.ndarray, eps: float, n: int, seed: int) -> Iterator[np.ndarray]:
    """Corners and inner points of the ball around a batch."""
    rng = np.random.default_rng(seed)
    yield from (x + eps * s for s in (-1, 1))
    for _ in range(n):
        yield x + eps * rng.choice([-1.0, 1.0], x.shape).astype(np.float32)
        yield x + eps * rng.uniform(-1, 1, x.shape).astype(np.float32)


def assert_inside(value: Any, box: Box, tolerance: float = 1e-5) -> None:
    value, lower, upper = (np.asarray(part, np.float64) for part in (value, *box))
    assert np.all(np.isfinite(lower)) and np.all(np.isfinite(upper))
    slack = tolerance * (1.0 + np.abs(lower) + np.abs(upper))
    assert np.all(value >= lower - slack), np.max(lower - value)
    assert np.all(value <= upper + slack), np.max(value - upper)


def gate(x: Any) -> Any:
    return L.Multiply()([L.Dense(4)(x), L.Dense(4, activation="sigmoid")(x)])


def squeeze_excite(x: Any) -> Any:
    y = L.Conv2D(4, 3, padding="same")(x)
    scale = L.Dense(4, activation="sigmoid")(L.GlobalAveragePooling2D()(y))
    return L.Multiply()([y, L.Reshape((1, 1, 4))(scale)])


def shared(x: Any) -> Any:
    dense = L.Dense(6, activation="tanh")
    return dense(dense(x))


def nested(x: Any) -> Any:
    inner_input = keras.Input(VECTOR)
    one, two = L.Dense(5, activation="relu")(inner_input), L.Dense(5)(inner_input)
    inner = keras.Model(inner_input, [one, two])
    left, right = inner(x)
    return keras.Sequential([L.Dense(4, activation="elu"), L.Dense(3)])(left - right)


def operators(x: Any) -> Any:
    y = 1.0 - (2.0 * x - 0.5) / 3.0
    return abs(-y) + y**2 - y[:, ::-1] * 0.3


def residual(x: Any) -> Any:
    y = L.ReLU()(L.BatchNormalization()(L.Conv2D(3, 3, padding="same", use_bias=False)(x)))
    y = L.BatchNormalization()(L.Conv2D(3, 3, padding="same")(y))
    return L.ReLU()(L.Add()([x, y]))


def op_split(x: Any) -> Any:
    one, two = keras.ops.split(x, 2, axis=1)
    return keras.ops.maximum(one, two)


def between(build: Build, units: int = 6) -> Build:
    """The operation between two dense layers, so that it sees a box that is not a cube."""
    return lambda x: L.Dense(3)(build(L.Dense(units)(x)))


LAYERS: dict[str, tuple[tuple[int, ...], Build]] = {
    "dense": (VECTOR, L.Dense(4)),
    "dense without bias": (VECTOR, L.Dense(4, use_bias=False)),
    "dense on a sequence": (SEQUENCE, L.Dense(4, activation="relu")),
    "einsum dense": (SEQUENCE, L.EinsumDense("abc,cd->abd", output_shape=(None, 5), bias_axes="d")),
    "conv1d": (SEQUENCE, L.Conv1D(4, 3, activation="relu")),
    "conv1d causal dilated": (SEQUENCE, L.Conv1D(4, 3, padding="causal", dilation_rate=2)),
    "conv2d": (IMAGE, L.Conv2D(4, 3, strides=2)),
    "conv2d same": (IMAGE, L.Conv2D(4, 3, strides=2, padding="same", activation="silu")),
    "conv2d dilated": (IMAGE, L.Conv2D(4, 2, dilation_rate=2)),
    "conv2d groups": (IMAGE, L.Conv2D(6, 3, groups=3)),
    "conv3d": (VOLUME, L.Conv3D(3, 2)),
    "depthwise1d": (SEQUENCE, L.DepthwiseConv1D(3, depth_multiplier=2)),
    "depthwise2d": (IMAGE, L.DepthwiseConv2D(3, depth_multiplier=2, padding="same", activation="gelu")),
    "separable1d": (SEQUENCE, L.SeparableConv1D(4, 3)),
    "separable2d": (IMAGE, L.SeparableConv2D(4, 3, strides=2, padding="same", activation="relu")),
    "transposed1d": (SEQUENCE, L.Conv1DTranspose(4, 3, strides=2)),
    "transposed2d": (IMAGE, L.Conv2DTranspose(4, 3, strides=2, padding="same")),
    "transposed3d": (VOLUME, L.Conv3DTranspose(2, 2, strides=2)),
    "layer norm": (SEQUENCE, L.LayerNormalization()),
    "layer norm over two axes": (SEQUENCE, L.LayerNormalization(axis=[1, 2])),
    "layer norm without gain": (VECTOR, L.LayerNormalization(center=False, scale=False)),
    "group norm": ((4, 4, 6), L.GroupNormalization(groups=3)),
    "group norm over channels first": ((6, 4, 4), L.GroupNormalization(groups=2, axis=1)),
    "instance norm": ((4, 4, 3), L.GroupNormalization(groups=-1)),
    "max pooling": (IMAGE, L.MaxPooling2D(2)),
    "max pooling 1d": (SEQUENCE, L.MaxPooling1D(2)),
    "max pooling 3d": (VOLUME, L.MaxPooling3D(2)),
    "average pooling": (IMAGE, L.AveragePooling2D(3, padding="same")),
    "average pooling 1d": (SEQUENCE, L.AveragePooling1D(2)),
    "average pooling 3d": (VOLUME, L.AveragePooling3D(2)),
    "global max": (IMAGE, L.GlobalMaxPooling2D()),
    "global max 1d": (SEQUENCE, L.GlobalMaxPooling1D()),
    "global max 3d": (VOLUME, L.GlobalMaxPooling3D()),
    "global average": (IMAGE, L.GlobalAveragePooling2D()),
    "global average 1d": (SEQUENCE, L.GlobalAveragePooling1D()),
    "global average 3d": (VOLUME, L.GlobalAveragePooling3D()),
    "relu capped": (VECTOR, between(L.ReLU(max_value=0.5, negative_slope=0.2))),
    "leaky relu": (VECTOR, between(L.LeakyReLU(0.3))),
    "prelu of either sign": (VECTOR, between(L.PReLU())),
    "prelu shared": (IMAGE, L.PReLU(shared_axes=[1, 2])),
    "elu": (VECTOR, between(L.ELU(0.7))),
    "activation layer": (VECTOR, between(L.Activation("silu"))),
    "activation that is a layer": (VECTOR, L.Dense(5, activation=L.LeakyReLU(0.1))),
    "activation of tensorflow": (VECTOR, L.Dense(5, activation=tf.nn.gelu)),
    "add": (VECTOR, lambda x: L.Add()([L.Dense(4)(x), L.Dense(4)(x)])),
    "average": (VECTOR, lambda x: L.Average()([L.Dense(4)(x), L.Dense(4)(x)])),
    "subtract": (VECTOR, lambda x: L.Subtract()([L.Dense(4)(x), L.Dense(4)(x)])),
    "subtract itself": (VECTOR, lambda x: L.Subtract()([x, x])),
    "multiply": (VECTOR, gate),
    "multiply three": (VECTOR, lambda x: L.Multiply()([L.Dense(4)(x) for _ in range(3)])),
    "squeeze and excitation": (IMAGE, squeeze_excite),
    "maximum": (VECTOR, lambda x: L.Maximum()([L.Dense(4)(x), L.Dense(4)(x)])),
    "minimum": (VECTOR, lambda x: L.Minimum()([L.Dense(4)(x), L.Dense(4)(x)])),
    "concatenate": (IMAGE, lambda x: L.Concatenate()([x, L.Conv2D(2, 3, padding="same")(x)])),
    "flatten": (IMAGE, lambda x: L.Dense(3)(L.Flatten()(x))),
    "reshape": (IMAGE, lambda x: L.Conv1D(2, 2)(L.Reshape((9, 12))(x))),
    "permute": (SEQUENCE, lambda x: L.Dense(2)(L.Permute((2, 1))(x))),
    "repeat vector": (VECTOR, lambda x: L.Conv1D(2, 2)(L.RepeatVector(3)(x))),
    "cropping and padding": (IMAGE, lambda x: L.Conv2D(2, 3)(L.ZeroPadding2D(2)(L.Cropping2D(1)(x)))),
    "cropping and padding 1d": (SEQUENCE, lambda x: L.ZeroPadding1D(1)(L.Cropping1D(1)(x))),
    "cropping and padding 3d": (VOLUME, lambda x: L.ZeroPadding3D(1)(L.Cropping3D(1)(x))),
    "upsampling": (IMAGE, lambda x: L.UpSampling2D(2)(x)),
    "upsampling 1d": (SEQUENCE, L.UpSampling1D(2)),
    "upsampling 3d": (VOLUME, L.UpSampling3D(2)),
    "upsampling bilinear": (IMAGE, L.UpSampling2D(2, interpolation="bilinear")),
    "rescaling": (IMAGE, L.Rescaling(-2.0, 0.3)),
    "rescaling per channel": (IMAGE, L.Rescaling([1.0, -2.0, 0.5], [0.1, 0.2, 0.3])),
    "normalization": (VECTOR, L.Normalization(mean=[0.1] * 6, variance=[2.0] * 6)),
    "identity": (VECTOR, L.Identity()),
    "activity regularization": (VECTOR, L.ActivityRegularization(l2=0.1)),
    "one layer called twice": (VECTOR, shared),
    "nested models": (VECTOR, nested),
    "operators": (VECTOR, operators),
    "operations on shapes": (
        IMAGE,
        lambda x: keras.ops.pad(keras.ops.transpose(keras.ops.reshape(x, (-1, 36, 3)), (0, 2, 1)), ((0, 0), (0, 0), (1, 1))),
    ),
    "operations that reduce": (IMAGE, lambda x: keras.ops.mean(x, axis=1) + keras.ops.max(x, axis=2)),
    "split and maximum": (VECTOR, op_split),
    "stack and flip": (VECTOR, lambda x: keras.ops.stack([keras.ops.flip(x, 1), x * 2.0, 1.0 / 3.0 - x], axis=1)),
    "square root by relu": (VECTOR, lambda x: keras.ops.relu(keras.ops.squeeze(keras.ops.expand_dims(x, 1), 1))),
    "double precision": (VECTOR, L.Dense(3, activation="tanh", dtype="float64")),
}

RANDOM: dict[str, tuple[tuple[int, ...], Build]] = {
    "batch norm": (IMAGE, L.BatchNormalization()),
    "batch norm without gain": (VECTOR, L.BatchNormalization(center=False, scale=False)),
    "batch norm over axis 1": (IMAGE, L.BatchNormalization(axis=1)),
    "residual": (IMAGE, residual),
    "dropout": (VECTOR, lambda x: L.Dense(3)(L.Dropout(0.5)(L.Dense(20, activation="relu")(x)))),
    "spatial dropout": (IMAGE, L.SpatialDropout2D(0.5)),
    "gaussian dropout": (VECTOR, L.GaussianDropout(0.7)),
    "gaussian noise": (VECTOR, L.GaussianNoise(0.5)),
    "alpha dropout": (VECTOR, lambda x: L.AlphaDropout(0.4)(L.Dense(20, activation="selu")(x))),
}

ADAPTIVE = {
    name: (IMAGE, getattr(L, name)(4)) for name in ("AdaptiveAveragePooling2D", "AdaptiveMaxPooling2D") if name in dir(L)
}


@pytest.mark.parametrize("case", [*LAYERS, *RANDOM, *ADAPTIVE])
def test_rule_contains_every_point_of_the_ball(case: str) -> None:
    shape, build = (LAYERS | RANDOM | ADAPTIVE)[case]
    model = graph(build, shape)
    x = np.random.default_rng(2).normal(0, 1, (4, *shape)).astype(np.float32)
    for eps in (0.05, 0.7):
        result = view_of(model).propagate(tf.constant(x), tf.constant(eps))
        np.testing.assert_allclose(result.logits, model(x, training=False), rtol=1e-5, atol=1e-5)
        for point in ball_points(x, eps, 12, seed=3):
            assert_inside(model(point, training=False), result.box)


@pytest.mark.parametrize("case", [*LAYERS, *RANDOM, *ADAPTIVE])
def test_without_a_ball_the_box_is_the_layer_itself(case: str) -> None:
    shape, build = (LAYERS | RANDOM | ADAPTIVE)[case]
    model = graph(build, shape)
    x = np.random.default_rng(2).normal(0, 1, (4, *shape)).astype(np.float32)
    result = view_of(model).propagate(tf.constant(x), tf.constant(0.0))
    for end in result.box:
        np.testing.assert_allclose(end, model(x, training=False), rtol=1e-5, atol=2e-5)


def with_generators_reset(model: Any, run: Callable[[], Any]) -> Any:
    for variable in model.variables:
        if "seed" in variable.name:
            variable.assign([7, 0])
    return run()


@pytest.mark.parametrize("case", list(RANDOM))
def test_training_sends_the_ball_through_the_network_that_the_data_sees(case: str) -> None:
    shape, build = RANDOM[case]
    model = graph(build, shape)
    weights = model.get_weights()
    x = np.random.default_rng(2).normal(0, 1, (8, *shape)).astype(np.float32)

    def joint(box: tuple[np.ndarray, np.ndarray]) -> Joint:
        def run() -> Joint:
            model.set_weights(weights)
            return Walk(training=True).logits(model, Joint(tf.constant(x), Box(*map(tf.constant, box)), "input"))

        return with_generators_reset(model, run)

    degenerate = joint((x, x))
    statistics = model.get_weights()
    model.set_weights(weights)
    expected = with_generators_reset(model, lambda: model(x, training=True))
    np.testing.assert_allclose(degenerate.value, expected, rtol=1e-4, atol=1e-5)
    for ours, keras_own in zip(statistics, model.get_weights(), strict=True):
        np.testing.assert_allclose(ours, keras_own, rtol=1e-5, atol=1e-6)
    for end in degenerate.box:
        np.testing.assert_allclose(end, expected, rtol=1e-3, atol=1e-4)

    eps = 0.4
    ball = joint((x - eps, x + eps))
    assert_inside(ball.value, ball.box)
    for point in ball_points(x, eps, 6, seed=4):
        assert_inside(joint((point, point)).box.lower, ball.box, tolerance=1e-4)


@pytest.mark.parametrize("case, training", [*((case, False) for case in LAYERS), *((case, True) for case in RANDOM)])
def test_one_pass_has_the_layers_of_the_joint_pass(case: str, training: bool) -> None:
    shape, build = (LAYERS | RANDOM)[case]
    model = graph(lambda x: keras.ops.relu(build(x)), shape)
    weights = model.get_weights()
    x = tf.constant(np.random.default_rng(2).normal(0, 1, (8, *shape)).astype(np.float32))
    view = view_of(model, training=training)
    joint = with_generators_reset(model, lambda: view.propagate(x, tf.constant(0.0)))
    statistics = model.get_weights()
    model.set_weights(weights)
    passed = with_generators_reset(model, lambda: view.activations(x))
    for one, other in zip(model.get_weights(), statistics, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    assert [layer.name for layer in passed.layers] == [layer.name for layer in joint.layers]
    for one, other in zip(passed.layers, joint.layers, strict=True):
        np.testing.assert_allclose(one.value, (other.box.lower + other.box.upper) / 2, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(passed.logits, joint.logits, rtol=1e-4, atol=1e-5)


class Inner(L.Layer):
    """Takes no mode itself, but has a layer that knows one."""

    def __init__(self) -> None:
        super().__init__(name="inner")
        self.norm = L.BatchNormalization(momentum=0.5)

    def build(self, shape: Any) -> None:
        self.norm.build(shape)

    def call(self, x: Any) -> Any:
        return self.norm(x)


@pytest.mark.parametrize("training", [False, True])
def test_activations_of_layers_without_a_rule_are_in_the_mode_of_the_step(training: bool) -> None:
    model = keras.Sequential([keras.Input(VECTOR), L.Dense(4, activation="relu"), Inner(), L.Dense(3, name="logits")])
    weights = model.get_weights()
    x = tf.random.normal((8, *VECTOR))
    with tf.GradientTape() as tape:
        passed = view_of(model, training=training).activations(x)
        total = tf.reduce_sum(passed.logits**2)
    assert np.abs(tape.gradient(total, model.layers[0].kernel.value)).max() > 0
    moved = model.get_weights()
    model.set_weights(weights)
    np.testing.assert_allclose(passed.logits, model(x, training=training), rtol=1e-4, atol=1e-5)
    for ours, keras_own in zip(moved, model.get_weights(), strict=True):
        np.testing.assert_allclose(ours, keras_own, rtol=1e-5, atol=1e-6)
    assert [layer.name for layer in passed.layers] == [model.layers[0].name, "logits"]


def test_batch_norm_in_training_is_the_affine_map_of_the_batch() -> None:
    layer = L.BatchNormalization(epsilon=0.1)
    model = graph(layer, (2,))
    x = np.array([[0.0, 1.0], [2.0, 5.0]], np.float32)  # means 1 and 3, variances 1 and 4
    gamma, beta = layer.gamma.numpy(), layer.beta.numpy()
    box = view_of(model, training=True).propagate(tf.constant(x), tf.constant(0.5)).box
    factor = gamma / np.sqrt([1.1, 4.1])
    centre, radius = (x - [1.0, 3.0]) * factor + beta, 0.5 * np.abs(factor)
    np.testing.assert_allclose(box.lower, centre - radius, rtol=1e-5)
    np.testing.assert_allclose(box.upper, centre + radius, rtol=1e-5)


def test_frozen_batch_norm_keeps_its_statistics_in_training() -> None:
    layer = L.BatchNormalization()
    layer.trainable = False
    model = graph(layer, VECTOR)
    before = model.get_weights()
    x = tf.random.normal((4, *VECTOR))
    result = view_of(model, training=True).propagate(x, tf.constant(0.1))
    np.testing.assert_allclose(result.logits, model(x, training=False), rtol=1e-5, atol=1e-6)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


ACTIVATIONS = [name for name in FUNCTIONS if name in dir(keras.activations)]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(ends=st.tuples(st.floats(-8, 8, width=32), st.floats(-8, 8, width=32)))
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_function_stays_inside_its_bounds(name: str, ends: tuple[float, float]) -> None:
    lower, upper = np.float32(min(ends)), np.float32(max(ends))
    function = getattr(keras.activations, name)
    points = np.linspace(lower, upper, 65, dtype=np.float32)[:, None].clip(lower, upper)
    ones = np.ones_like(points)
    layer = L.Activation(function)
    joint = Joint(tf.constant(points), Box(tf.constant(ones * lower), tf.constant(ones * upper)), "input")
    result = Walk(training=False).call(layer, (joint,), {})
    assert_inside(function(points), result.box, tolerance=2e-6)


OPERATIONS = ["relu", "relu6", "leaky_relu", "elu", "celu", "selu", "sigmoid", "tanh", "softplus", "softsign", "exp",
              "log_sigmoid", "hard_sigmoid", "hard_tanh", "hard_shrink", "soft_shrink", "tanh_shrink", "squareplus",
              "sparse_plus", "sparse_sigmoid", "silu", "hard_silu", "gelu", "abs", "square"]  # fmt: skip


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name in dir(keras.ops)])
def test_activation_operation_stays_inside_its_bounds(name: str) -> None:
    model = graph(lambda x: getattr(keras.ops, name)(3.0 * x), VECTOR)
    x = np.random.default_rng(2).normal(0, 1, (16, *VECTOR)).astype(np.float32)
    result = view_of(model).propagate(tf.constant(x), tf.constant(0.5))
    assert result.layers[0].name.rstrip("_0123456789") == "multiply"
    for point in ball_points(x, 0.5, 12, seed=3):
        assert_inside(model(point), result.box)


def test_gelu_knows_which_of_its_two_forms_it_is() -> None:
    for approximate in (True, False):
        model = graph(lambda x, a=approximate: keras.ops.gelu(x, approximate=a), (1,))
        result = view_of(model).propagate(tf.constant([[-0.75]]), tf.constant(1.0))
        grid = np.linspace(-1.75, 0.25, 20001, dtype=np.float32)[:, None]
        np.testing.assert_allclose(result.box.lower, [[np.min(model(grid))]], rtol=1e-6)


class Doubled(L.Dense):
    def call(self, inputs: Any) -> Any:
        return 2.0 * super().call(inputs)


class Subclassed(keras.Model):
    def __init__(self) -> None:
        super().__init__(name="mine")
        self.first, self.last = L.Dense(8, activation="relu"), L.Dense(3)

    def call(self, x: Any, training: bool | None = None) -> Any:
        return self.last(self.first(x))


REFUSED: dict[str, tuple[tuple[int, ...], Build, str]] = {
    "softmax": (VECTOR, lambda x: L.Softmax(name="probabilities")(L.Dense(3)(x)), "Softmax in layer 'probabilities': .*logits"),
    "softmax activation": (VECTOR, L.Dense(3, activation="softmax", name="last"), "'softmax' in layer 'last': .*logits"),
    "unknown activation": (VECTOR, L.Dense(3, activation=tf.sin, name="last"), "'sin' in layer 'last'"),
    "relu threshold": (VECTOR, L.ReLU(threshold=0.5), "threshold=0.5 makes it jump"),
    "falling leaky relu": (VECTOR, lambda x: keras.ops.leaky_relu(x, -0.1), "negative_slope=-0.1 makes it fall"),
    "bicubic": (IMAGE, L.UpSampling2D(2, interpolation="bicubic"), "bicubic"),
    "rnn": (SEQUENCE, L.LSTM(4, name="memory"), "LSTM in layer 'memory'"),
    "attention": (SEQUENCE, lambda x: L.Attention(name="look")([x, x]), "Attention in layer 'look'"),
    "division by a tensor": (VECTOR, lambda x: x / (x + 3.0), "the divisor depends on the input"),
    "cube": (VECTOR, lambda x: x**3, "only the square"),
    "subclassed layer": (VECTOR, Doubled(3, name="twice"), "Doubled in layer 'twice'"),
    "lambda": (VECTOR, L.Lambda(lambda x: x, name="code"), "Lambda in layer 'code'"),
    "nested subclassed model": (VECTOR, lambda x: Subclassed()(x), "Subclassed in layer 'mine': a subclassed model"),
    "half precision": (
        VECTOR,
        L.Dense(3, dtype="mixed_float16", name="half"),
        "float32 or float64 arithmetic, it (computes in|casts to) float16",
    ),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_an_operation_without_a_rule_names_itself_and_the_measure_that_serves(case: str) -> None:
    shape, build, message = REFUSED[case]
    model = graph(build, shape)
    x = tf.random.normal((2, *shape))
    with pytest.raises(NoIntervalRuleError, match=message) as error:
        view_of(model).propagate(x, tf.constant(0.1))
    assert 'measure="channel"' in str(error.value)
    logits, gradient = view_of(model).input_gradient(x, lambda z: tf.ones_like(z))
    np.testing.assert_allclose(logits, tf.cast(model(x, training=False), tf.float32), rtol=1e-5, atol=1e-6)
    assert gradient.shape == x.shape


# ------------------------------------------------------------------------------------------------------- the backend

ARCHITECTURE = (Conv(4, 3, 2, 1), Conv(6, 4, 2, 1), Flatten(), Dense(16), Dense(10, None))
SHAPE, CLASSES = (8, 8, 1), 10


def digits_classifier(seed: int = 0, learning_rate: float = 1e-2) -> Any:
    return build_classifier(
        ARCHITECTURE,
        input_shape=SHAPE,
        nb_classes=CLASSES,
        clip_values=(0.0, 1.0),
        learning_rate=learning_rate,
        seed=seed,
    )


def keras_network(*extra: Any) -> Any:
    return keras.Sequential(
        [
            keras.Input(SHAPE),
            L.Conv2D(4, 3, use_bias=False, name="conv"),
            L.BatchNormalization(name="norm"),
            L.Activation("relu", name="act"),
            *extra,
            L.Flatten(name="flat"),
            L.Dense(CLASSES, name="logits"),
        ]
    )


def classifier_of(model: Any, **options: Any) -> Any:
    settings = {
        "nb_classes": CLASSES,
        "input_shape": SHAPE,
        "clip_values": (0.0, 1.0),
        "loss_object": keras.losses.CategoricalCrossentropy(from_logits=True),
        "optimizer": keras.optimizers.Adam(1e-2),
    }
    return TensorFlowV2Classifier(model=model, **(settings | options))


def batch_of(n: int, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    x = rng.uniform(0, 1, (n, *SHAPE)).astype(np.float32)
    y = np.eye(CLASSES, dtype=np.float32)[rng.integers(0, CLASSES, n)]
    return Batch(x, y, rng.uniform(-1, 1, x.shape).astype(np.float32), rng.uniform(0, 1, n).astype(np.float32))


def cross_entropy(logits: Any, y: Any) -> Any:
    return -ops.mean(ops.sum(y * ops.log_softmax(logits), axis=1))


def natural(view: Any, batch: Batch, controls: Controls) -> dict[str, Any]:
    return {"loss": cross_entropy(view.logits(batch.x), batch.y)}


def worst_case(view: Any, batch: Batch, controls: Controls) -> dict[str, Any]:
    result = view.propagate(batch.x, controls.eps)
    worst = batch.y * result.box.lower + (1.0 - batch.y) * result.box.upper
    spread = sum(ops.mean(ops.log1p(layer.box.upper - layer.box.lower)) for layer in result.layers)
    terms = {"clean": cross_entropy(result.logits, batch.y), "worst": cross_entropy(worst, batch.y), "spread": spread}
    return {"loss": terms["clean"] + controls.k * terms["worst"] + controls.beta * spread, **terms}


def gradient_size(view: Any, batch: Batch, controls: Controls) -> dict[str, Any]:
    _, gradient = view.input_gradient(batch.x + controls.eps * batch.ball_noise, lambda z: batch.y)
    size = ops.mean(ops.sum(ops.abs(ops.flatten(gradient)), axis=1))
    return {"loss": cross_entropy(view.logits(batch.x), batch.y) + size, "size": size}


CONTROLS = Controls(0.05, 0.5, 0.1)
ENTROPIC = [EntropicObjective(Coding(layers="dense", read_share=1.0)), EntropicObjective(Activation())]
OBJECTIVES = [natural, worst_case, gradient_size, *ENTROPIC]


def test_built_network_is_the_described_one() -> None:
    classifier = build_classifier(
        (Conv(3, 3, 1, 1), Conv(3, 3, 2, 1), MaxPool(), Flatten(), Dense(5, "silu"), Dense(4, None)),
        input_shape=(9, 8, 2),
        nb_classes=4,
        clip_values=(0.0, 1.0),
        learning_rate=0.25,
        seed=3,
    )
    kinds = [type(layer).__name__ for layer in classifier.model.layers]
    # 8 columns at stride 2 are padded by Keras on one side only, so that padding is spelt out.
    assert kinds == ["Conv2D", "ZeroPadding2D", "Conv2D", "MaxPooling2D", "Flatten", "Dense", "Dense"]
    assert classifier.model.output_shape == (None, 4)
    assert classifier.model.layers[0].padding == "same"
    assert backend_for(classifier).learning_rate == pytest.approx(0.25)
    assert classifier.optimizer.epsilon == 1e-8


def test_built_network_trains_in_art() -> None:
    classifier = digits_classifier()
    data = batch_of(20)
    before = classifier.model.get_weights()
    classifier.fit(data.x, data.y, batch_size=8, nb_epochs=1)
    assert any(not np.array_equal(a, b) for a, b in zip(before, classifier.model.get_weights(), strict=True))
    assert classifier.loss_gradient(data.x, data.y).shape == data.x.shape


def test_logits_are_those_of_the_estimator_whatever_the_batch_size() -> None:
    mean, std = np.float32([0.3]), np.float32([0.2])
    classifier = classifier_of(keras_network(), preprocessing=(mean, std))
    backend = backend_for(classifier)
    x = batch_of(23).x
    expected = classifier.predict(x)
    for batch_size in (5, 256):
        np.testing.assert_allclose(backend.logits(x, batch_size), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(backend.logits(x.astype(np.float64)), expected, rtol=1e-5, atol=1e-5)


def test_preprocessing_is_part_of_bounds_and_gradients() -> None:
    mean, std = np.float32([0.3]), np.float32([0.2])
    classifier = classifier_of(keras_network(), preprocessing=(mean, std))
    backend = backend_for(classifier)
    x = batch_of(6).x
    bounds = backend.intervals(x, 0.1, batch_size=4)
    assert tuple(bounds) == backend.layer_names() == ("norm", "logits")
    np.testing.assert_allclose(backend.logit_bounds(x, 0.1, batch_size=4), bounds["logits"], rtol=1e-6)
    for point in ball_points(x, 0.1, 5, seed=1):
        assert_inside(classifier.predict(np.clip(point, 0, 1).astype(np.float32)), bounds["logits"])
    v = np.eye(CLASSES, dtype=np.float32)[np.zeros(6, int)]
    expected = classifier.class_gradient(x, label=0)[:, 0]
    np.testing.assert_allclose(backend.input_gradient(x, v, batch_size=4), expected, rtol=1e-4, atol=1e-6)


def test_other_preprocessing_is_refused_by_name() -> None:
    from art.defences.preprocessor import FeatureSqueezing

    squeezing = FeatureSqueezing(clip_values=(0.0, 1.0), bit_depth=4)
    with pytest.raises(ValueError, match="FeatureSqueezing"):
        backend_for(classifier_of(keras_network(), preprocessing_defences=squeezing))


def test_activations_are_the_values_that_the_bounds_enclose() -> None:
    backend = backend_for(digits_classifier())
    x = batch_of(9).x
    values, bounds = backend.activations(x, batch_size=4), backend.intervals(x, 0.1)
    assert tuple(values) == tuple(bounds) == backend.layer_names() == ("conv1", "conv2", "dense4", "logits")
    for name, value in values.items():
        assert_inside(value, bounds[name])
    np.testing.assert_allclose(values["logits"], backend.logits(x), rtol=1e-5, atol=1e-6)


def test_without_clip_values_the_ball_is_whole() -> None:
    inputs = keras.Input(SHAPE)
    model = keras.Model(inputs, L.Flatten()(inputs))
    backend = backend_for(classifier_of(model, clip_values=None, nb_classes=64))
    x = batch_of(2).x
    ((_, box),) = backend.intervals(x, 0.25).items()
    np.testing.assert_allclose(box.lower, x.reshape(2, -1) - 0.25, rtol=1e-6)
    np.testing.assert_allclose(box.upper, x.reshape(2, -1) + 0.25, rtol=1e-6)


def test_keras_classifier_serves_with_the_optimizer_of_its_model() -> None:
    model = keras_network()
    model.compile(keras.optimizers.SGD(0.5), keras.losses.CategoricalCrossentropy(from_logits=True))
    classifier = KerasClassifier(model, use_logits=True, clip_values=(0.0, 1.0))
    backend = backend_for(classifier)
    backend.check_trainable()
    assert backend.learning_rate == pytest.approx(0.5)
    before = backend.state()
    backend.training_step(natural)(batch_of(8), CONTROLS)
    assert any(not np.array_equal(before[name], array) for name, array in backend.state().items())
    assert int(model.optimizer.iterations) == 1


def test_an_estimator_that_cannot_train_is_refused() -> None:
    with pytest.raises(ValueError, match="optimizer=None"):
        backend_for(classifier_of(keras_network(), optimizer=None)).check_trainable()
    with pytest.raises(ValueError, match="must have a loss"):
        backend_for(classifier_of(keras_network(), loss_object=None)).check_trainable()
    with pytest.raises(ValueError, match="compiled"):
        backend_for(KerasClassifier(keras_network(), use_logits=True)).check_trainable()
    frozen = keras_network()
    frozen.trainable = False
    with pytest.raises(ValueError, match="trainable weights"):
        backend_for(classifier_of(frozen)).check_trainable()
    with pytest.raises(ValueError, match=r"shape \(n, 7\)"):
        backend_for(classifier_of(keras_network(), nb_classes=7)).check_trainable()
    scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1))
    with pytest.raises(ValueError, match="must not scale the loss"):
        backend_for(classifier_of(keras_network(), optimizer=scaled)).check_trainable()
    with pytest.raises(TypeError, match="Keras 3 model"):
        backend_for(classifier_of(lambda x, training: x))


def test_a_subclassed_model_has_logits_and_gradients_but_no_bounds() -> None:
    model = Subclassed()
    classifier = classifier_of(model, input_shape=VECTOR, nb_classes=3, clip_values=None)
    backend = backend_for(classifier)
    x = np.random.default_rng(0).normal(0, 1, (5, *VECTOR)).astype(np.float32)
    np.testing.assert_allclose(backend.logits(x), classifier.predict(x), rtol=1e-5, atol=1e-6)
    v = np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1]]
    expected = classifier.class_gradient(x, label=[0, 1, 2, 0, 1])[:, 0]
    np.testing.assert_allclose(backend.input_gradient(x, v), expected, rtol=1e-4, atol=1e-6)
    for ask in (backend.layer_names, lambda: backend.intervals(x, 0.1), lambda: backend.activations(x)):
        with pytest.raises(NoIntervalRuleError, match="Subclassed in layer 'mine'"):
            ask()
    noise = np.zeros_like(x)
    step = backend.training_step(gradient_size)
    values = step(Batch(x, v, noise, np.zeros(5, np.float32)), CONTROLS)
    assert values["size"] > 0
    for objective in (worst_case, EntropicObjective(Activation())):
        with pytest.raises(NoIntervalRuleError, match="Subclassed in layer 'mine'"):
            backend.training_step(objective)(Batch(x, v, noise, np.zeros(5, np.float32)), CONTROLS)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_step_is_traced_once_over_uneven_batches_and_learns(objective: Any) -> None:
    backend = backend_for(digits_classifier())
    with backend.training(seed=0):
        step = backend.training_step(objective)
        first = step(batch_of(16), CONTROLS)
        for n, eps in ((16, 0.01), (7, 0.02), (1, 0.03), (16, 0.05)):
            step(batch_of(n), Controls(eps, 0.3, 0.2))
        for _ in range(20):
            last = step(batch_of(16), CONTROLS)
    assert step.trace_count == 1
    assert last["loss"] < first["loss"]
    assert last["gradient_norm"] > 0


def test_natural_step_is_the_step_of_keras() -> None:
    data = batch_of(16)
    ours, theirs = digits_classifier(), digits_classifier()
    step = backend_for(ours).training_step(natural)
    theirs.model.compile(keras.optimizers.Adam(1e-2, epsilon=1e-8), keras.losses.CategoricalCrossentropy(from_logits=True))
    for _ in range(3):
        step(data, CONTROLS)
        theirs.model.train_on_batch(data.x, data.y)
    for a, b in zip(ours.model.get_weights(), theirs.model.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_bounds_are_differentiated_as_tensorflow_does() -> None:
    model = keras.Sequential([keras.Input(VECTOR), L.Dense(5, activation="relu"), L.Dense(3)])
    weights = [variable.value for variable in model.trainable_variables]
    x, eps = tf.random.normal((4, *VECTOR)), 0.3
    with tf.GradientTape() as tape:
        box = view_of(model).propagate(x, tf.constant(eps)).box
        ours = tf.reduce_sum(tf.square(box.lower) + 3.0 * tf.math.log1p(box.upper - box.lower))
    with tf.GradientTape() as reference:
        box = Box(x - eps, x + eps)
        for layer in model.layers:
            box = intervals.affine(
                lambda t, w=layer: t @ w.kernel.value + w.bias.value, lambda t, w=layer: t @ tf.abs(w.kernel.value), box
            )
            if layer.activation is keras.activations.relu:
                box = intervals.monotone(tf.nn.relu, box)
        theirs = tf.reduce_sum(tf.square(box.lower) + 3.0 * tf.math.log1p(box.upper - box.lower))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    for a, b in zip(tape.gradient(ours, weights), reference.gradient(theirs, weights), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_input_gradient_of_a_step_is_differentiated_as_tensorflow_does(activation: str) -> None:
    model = keras.Sequential([keras.Input(SHAPE), L.Conv2D(4, 3, activation=activation), L.Flatten(), L.Dense(CLASSES)])
    data = batch_of(8)
    kernels = [layer.kernel.value for layer in model.layers if layer.weights]
    with tf.GradientTape() as outer:
        _, gradient = view_of(model, training=True).input_gradient(tf.constant(data.x), lambda z: data.y)
        ours = tf.reduce_sum(tf.square(gradient))
    with tf.GradientTape() as reference:
        x = tf.constant(data.x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            score = tf.reduce_sum(data.y * model(x, training=False))
        theirs = tf.reduce_sum(tf.square(inner.gradient(score, x)))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    for a, b in zip(outer.gradient(ours, kernels), reference.gradient(theirs, kernels), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_direction_is_told_the_logits_and_carries_no_gradient() -> None:
    model = keras_network()
    data = batch_of(4)
    with tf.GradientTape() as tape:
        logits, gradient = view_of(model).input_gradient(tf.constant(data.x), lambda z: z * 3.0)
        size = tf.reduce_sum(gradient)
    np.testing.assert_allclose(logits, model(data.x, training=False), rtol=1e-5, atol=1e-6)
    with tf.GradientTape() as reference:
        _, other = view_of(model).input_gradient(tf.constant(data.x), lambda z: tf.constant(logits) * 3.0)
        expected = tf.reduce_sum(other)
    kernel = model.get_layer("logits").kernel.value
    np.testing.assert_allclose(tape.gradient(size, kernel), reference.gradient(expected, kernel), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_step_that_is_not_finite_leaves_weights_statistics_and_slots_alone(objective: Any) -> None:
    backend = backend_for(classifier_of(keras_network()))
    step = backend.training_step(objective)
    step(batch_of(8), CONTROLS)
    weights, slots = backend.state(), backend.optimizer_state()
    broken = batch_of(8)
    broken.x[3, 2, 2, 0] = np.nan
    values = step(broken, CONTROLS)
    assert not np.isfinite(values["loss"])
    for before, after in ((weights, backend.state()), (slots, backend.optimizer_state())):
        assert before.keys() == after.keys()
        for name in before:
            np.testing.assert_array_equal(before[name], after[name], err_msg=name)
    assert np.isfinite(step(batch_of(8), CONTROLS)["loss"])


def test_a_loss_without_gradient_is_refused() -> None:
    step = backend_for(digits_classifier()).training_step(lambda view, batch, controls: {"loss": controls.eps})
    with pytest.raises(ValueError, match="must depend on the weights"):
        step(batch_of(4), CONTROLS)


def test_measuring_changes_nothing() -> None:
    backend = backend_for(classifier_of(keras_network(L.Dropout(0.5))))
    before = backend.state()
    step = backend.measuring_step(worst_case)
    one, two = step(batch_of(8), CONTROLS), step(batch_of(8), CONTROLS)
    step(batch_of(5), CONTROLS)
    assert one == two
    assert step.trace_count == 1
    for name, array in backend.state().items():
        np.testing.assert_array_equal(before[name], array)


class Noisy(L.Layer):
    """Draws from every generator that a user's layer can reach without owning one."""

    def call(self, x: Any, training: bool = False) -> Any:
        if training:
            return x + 0.1 * tf.random.normal(tf.shape(x)) + 0.1 * keras.random.normal(keras.ops.shape(x))
        return x


def test_two_runs_with_one_seed_agree_bit_for_bit() -> None:
    def run(seed: int, objective: Any, *layers: Any) -> dict[str, np.ndarray]:
        keras.utils.set_random_seed(5)
        backend = backend_for(classifier_of(keras_network(*layers)))
        tf.random.set_seed(seed + 17)
        with backend.training(seed):
            step = backend.training_step(objective)
            for index in range(4):
                step(batch_of(16, index), CONTROLS)
        return backend.state()

    for objective, layer in ((worst_case, L.Dropout(0.5)), (natural, Noisy())):
        one, two = run(1, objective, layer), run(1, objective, type(layer).from_config(layer.get_config()))
        other = run(2, objective, type(layer).from_config(layer.get_config()))
        for name in one:
            np.testing.assert_array_equal(one[name], two[name])
        assert any(not np.array_equal(one[name], other[name]) for name in one)


def test_training_gives_the_generators_back() -> None:
    backend = backend_for(classifier_of(keras_network(L.Dropout(0.5))))
    tf.random.set_seed(3)
    expected = [tf.random.normal((2,)).numpy() for _ in range(2)]
    tf.random.set_seed(3)
    first = tf.random.normal((2,)).numpy()
    generators = {name: value for name, value in backend.optimizer_state().items() if name.startswith("generator")}
    with backend.training(seed=8):
        tf.random.normal((3,))
        backend.training_step(natural)(batch_of(8), CONTROLS)
    np.testing.assert_array_equal([first, tf.random.normal((2,)).numpy()], expected)
    after = backend.optimizer_state()
    for name, value in generators.items():
        np.testing.assert_array_equal(after[name], value)


def test_training_resumes_exactly() -> None:
    def fresh() -> Any:
        return backend_for(classifier_of(keras_network(L.Dropout(0.5))))

    backend = fresh()
    with backend.training(seed=1):
        step = backend.training_step(worst_case)
        for index in range(3):
            step(batch_of(8, index), CONTROLS)
        weights, slots = backend.state(), backend.optimizer_state()
        for index in range(3, 6):
            step(batch_of(8, index), CONTROLS)
    resumed = fresh()
    with resumed.training(seed=99):
        resumed.load_state(weights)
        resumed.load_optimizer_state(slots)
        step = resumed.training_step(worst_case)
        for index in range(3, 6):
            step(batch_of(8, index), CONTROLS)
    for name, array in backend.state().items():
        np.testing.assert_array_equal(resumed.state()[name], array)


def test_state_is_a_copy_and_fits_only_its_own_network() -> None:
    backend = backend_for(digits_classifier())
    state = backend.state()
    for array in state.values():
        array += 1.0
    assert any(not np.array_equal(array, state[name]) for name, array in backend.state().items())
    backend.load_state(state)
    for name, array in backend.state().items():
        np.testing.assert_array_equal(array, state[name])
    name = next(iter(state))
    with pytest.raises(ValueError, match=r"`state`.*0000/kernel"):
        backend.load_state({**state, name: state[name][..., :1]})


def test_weights_travel_in_the_format_of_keras(tmp_path: Any) -> None:
    one, two = backend_for(digits_classifier(seed=0)), backend_for(digits_classifier(seed=1))
    path = tmp_path / f"network{one.weights_suffix}"
    one.save_weights(path)
    two.load_weights(path)
    x = batch_of(4).x
    np.testing.assert_array_equal(one.logits(x), two.logits(x))


def test_learning_rate_can_be_set_unless_a_schedule_rules_it() -> None:
    backend = backend_for(digits_classifier())
    backend.learning_rate = 0.125
    assert backend.learning_rate == 0.125
    schedule = keras.optimizers.schedules.ExponentialDecay(0.5, 10, 0.9)
    scheduled = backend_for(classifier_of(keras_network(), optimizer=keras.optimizers.SGD(schedule)))
    assert scheduled.learning_rate == pytest.approx(0.5)
    with pytest.raises(ValueError, match="schedule"):
        scheduled.learning_rate = 0.1
    scheduled.training_step(natural)(batch_of(4), CONTROLS)
    assert scheduled.learning_rate < 0.5


def test_scheduler_must_be_callable() -> None:
    backend = backend_for(digits_classifier())
    backend.check_scheduler(None, validates=False)
    backend.check_scheduler(lambda epoch: 0.1, validates=False)
    with pytest.raises(TypeError, match=r"`scheduler`.*int"):
        backend.check_scheduler(3, validates=True)


def test_compiled_passes_are_shared_by_backends_and_forgotten_with_the_model() -> None:
    classifier = digits_classifier()
    backend = backend_for(classifier)
    assert backend._passes(SHAPE) is backend_for(classifier)._passes(SHAPE)
    backend.logits(batch_of(2).x)
    alive = weakref.ref(classifier.model)
    del classifier, backend
    gc.collect()
    assert alive() is None


def test_a_changed_model_is_compiled_anew() -> None:
    model = keras.Sequential([keras.Input(SHAPE), L.Flatten(), L.Dense(CLASSES, activation="softmax")])
    backend = backend_for(classifier_of(model))
    x = batch_of(3).x
    np.testing.assert_allclose(backend.logits(x).sum(axis=1), 1.0, rtol=1e-5)
    model.layers[-1].activation = keras.activations.linear
    np.testing.assert_allclose(backend.logits(x), model(x), rtol=1e-5, atol=1e-6)
    assert tuple(backend.intervals(x, 0.1)) == (model.layers[-1].name,)


def test_repeated_names_are_told_apart() -> None:
    model = graph(lambda x: L.Dense(CLASSES, name="logits")(keras.Sequential([L.Flatten(), shared_block()])(x)), SHAPE)
    assert backend_for(classifier_of(model)).layer_names() == ("dense", "dense#2", "logits")


def shared_block() -> Any:
    inputs = keras.Input((64,))
    dense = L.Dense(64, activation="relu", name="dense")
    return keras.Model(inputs, dense(dense(inputs)))


@pytest.mark.parametrize("training", [False, True])
def test_mobilenet_goes_through(training: bool) -> None:
    model = keras.applications.MobileNetV2(
        weights=None, input_shape=(32, 32, 3), classes=10, classifier_activation=None, alpha=0.35
    )
    x = tf.constant(np.random.default_rng(0).uniform(0, 1, (16, 32, 32, 3)).astype(np.float32))
    weights = model.get_weights()
    sources: list[str] = []

    @tf.function(autograph=False)
    def joint(lower: Any, upper: Any) -> tuple[Any, Box]:
        walk = Walk(training=training)
        logits = walk.logits(model, Joint(x, Box(lower, upper), "input"))
        sources.extend(name for name, _ in walk.layers())
        return logits.value, logits.box

    eps = 1e-4
    value, box = joint(x - eps, x + eps)
    moved = model.get_weights()
    model.set_weights(weights)
    # Some batch statistics are those of 16 numbers that hardly differ, which magnifies rounding.
    np.testing.assert_allclose(value, model(x, training=training), rtol=1e-2, atol=2e-3)
    for ours, keras_own in zip(moved, model.get_weights(), strict=True):
        np.testing.assert_allclose(ours, keras_own, rtol=1e-3, atol=1e-4)
    assert len(sources) == 36 and sources[-1] == "predictions"
    assert_inside(value, box)
    for point in ball_points(x.numpy(), eps, 2, seed=1):
        image = joint(tf.constant(point), tf.constant(point))[1].lower if training else model(point, training=False)
        assert_inside(image, box, tolerance=1e-3)


# fmt: off
BEFORE_A_MAXIMUM = {
    "relu in the layer": lambda: [keras.layers.Conv2D(3, 3, activation="relu"), keras.layers.MaxPooling2D()],
    "tanh in the layer": lambda: [keras.layers.Conv2D(3, 3, activation="tanh"), keras.layers.MaxPooling2D()],
    "a layer of its own": lambda: [keras.layers.Conv2D(3, 3), keras.layers.ReLU(), keras.layers.MaxPooling2D()],
    "over all places": lambda: [keras.layers.Conv2D(3, 3, activation="softplus"), keras.layers.GlobalMaxPooling2D()],
}
# fmt: on


@pytest.mark.parametrize("case", BEFORE_A_MAXIMUM)
def test_bounds_of_the_compiled_pass_are_those_of_the_plain_one(case, rng):
    """TensorFlow's graph optimiser moved a maximum before an activation and lost the upper bounds on the way."""
    keras.utils.set_random_seed(0)
    layers = [*BEFORE_A_MAXIMUM[case](), keras.layers.Flatten(), keras.layers.Dense(3)]
    model = keras.Sequential([keras.Input((6, 6, 2)), *layers])
    classifier = TensorFlowV2Classifier(model, 3, (6, 6, 2), clip_values=(0.0, 1.0))
    x = rng.uniform(size=(4, 6, 6, 2)).astype(np.float32)
    compiled = list(backend_for(classifier).intervals(x, 0.1).values())[-1]
    ends = (tf.constant(np.clip(x + step, 0, 1)) for step in (np.float32(-0.1), np.float32(0.1)))
    box = Walk(training=False).logits(model, Joint(tf.constant(x), Box(*ends), "input")).box
    for one, other in zip(compiled, box, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def _leaky(slope: float) -> keras.Model:
    keras.utils.set_random_seed(1)
    layers = [keras.Input((6,)), keras.layers.Dense(12), keras.layers.LeakyReLU(slope), keras.layers.Dense(4)]
    model = keras.Sequential(layers)
    model.compile("adam", keras.losses.CategoricalCrossentropy(from_logits=True))
    return model


def test_a_setting_of_a_layer_that_changes_changes_what_is_judged() -> None:
    x = np.random.default_rng(0).random((20, 6), np.float32)
    changed = _leaky(0.0)
    classifier = KerasClassifier(changed, clip_values=(0.0, 1.0), use_logits=True)
    backend = backend_for(classifier)
    backend.logits(x), backend.intervals(x, 0.02), backend.input_gradient(x, np.ones((20, 4), np.float32))
    changed.layers[1].negative_slope = 0.6
    asked = backend_for(KerasClassifier(_leaky(0.6), clip_values=(0.0, 1.0), use_logits=True))
    asked.load_state(backend.state())
    np.testing.assert_allclose(backend.logits(x), asked.logits(x), rtol=1e-6)
    there, here = (list(one.intervals(x, 0.02).values())[-1] for one in (asked, backend))
    np.testing.assert_allclose(here.lower, there.lower, rtol=1e-6)
    np.testing.assert_allclose(backend.input_gradient(x, here.upper), asked.input_gradient(x, here.upper), rtol=1e-5)


def test_a_sequential_model_that_its_first_batch_has_built_is_retrained() -> None:
    model = keras.Sequential([keras.layers.Dense(8, activation="relu"), keras.layers.Dense(3)])
    classifier = TensorFlowV2Classifier(
        model, 3, (6,), keras.losses.CategoricalCrossentropy(from_logits=True), keras.optimizers.Adam(), clip_values=(0.0, 1.0)
    )
    x, y = np.random.default_rng(0).random((12, 6), np.float32), np.arange(12) % 3
    classifier.fit(x, np.eye(3, dtype=np.float32)[y], nb_epochs=1, batch_size=5)
    assert model.output_shape != (None, 3)
    assert len(EntropicTrainer(classifier, 0.1, verbose=False).fit(x, y, nb_epochs=1, batch_size=4).epochs) == 1
