"""Each interval rule for Keras with the arguments that it was proved for, and those that it refuses.

A row without proof fails: the first tables name every row of the backend's tables. Points of the ball and its corners stay
inside the boxes, up to float32's rounding: 1e-5 of the ends' size, a hundred units in the last place.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")

from art_entropic.backends.errors import NoIntervalRuleError  # noqa: E402
from art_entropic.backends.tensorflow import rules  # noqa: E402
from art_entropic.backends.tensorflow.joint import Joint, box_of  # noqa: E402
from art_entropic.backends.tensorflow.walk import Walk, has_graph  # noqa: E402
from art_entropic.ops import Box  # noqa: E402

L, K = keras.layers, keras.ops
A = keras.activations
VECTOR, SEQUENCE, IMAGE, VOLUME = (6,), (5, 3), (4, 4, 2), (3, 3, 3, 2)
FIRST1, FIRST2, FIRST3 = (3, 5), (2, 4, 4), (2, 3, 3, 3)  # channels first
FIRST = {"data_format": "channels_first"}
Build = Callable[[Any], Any]
Proof = tuple[tuple[int, ...], Build]
ROUNDING = 1e-5


def network(build: Build, shape: tuple[int, ...], **options: Any) -> Any:
    """A functional model with weights that are random everywhere, moving statistics and slopes included."""
    inputs = keras.Input(shape, **options)
    model = keras.Model(inputs, build(inputs))
    rng = np.random.default_rng(1)
    for variable in model.weights:
        if "seed" in variable.name:
            continue
        values = rng.normal(0.0, 0.6, variable.shape)
        variable.assign(np.abs(values) + 0.3 if "variance" in variable.name or "stddev" in variable.name else values)
    return model


def walk(model: Any, x: Any, eps: float = 0.1, *, training: bool = False) -> Joint:
    box = Box(tf.constant(x - np.float32(eps)), tf.constant(x + np.float32(eps)))
    return Walk(training=training).logits(model, Joint(tf.constant(x), box, "input"))


def data(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(2).normal(0, 1, (2, *shape)).astype(np.float32)


def points(x: np.ndarray, eps: Any) -> np.ndarray:
    """120 for each row of x: both far corners, other corners, and points inside."""
    rng = np.random.default_rng(3)
    steps = [np.ones((1, *x.shape)), -np.ones((1, *x.shape))]
    steps += [rng.choice([-1.0, 1.0], (59, *x.shape)), rng.uniform(-1, 1, (59, *x.shape))]
    return (x + eps * np.concatenate(steps)).astype(np.float32)


def assert_sound(model: Any, x: np.ndarray, compiled: Callable[[Any], Any] = lambda function: function) -> None:
    @compiled
    def predict(points: Any) -> Any:
        return model(points, training=False)

    @compiled
    def joint_pass(eps: Any) -> tuple[Any, Any, Any]:
        joint = Walk(training=False).logits(model, Joint(tf.constant(x), Box(x - eps, x + eps), "input"))
        return joint.value, *box_of(joint)

    own = np.asarray(predict(tf.constant(x)))
    radii = np.reshape(np.array([0.05, 0.7], np.float32), (2,) + (1,) * (x.ndim - 1))
    for eps in (0.0 * radii, radii):
        value, *box = joint_pass(tf.constant(eps))
        assert {end.dtype for end in box} == {value.dtype}
        lower, upper = (np.asarray(end, np.float64) for end in box)
        np.testing.assert_allclose(value, own, rtol=ROUNDING, atol=ROUNDING)
        if not eps.any():  # where a box that is no wider than it must be is the value
            np.testing.assert_allclose([lower, upper], [own, own], rtol=3 * ROUNDING, atol=3 * ROUNDING)
            continue
        ball = points(x, eps)
        if any(type(operation).__name__ == "BroadcastTo" for operation in getattr(model, "operations", [])):
            values = np.stack([predict(tf.constant(point)) for point in ball])
        else:
            values = np.asarray(predict(tf.constant(ball.reshape(-1, *x.shape[1:])))).reshape(len(ball), *own.shape)
        slack = ROUNDING * (1.0 + np.abs(lower) + np.abs(upper))
        assert np.all(values >= lower - slack), np.max(lower - values)
        assert np.all(values <= upper + slack), np.max(values - upper)


def steep(f: Build) -> Proof:
    """Reaches the kinks and the flat parts of an element-wise map on both sides."""
    return VECTOR, lambda x: f(x * 4.0)


def on(shape: tuple[int, ...], *layers: Any) -> list[Proof]:
    return [(shape, layer) for layer in layers]


def two(layer: Build) -> Proof:
    return VECTOR, lambda x: layer([L.Dense(4)(x), L.Dense(4)(x)])


def lora(layer: Any) -> Build:
    def build(x: Any) -> Any:
        layer(x)
        layer.enable_lora(2)
        return layer(x)

    return build


CONSTANT = np.linspace(-1.0, 1.0, 6, dtype=np.float32)


def merging(layer: Any) -> list[Proof]:
    return [
        two(layer()),
        (VECTOR, lambda x: layer()([x, x])),
        (VECTOR, lambda x: layer()([x, K.expand_dims(x[:, :2], 1)[:, :, :1][:, 0] * 2.0])),  # broadcast
    ]


def pooling(layer: Any, shape: tuple[int, ...], first: tuple[int, ...]) -> list[Proof]:
    return [
        *on(shape, layer(2), layer(2, strides=1), layer(3, strides=2, padding="same")),
        *on(first, layer(2, **FIRST)),
    ]


def global_pooling(layer: Any, shape: tuple[int, ...], first: tuple[int, ...]) -> list[Proof]:
    return [*on(shape, layer(), layer(keepdims=True)), *on(first, layer(**FIRST))]


def adaptive(layer: Any, shape: tuple[int, ...], first: tuple[int, ...]) -> list[Proof]:
    return [*on(shape, layer(2), layer(3)), *on(first, layer(2, **FIRST))]


def convolutions(layer: Any, shape: tuple[int, ...]) -> list[Proof]:
    return on(
        shape,
        layer(2, 2),
        layer(2, 2, use_bias=False, activation="relu"),
        layer(2, 2, strides=2, padding="same", activation="silu"),
        layer(2, 2, activity_regularizer="l2"),
    )


PROVED_LAYERS: dict[str, list[Proof]] = {
    "Dense": [
        *on(VECTOR, L.Dense(3), L.Dense(3, use_bias=False, activation="tanh"), L.Dense(3, activity_regularizer="l2")),
        *on(VECTOR, L.Dense(3, dtype="float64"), lora(L.Dense(3)), lambda x: L.Dense(3)(inputs=x)),
        *on(VECTOR, L.Dense(3, activation=L.PReLU()), lambda x: L.Dense(3)(x, training=False)),
        *on(VECTOR, lambda x: (lambda shared: shared(shared(x)))(L.Dense(6, activation="gelu"))),
        *on(IMAGE, L.Dense(3)),
    ],
    "EinsumDense": [
        *on(SEQUENCE, L.EinsumDense("abc,cd->abd", (None, 4), bias_axes="d", activation="relu")),
        *on(SEQUENCE, L.EinsumDense("abc,bd->adc", (2, 3)), L.EinsumDense("abc,cde->abde", (5, 2, 2), bias_axes="de")),
        *on(SEQUENCE, lora(L.EinsumDense("abc,cd->abd", (None, 4)))),
    ],
    "Conv1D": [
        *convolutions(L.Conv1D, SEQUENCE),
        *on(SEQUENCE, L.Conv1D(3, 2, dilation_rate=2), L.Conv1D(3, 2, padding="causal", dilation_rate=2)),
        *on(SEQUENCE, L.Conv1D(6, 2, groups=3), lora(L.Conv1D(3, 2))),
    ],
    "Conv2D": [
        *convolutions(L.Conv2D, IMAGE),
        *on(IMAGE, L.Conv2D(4, 3, groups=2, padding="same"), L.Conv2D(2, (1, 3), strides=(2, 1)), lora(L.Conv2D(3, 2))),
        (IMAGE, L.Conv2D(2, 2, dilation_rate=(2, 1))),
    ],
    "Conv3D": [*convolutions(L.Conv3D, VOLUME), *on(VOLUME, L.Conv3D(4, 2, groups=2), L.Conv3D(2, 2, dilation_rate=2))],
    "DepthwiseConv1D": [
        *on(SEQUENCE, L.DepthwiseConv1D(2), L.DepthwiseConv1D(3, strides=2, padding="same", depth_multiplier=2)),
        *on(SEQUENCE, L.DepthwiseConv1D(2, dilation_rate=2, use_bias=False, activation="relu")),
        *on(FIRST1, L.DepthwiseConv1D(2, **FIRST)),
    ],
    "DepthwiseConv2D": [
        *on(IMAGE, L.DepthwiseConv2D(2), L.DepthwiseConv2D(3, strides=2, padding="same", depth_multiplier=2)),
        *on(IMAGE, L.DepthwiseConv2D(2, dilation_rate=2, use_bias=False, activation="gelu")),
        *on(FIRST2, L.DepthwiseConv2D(2, **FIRST)),
    ],
    "SeparableConv1D": [
        *on(SEQUENCE, L.SeparableConv1D(2, 2), L.SeparableConv1D(4, 3, strides=2, padding="same", depth_multiplier=2)),
        *on(SEQUENCE, L.SeparableConv1D(2, 2, dilation_rate=2, use_bias=False, activation="relu")),
    ],
    "SeparableConv2D": [
        *on(IMAGE, L.SeparableConv2D(2, 2), L.SeparableConv2D(4, 3, strides=2, padding="same", depth_multiplier=2)),
        *on(IMAGE, L.SeparableConv2D(2, 2, dilation_rate=2, use_bias=False, activation="relu")),
    ],
    "Conv1DTranspose": [
        *convolutions(L.Conv1DTranspose, SEQUENCE),
        *on(SEQUENCE, L.Conv1DTranspose(2, 3, strides=2, output_padding=1)),
    ],
    "Conv2DTranspose": [
        *convolutions(L.Conv2DTranspose, IMAGE),
        *on(IMAGE, L.Conv2DTranspose(2, 3, strides=2, output_padding=1)),
    ],
    "Conv3DTranspose": [
        *convolutions(L.Conv3DTranspose, VOLUME),
        *on(VOLUME, L.Conv3DTranspose(2, 2, strides=2, output_padding=1)),
    ],
    "BatchNormalization": [
        *on(VECTOR, L.BatchNormalization(), L.BatchNormalization(center=False), L.BatchNormalization(scale=False)),
        *on(VECTOR, L.BatchNormalization(renorm=True), L.BatchNormalization(epsilon=0.3, momentum=0.5, trainable=False)),
        *on(IMAGE, L.BatchNormalization(axis=1), L.BatchNormalization(axis=-2, synchronized=True)),
        *on(VECTOR, lambda x: L.BatchNormalization()(x, training=False)),
        *on(VECTOR, lambda x: L.BatchNormalization()(L.Dense(4, dtype="float64")(x))),
    ],
    "LayerNormalization": [
        *on(VECTOR, L.LayerNormalization(), L.LayerNormalization(center=False), L.LayerNormalization(scale=False)),
        *on(IMAGE, L.LayerNormalization(axis=1, epsilon=0.1), L.LayerNormalization(axis=[1, 2, 3]), L.LayerNormalization(-2)),
        *on(IMAGE, L.LayerNormalization(axis=[2, 1]), L.LayerNormalization(axis=(-1, 1))),
        *on((1,), L.LayerNormalization()),
        *on(VECTOR, lambda x: L.LayerNormalization()(L.Dense(4, dtype="float64")(x))),
    ],
    "GroupNormalization": [
        *on((2, 2, 6), L.GroupNormalization(3), L.GroupNormalization(-1), L.GroupNormalization(6), L.GroupNormalization(1)),
        *on((6, 2, 3), L.GroupNormalization(2, axis=1), L.GroupNormalization(3, axis=-3, center=False, epsilon=0.2)),
        *on((3, 6, 2), L.GroupNormalization(2, axis=2, scale=False), L.GroupNormalization(2, axis=-2)),
        *on((6,), L.GroupNormalization(2)),
        *on(VECTOR, lambda x: L.GroupNormalization(2)(L.Dense(4, dtype="float64")(x))),
    ],
    "Activation": [
        steep(L.Activation("relu")),
        steep(L.Activation("linear")),
        steep(L.Activation(L.LeakyReLU(0.2))),
        steep(L.Activation(tf.nn.silu)),
    ],
    "ReLU": [
        steep(L.ReLU()),
        steep(L.ReLU(max_value=6)),
        steep(L.ReLU(max_value=0)),
        steep(L.ReLU(max_value=1.5, negative_slope=0.3)),
        steep(L.ReLU(negative_slope=2.0)),
    ],
    "LeakyReLU": [steep(L.LeakyReLU()), steep(L.LeakyReLU(0.0)), steep(L.LeakyReLU(1.7))],
    "ELU": [steep(L.ELU()), steep(L.ELU(0.0)), steep(L.ELU(2.5))],
    "PReLU": [steep(L.PReLU()), (IMAGE, L.PReLU(shared_axes=[1, 2]))],
    **{f"MaxPooling{len(s) - 1}D": pooling(getattr(L, f"MaxPooling{len(s) - 1}D"), s, f) for s, f in [
        (SEQUENCE, FIRST1), (IMAGE, FIRST2), (VOLUME, FIRST3)]},
    **{f"AveragePooling{len(s) - 1}D": pooling(getattr(L, f"AveragePooling{len(s) - 1}D"), s, f) for s, f in [
        (SEQUENCE, FIRST1), (IMAGE, FIRST2), (VOLUME, FIRST3)]},
    **{f"Global{kind}Pooling{len(s) - 1}D": global_pooling(getattr(L, f"Global{kind}Pooling{len(s) - 1}D"), s, f)
       for kind in ("Max", "Average") for s, f in [(SEQUENCE, FIRST1), (IMAGE, FIRST2), (VOLUME, FIRST3)]},
    **{f"Adaptive{kind}Pooling{len(s) - 1}D": adaptive(getattr(L, f"Adaptive{kind}Pooling{len(s) - 1}D"), s, f)
       for kind in ("Max", "Average") for s, f in [(SEQUENCE, FIRST1), (IMAGE, FIRST2), (VOLUME, FIRST3)]
       if hasattr(L, f"Adaptive{kind}Pooling{len(s) - 1}D")},
    "Add": merging(L.Add),
    "Average": [*merging(L.Average), (VECTOR, lambda x: L.Average()([x, -x, x * x]))],
    "Maximum": merging(L.Maximum),
    "Minimum": merging(L.Minimum),
    "Concatenate": [
        two(L.Concatenate()),
        (IMAGE, lambda x: L.Concatenate(axis=1)([x, -x])),
        (SEQUENCE, lambda x: L.Concatenate(axis=-2)([x, x])),
    ],
    "Subtract": [two(L.Subtract()), (VECTOR, lambda x: L.Subtract()([x, x]))],
    "Multiply": [*merging(L.Multiply), (VECTOR, lambda x: L.Multiply()([x, L.Dense(6)(x), x]))],
    "Flatten": [*on(IMAGE, L.Flatten(), L.Flatten(**FIRST)), (VECTOR, L.Flatten())],
    "Reshape": on(IMAGE, L.Reshape((8, 4)), L.Reshape((-1,)), L.Reshape((2, -1, 4))),
    "Permute": on(IMAGE, L.Permute((2, 1, 3)), L.Permute((3, 2, 1))),
    "RepeatVector": on(VECTOR, L.RepeatVector(3)),
    "Cropping1D": on(SEQUENCE, L.Cropping1D(1), L.Cropping1D((0, 2))),
    "Cropping2D": [*on(IMAGE, L.Cropping2D(1), L.Cropping2D(((0, 1), (2, 0)))), (FIRST2, L.Cropping2D(1, **FIRST))],
    "Cropping3D": [*on(VOLUME, L.Cropping3D(1), L.Cropping3D(((0, 1), (2, 0), (0, 0)))), (FIRST3, L.Cropping3D(1, **FIRST))],
    "ZeroPadding1D": [*on(SEQUENCE, L.ZeroPadding1D(1), L.ZeroPadding1D((0, 2))), (FIRST1, L.ZeroPadding1D(1, **FIRST))],
    "ZeroPadding2D": [
        *on(IMAGE, L.ZeroPadding2D(1), L.ZeroPadding2D(((0, 1), (2, 0)))), (FIRST2, L.ZeroPadding2D(1, **FIRST)),
    ],
    "ZeroPadding3D": [*on(VOLUME, L.ZeroPadding3D(1)), (FIRST3, L.ZeroPadding3D(1, **FIRST))],
    "UpSampling1D": on(SEQUENCE, L.UpSampling1D(2)),
    "UpSampling2D": [
        *on(IMAGE, L.UpSampling2D(2), L.UpSampling2D((1, 3)), L.UpSampling2D(2, interpolation="bilinear")),
        *on(FIRST2, L.UpSampling2D(2, **FIRST), L.UpSampling2D(2, interpolation="bilinear", **FIRST)),
    ],
    "UpSampling3D": [*on(VOLUME, L.UpSampling3D((1, 2, 1))), (FIRST3, L.UpSampling3D(2, **FIRST))],
    "Rescaling": [
        *on(VECTOR, L.Rescaling(0.5), L.Rescaling(-2.0, 0.3), L.Rescaling(list(CONSTANT), list(CONSTANT[::-1]))),
        *on(VECTOR, L.Rescaling(tf.constant(CONSTANT)), L.Rescaling(0.0)),
    ],
    "Normalization": [
        *on(VECTOR, L.Normalization(mean=CONSTANT, variance=CONSTANT**2), L.Normalization(axis=None, mean=0.5, variance=2.0)),
        *on(VECTOR, L.Normalization(mean=CONSTANT, variance=CONSTANT**2, invert=True)),
        *on(IMAGE, L.Normalization(axis=1, mean=CONSTANT[:4], variance=CONSTANT[:4] ** 2)),
    ],
    "Dropout": on(VECTOR, L.Dropout(0.5), L.Dropout(0.0), L.Dropout(0.5, noise_shape=(None, 1))),
    "SpatialDropout1D": on(SEQUENCE, L.SpatialDropout1D(0.5)),
    "SpatialDropout2D": [(IMAGE, L.SpatialDropout2D(0.5)), (FIRST2, L.SpatialDropout2D(0.5, **FIRST))],
    "SpatialDropout3D": [(VOLUME, L.SpatialDropout3D(0.5)), (FIRST3, L.SpatialDropout3D(0.5, **FIRST))],
    "GaussianDropout": on(VECTOR, L.GaussianDropout(0.5), L.GaussianDropout(0.0)),
    "GaussianNoise": on(VECTOR, L.GaussianNoise(0.5)),
    "AlphaDropout": on(VECTOR, L.AlphaDropout(0.5), L.AlphaDropout(0.5, noise_shape=(None, 1))),
    "ActivityRegularization": on(VECTOR, L.ActivityRegularization(l1=0.1, l2=0.1)),
    "Identity": on(VECTOR, L.Identity()),
}  # fmt: skip


def binary(f: Callable[[Any, Any], Any]) -> list[Proof]:
    """Two tensors, one tensor with itself, and a constant in either place."""
    return [
        (VECTOR, lambda x: f(L.Dense(4)(x), L.Dense(4)(x))),
        *on(VECTOR, lambda x: f(x, x), lambda x: f(x, 0.3), lambda x: f(-0.3, x), lambda x: f(x, CONSTANT)),
        *on(VECTOR, lambda x: f(CONSTANT, x), lambda x: f(x, x[:, :1]), lambda x: f(tf.constant(CONSTANT), x)),
        *on(VECTOR, lambda x: f(x, CONSTANT.astype(np.float64))),
    ]


def reductions(f: Callable[..., Any]) -> list[Proof]:
    return [
        *on(IMAGE, lambda x: f(x, axis=1), lambda x: f(x, axis=(1, -1), keepdims=True), lambda x: f(x, axis=[-2])),
        # The batch is the second axis of what is stacked.
        (VECTOR, lambda x: f(K.stack([x, -x, x * 2.0]), axis=0)),
        (VECTOR, lambda x: f(K.transpose(x), axis=0)),
    ]


def element(f: Build, *others: Build) -> list[Proof]:
    return [steep(f), *map(steep, others)]


def constants_first(f: Callable[[Any, Any], Any]) -> list[Proof]:
    return on(VECTOR, lambda x: f(x, 3.0), lambda x: f(x, -0.5), lambda x: f(x, CONSTANT))


PROVED_OPERATIONS: dict[str, list[Proof]] = {
    "Add": [*binary(K.add), (VECTOR, lambda x: 1 + x)],
    "Subtract": [*binary(K.subtract), (VECTOR, lambda x: 1 - x)],
    "Multiply": [*binary(K.multiply), (VECTOR, lambda x: x * x * x)],
    "Divide": constants_first(K.divide),
    "TrueDivide": [*constants_first(K.true_divide), (VECTOR, lambda x: x / 3)],
    "Negative": on(VECTOR, K.negative, lambda x: -x),
    "Power": [
        steep(lambda x: x**2), steep(lambda x: K.power(x, 2.0)), steep(lambda x: K.power(x, np.full(6, 2.0, np.float32))),
    ],
    "Abs": element(keras.src.ops.numpy.Abs()),
    "Absolute": element(K.absolute, K.abs, abs),
    "Square": element(K.square),
    "Maximum": binary(K.maximum),
    "Minimum": binary(K.minimum),
    "Clip": element(
        lambda x: K.clip(x, -1.0, 0.5), lambda x: K.clip(x, 1.0, -1.0),
        lambda x: K.clip(x, CONSTANT, CONSTANT + 1),
    ),
    "Mean": reductions(K.mean),
    "Sum": reductions(K.sum),
    "Max": [*reductions(K.max), (VECTOR, lambda x: K.max(x, axis=1, initial=0.3))],
    "Min": [*reductions(K.min), (VECTOR, lambda x: K.min(x, axis=1, initial=0.3))],
    "Amax": reductions(K.amax),
    "Amin": reductions(K.amin),
    "Logsumexp": reductions(K.logsumexp),
    "MaxPool": [
        *on(IMAGE, lambda x: K.max_pool(x, 2), lambda x: K.max_pool(x, 3, strides=1, padding="same")),
        (FIRST2, lambda x: K.max_pool(x, (1, 2), data_format="channels_first")),
    ],
    "AveragePool": [
        *on(IMAGE, lambda x: K.average_pool(x, 2), lambda x: K.average_pool(x, 3, strides=1, padding="same")),
        (FIRST2, lambda x: K.average_pool(x, (1, 2), data_format="channels_first")),
    ],
    "AdaptiveMaxPool": on(IMAGE, lambda x: K.adaptive_max_pool(x, (2, 2)), lambda x: K.adaptive_max_pool(x, (3, 2))),
    "AdaptiveAveragePool": on(
        IMAGE, lambda x: K.adaptive_average_pool(x, (2, 2)), lambda x: K.adaptive_average_pool(x, (3, 2))
    ),
    "Reshape": on(IMAGE, lambda x: K.reshape(x, (-1, 8, 4)), lambda x: K.reshape(x, (-1, 32))),
    "Ravel": on(VECTOR, lambda x: K.reshape(K.ravel(x), (-1, 6))),
    "Transpose": on(IMAGE, lambda x: K.transpose(x, (0, 3, 1, 2)), lambda x: K.transpose(K.transpose(x))),
    "Swapaxes": on(IMAGE, lambda x: K.swapaxes(x, 1, -1)),
    "Moveaxis": on(IMAGE, lambda x: K.moveaxis(x, 1, 3), lambda x: K.moveaxis(x, (1, 2), (2, 1))),
    "Squeeze": on((6, 1), lambda x: K.squeeze(x, -1), lambda x: K.squeeze(x)),
    "ExpandDims": on(VECTOR, lambda x: K.expand_dims(x, 1), lambda x: K.expand_dims(x, (1, -1))),
    "BroadcastTo": on(VECTOR, lambda x: K.broadcast_to(x[:, None], (2, 3, 6))),  # the batch has to be of this length
    "Concatenate": on(VECTOR, lambda x: K.concatenate([x, -x], axis=1), lambda x: K.concatenate([x, x * x], axis=-1)),
    "Stack": on(VECTOR, lambda x: K.stack([x, -x], axis=1), lambda x: K.stack([x, -x], axis=-1)),
    "Hstack": on(VECTOR, lambda x: K.hstack([x, -x])),
    "Vstack": on(VECTOR, lambda x: K.transpose(K.vstack([K.transpose(x), K.transpose(-x)]))),
    "Split": on(
        VECTOR,
        lambda x: K.split(x, 3, axis=1)[1],
        lambda x: K.split(x, [1, 4], axis=-1)[1],
        lambda x: K.maximum(*K.split(x, 2, 1)),
    ),
    "Unstack": on(SEQUENCE, lambda x: K.unstack(x, axis=1)[2], lambda x: K.unstack(x, num=3, axis=-1)[0]),
    "GetItem": on(
        IMAGE, lambda x: x[:, 1], lambda x: x[:, ::-1, 1:3], lambda x: x[..., 0], lambda x: x[:, None, :, 2, tf.newaxis]
    ),
    "Pad": on(
        SEQUENCE,
        lambda x: K.pad(x, ((0, 0), (1, 2), (0, 1))),
        lambda x: K.pad(x, ((0, 0), (1, 0), (0, 0)), constant_values=-3.0),
        lambda x: K.pad(x, ((0, 0), (1, 2), (0, 1)), mode="reflect"),
        lambda x: K.pad(x, ((0, 0), (1, 2), (0, 1)), mode="symmetric"),
    ),
    "Flip": on(SEQUENCE, lambda x: K.flip(x, axis=1), lambda x: K.flip(x, axis=(1, 2))),
    "Roll": on(SEQUENCE, lambda x: K.roll(x, 2, axis=1), lambda x: K.roll(x, (1, -1), axis=(1, 2))),
    "Repeat": on(VECTOR, lambda x: K.repeat(x, 2, axis=1), lambda x: K.repeat(x, [1, 2, 0, 1, 1, 3], axis=1)),
    "Tile": on(VECTOR, lambda x: K.tile(x, (1, 2))),
    "Copy": on(VECTOR, K.copy),
    "Cast": on(VECTOR, lambda x: K.cast(x, "float64"), lambda x: K.cast(K.cast(x, "float64") * 3.0, "float32")),
    "StopGradient": on(VECTOR, K.stop_gradient),
    "DepthToSpace": [((2, 2, 8), lambda x: K.depth_to_space(x, 2))],
    "SpaceToDepth": on(IMAGE, lambda x: K.space_to_depth(x, 2)),
    "ReLU": element(
        A.relu,
        lambda x: A.relu(x, negative_slope=0.2),
        lambda x: A.relu(x, max_value=6),
        lambda x: A.relu(x, max_value=1.0, negative_slope=0.4),
        lambda x: A.relu(x, negative_slope=0, max_value=0.5),
    ),
    "Relu": element(K.relu),
    "Relu6": element(K.relu6),
    "LeakyRelu": element(K.leaky_relu, lambda x: K.leaky_relu(x, 0.0), lambda x: K.leaky_relu(x, 1.7)),
    "Elu": element(K.elu, lambda x: K.elu(x, 0.0), lambda x: K.elu(x, 2.5)),
    "Celu": element(K.celu, lambda x: K.celu(x, 0.3), lambda x: K.celu(x, 2.5)),
    "Selu": element(K.selu),
    "Sigmoid": element(K.sigmoid),
    "Tanh": element(K.tanh),
    "Softplus": element(K.softplus),
    "Softsign": element(K.softsign),
    "Exp": element(K.exp),
    "LogSigmoid": element(K.log_sigmoid),
    "HardSigmoid": element(K.hard_sigmoid),
    "HardTanh": element(K.hard_tanh),
    "HardShrink": element(K.hard_shrink, lambda x: K.hard_shrink(x, 2.0), lambda x: K.hard_shrink(x, -0.5)),
    "SoftShrink": element(K.soft_shrink, lambda x: K.soft_shrink(x, 2.0), lambda x: K.soft_shrink(x, -0.5)),
    "TanhShrink": element(K.tanh_shrink),
    "Squareplus": element(K.squareplus, lambda x: K.squareplus(x, 0), lambda x: K.squareplus(x, 20.0)),
    "SparsePlus": element(K.sparse_plus),
    "SparseSigmoid": element(K.sparse_sigmoid),
    "Gelu": element(K.gelu, lambda x: K.gelu(x, approximate=False), lambda x: A.gelu(x, approximate=True)),
    "Silu": element(K.silu),
    "Mish": element(keras.src.activations.activations.Mish()),
    "HardSilu": element(K.hard_silu),
}  # fmt: skip

# A layer carries a function without arguments, so that its defaults are all there is to prove.
PROVED_FUNCTIONS: dict[str, list[Proof]] = {
    name: [
        steep(functools.partial(lambda f, x: L.Activation(f)(x), getattr(module, name)))
        for module in rules.MODULES
        if name in dir(module)
    ]
    for name in rules.FUNCTIONS
}

PROVED = {
    f"{kind} {name} {index}": proof
    for kind, table in (("layer", PROVED_LAYERS), ("operation", PROVED_OPERATIONS), ("function", PROVED_FUNCTIONS))
    for name, proofs in table.items()
    for index, proof in enumerate(proofs)
}


@pytest.mark.parametrize("case", PROVED)
def test_boxes_hold_every_point_of_the_ball(case: str) -> None:
    (kind, name, _), (shape, build) = case.split(), PROVED[case]
    model = network(build, shape)
    if kind != "function":  # the proof runs the row that it stands for
        rows = [type(operation) for operation in model.operations if type(operation).__name__ == name]
        assert any(issubclass(row, keras.Layer) == (kind == "layer") for row in rows)
    assert_sound(model, data(shape))


# TensorFlow computes these on a processor only where XLA compiles them.
COMPILED: dict[str, Proof] = {
    "Conv1D": (FIRST1, L.Conv1D(2, 2, **FIRST)),
    "causal Conv1D": (FIRST1, L.Conv1D(2, 2, padding="causal", **FIRST)),
    "Conv2D": (FIRST2, L.Conv2D(3, 2, activation="relu", **FIRST)),
    "SeparableConv2D": (FIRST2, L.SeparableConv2D(3, 2, **FIRST)),
    "Conv2DTranspose": (FIRST2, L.Conv2DTranspose(3, 2, strides=2, **FIRST)),
    "dilated Conv2DTranspose": (IMAGE, L.Conv2DTranspose(3, 2, dilation_rate=2)),
}


@pytest.mark.parametrize("case", COMPILED)
def test_boxes_of_compiled_layers_hold_every_point_of_the_ball(case: str) -> None:
    shape, build = COMPILED[case]
    model = network(build, shape)
    assert_sound(model, data(shape), tf.function(jit_compile=True, autograph=False))


def test_every_row_of_the_rule_tables_is_proved() -> None:
    for proved, names in (
        (PROVED_LAYERS, {name for name in rules.LAYERS if hasattr(L, name)}),
        (PROVED_OPERATIONS, set(rules.OPERATIONS)),
        (PROVED_FUNCTIONS, set(rules.FUNCTIONS)),
    ):
        assert set(proved) == names
        assert [name for name, proofs in proved.items() if not proofs] == []


# --------------------------------------------------------------------------------------------------------- refusals


def replaced(layer: Any, name: str = "call") -> Build:
    """A layer that computes something else than its class does."""

    def build(x: Any) -> Any:
        y = layer(x)
        original = getattr(layer, name)
        setattr(layer, name, lambda *arguments, **options: -original(*arguments, **options))
        return y

    return build


def quantized(layer: Any, x: Any) -> Any:
    layer(x)
    layer.quantize("int8")
    return layer(x)


def inner(build: Build, **options: Any) -> Build:
    """A model within the model, called with these options."""

    def outer(x: Any) -> Any:
        inputs = keras.Input(x.shape[1:])
        return keras.Model(inputs, build(inputs), name="inner")(x, **options)

    return outer


def own_class(parent: Any) -> Any:
    """A user's class of the same name, with code of its own."""
    return type(parent.__name__, (parent,), {"call": lambda self, x: -parent.call(self, x)})


class Swish(keras.Operation):
    def call(self, x: Any) -> Any:
        return -x

    def compute_output_spec(self, x: Any) -> Any:
        return keras.KerasTensor(x.shape, x.dtype)


class Sum(Swish):
    """Bears the name of an operation of Keras."""


Refusal = tuple[tuple[int, ...], Build, str]
RANDOM = {
    "Dropout": VECTOR, "SpatialDropout1D": SEQUENCE, "SpatialDropout2D": IMAGE, "SpatialDropout3D": VOLUME,
    "GaussianDropout": VECTOR, "GaussianNoise": VECTOR, "AlphaDropout": VECTOR,
}  # fmt: skip

REFUSED: dict[str, Refusal] = {
    **{
        f"{name} in inference": (shape, functools.partial(lambda layer, x: layer(0.5)(x, training=True), getattr(L, name)),
                                 rf"{name}.*training=True.*random")
        for name, shape in RANDOM.items()
    },
    "batch statistics in inference": (VECTOR, lambda x: L.BatchNormalization()(x, training=True), "BatchNorm.*training=True"),
    "a model in training mode": (VECTOR, inner(L.Dropout(0.5), training=True), "'inner'.*training=True"),
    "dense with random activation": (
        VECTOR, lambda x: L.Dense(2, activation=L.Dropout(0.5))(x, training=True), "training=True",
    ),
    "batch norm under a mask of the input": (
        SEQUENCE, lambda x: L.BatchNormalization()(x, mask=K.mean(x, axis=-1)), "BatchNormalization.*mask depends on the input",
    ),
    "a mask of the input": (
        SEQUENCE, lambda x: L.GlobalAveragePooling1D()(x, mask=x[..., 0] > 0), "Greater",
    ),
    "a masked model": (SEQUENCE, inner(L.GlobalAveragePooling1D(), mask=K.ones((2, 5), "bool")), "'inner'.*mask"),
    "masking": (SEQUENCE, L.Masking(), "Masking"),
    "each step": (SEQUENCE, L.TimeDistributed(L.Dense(2)), "TimeDistributed"),
    "spectral norm": (VECTOR, L.SpectralNormalization(L.Dense(2)), "SpectralNormalization"),
    "lambda": (VECTOR, L.Lambda(lambda x: -x, output_shape=VECTOR), "Lambda"),
    "replaced call": (VECTOR, replaced(L.Dense(3, name="mine")), "'mine'.*`call` is custom code"),
    "replaced call of a merge": (VECTOR, lambda x: replaced(L.Add())([x, x]), "`call` is custom code"),
    "replaced convolution": (IMAGE, replaced(L.Conv2D(2, 2), "convolution_op"), "`convolution_op` is custom code"),
    "own class": (VECTOR, own_class(L.Dense)(3), "Dense"),
    "own parameterless class": (VECTOR, own_class(L.ReLU)(), "ReLU"),
    "own operation": (VECTOR, Sum(), "Sum"),
    "own operation of no known name": (VECTOR, Swish(), "Swish"),
    "quantized dense": (VECTOR, lambda x: quantized(L.Dense(3), x), "quantized.*int8"),
    "quantized einsum": (SEQUENCE, lambda x: quantized(L.EinsumDense("abc,cd->abd", (None, 4)), x), "quantized.*int8"),
    "half precision": (VECTOR, L.Dense(3, dtype="float16"), "float16"),
    "mixed precision": (VECTOR, L.Dense(3, dtype="mixed_bfloat16"), "bfloat16"),
    **{
        f"cast to {dtype}": (
            VECTOR, functools.partial(lambda dtype, x: K.cast(K.cast(x, dtype), "float32"), dtype), f"Cast.*{dtype}",
        )
        for dtype in ("int32", "uint8", "bool", "float16", "bfloat16")
    },
    "layer norm by deviation alone": (VECTOR, lambda x: L.LayerNormalization(rms_scaling=True)(x), "rms_scaling"),
    "bicubic": (IMAGE, L.UpSampling2D(2, interpolation="bicubic"), "bicubic"),
    "lanczos": (IMAGE, L.UpSampling2D(2, interpolation="lanczos3"), "lanczos3"),
    "relu layer with a threshold": (VECTOR, L.ReLU(threshold=0.5), "threshold=0.5"),
    "relu with a threshold": (VECTOR, lambda x: A.relu(x, threshold=-0.5), "threshold=-0.5"),
    "relu with a negative cap": (VECTOR, lambda x: A.relu(x, max_value=-1.0), "max_value=-1.0"),
    "relu with a falling side": (VECTOR, lambda x: A.relu(x, negative_slope=-0.5), "negative_slope=-0.5"),
    "leaky relu with a falling side": (VECTOR, lambda x: K.leaky_relu(x, -0.5), "negative_slope=-0.5"),
    "celu with many slopes": (VECTOR, lambda x: K.celu(x, CONSTANT + 2.0), "alpha="),
    "elu layer with a falling side": (VECTOR, L.ELU(-0.5), "alpha=-0.5"),
    "elu with a falling side": (VECTOR, lambda x: K.elu(x, -0.5), "alpha=-0.5"),
    "celu with a falling side": (VECTOR, lambda x: K.celu(x, -0.5), "alpha=-0.5"),
    "celu without curvature": (VECTOR, lambda x: K.celu(x, 0.0), "alpha=0.0"),
    "squareplus of negative curvature": (VECTOR, lambda x: K.squareplus(x, -4), "b=-4"),
    "divisor of the input": (VECTOR, lambda x: K.divide(x, x), "divisor"),
    "one over the input": (VECTOR, lambda x: 1.0 / x, "divisor"),
    "floor": (VECTOR, lambda x: x // 2.0, "FloorDivide"),
    "remainder": (VECTOR, lambda x: x % 2.0, "Mod"),
    "cube": (VECTOR, lambda x: x**3, "square"),
    "root": (VECTOR, lambda x: x**0.5, "square"),
    "powers": (VECTOR, lambda x: x ** np.array([2, 2, 2, 2, 2, 3.0], np.float32), "square"),
    "exponent of the input": (VECTOR, lambda x: 2.0**x, "square"),
    "power of itself": (VECTOR, lambda x: x**x, "square"),
    "identity of two": (VECTOR, lambda x: L.Identity()([x, -x])[0], "Identity.*2 of its arguments"),
    "dropout of two": (VECTOR, lambda x: L.Dropout(0.5)([x, -x])[0], "Dropout.*2 of its arguments"),
    "activation with arguments": (VECTOR, L.Activation(functools.partial(A.relu, threshold=1.0)), "partial"),
    "activation of a user": (VECTOR, L.Activation(lambda x: -x), "lambda"),
    "softmax": (VECTOR, L.Dense(3, activation="softmax"), "logits"),
    "threshold": (VECTOR, lambda x: A.threshold(x, 0.5, 3.0), "Threshold"),
    **{
        f"{f.__name__} of the whole batch": (VECTOR, functools.partial(lambda f, x: x - f(x), f), "axis=None mixes the points")
        for f in (K.mean, K.sum, K.max, K.min, K.amax, K.amin, K.logsumexp)
    },
    "mean over the batch": (VECTOR, lambda x: x - K.mean(x, axis=0, keepdims=True), r"axis=\[0\] mixes the points"),
    "mean over a moved batch": (VECTOR, lambda x: x - K.mean(K.transpose(x), axis=1)[0], r"axis=\[1\] mixes the points"),
    "batch flipped": (VECTOR, lambda x: x + K.flip(x, axis=(0, 1)), r"axis=\(0, 1\) mixes the points"),
    "batch rolled": (VECTOR, lambda x: x + K.roll(x, 1), "axis=None mixes the points"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:You passed .rms_scaling", "ignore:Layer 'inner'")
@pytest.mark.parametrize("case", REFUSED)
def test_what_no_rule_was_proved_for_is_refused_by_name(case: str) -> None:
    shape, build, reason = REFUSED[case]
    with pytest.raises(NoIntervalRuleError, match=reason):
        walk(network(build, shape), data(shape))


@pytest.mark.filterwarnings("ignore:You passed .rms_scaling", "ignore:Layer 'inner'")
@pytest.mark.parametrize("case", [case for case in REFUSED if "model" not in case])
def test_what_is_refused_still_has_its_value(case: str) -> None:
    shape, build, _ = REFUSED[case]
    model = network(build, shape)
    x = data(shape)
    value = Walk(training=False).logits(model, Joint(tf.constant(x), None, "input")).value
    np.testing.assert_array_equal(value, model(x, training=False))


@pytest.mark.parametrize("training", [False, True])
def test_the_mode_of_the_pass_outranks_that_of_a_call(training: bool) -> None:
    """`base(x, training=False)` stands in every recipe of transfer learning; Keras lets the outer call decide."""
    model = network(inner(L.BatchNormalization(), training=False), VECTOR)
    weights, x = model.get_weights(), data(VECTOR)
    value = walk(model, x, training=training).value
    model.set_weights(weights)
    np.testing.assert_allclose(value, model(x, training=training), rtol=1e-4, atol=1e-5)


def test_statistics_under_a_mask_are_refused_in_training() -> None:
    mask = K.convert_to_tensor(np.array([[True, True, False, True, False]] * 2))
    model = network(lambda x: L.BatchNormalization()(x, mask=mask), SEQUENCE)
    assert_inside_once(model, data(SEQUENCE))
    with pytest.raises(NoIntervalRuleError, match=r"BatchNormalization.*mask"):
        walk(model, data(SEQUENCE), training=True)


def assert_inside_once(model: Any, x: np.ndarray) -> None:
    """For a network that knows the length of its batch."""
    joint = walk(model, x)
    lower, upper = box_of(joint)
    np.testing.assert_allclose(joint.value, model(x, training=False), rtol=ROUNDING, atol=ROUNDING)
    for point in points(x, 0.1):
        value = np.asarray(model(point, training=False))
        assert np.all(value >= lower - ROUNDING) and np.all(value <= upper + ROUNDING)


def test_an_average_under_a_constant_mask_has_a_box() -> None:
    mask = K.convert_to_tensor(np.array([[True, True, False, True, False]] * 2))
    assert_inside_once(network(lambda x: L.GlobalAveragePooling1D()(x, mask=mask), SEQUENCE), data(SEQUENCE))


@pytest.mark.parametrize("shape, wanted", [((4, 4), (4, 4, 1)), ((6, 1), (6,))])
def test_a_model_takes_the_ranks_that_keras_takes(shape: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    convolve = [L.Conv2D(2, 2), L.Flatten()] if len(wanted) == 3 else []
    assert_sound(keras.Sequential([keras.Input(wanted), *convolve, L.Dense(2)]), data(shape))


@pytest.mark.parametrize("by_name", [False, True])
def test_inputs_of_an_inner_model_are_told_apart_by_name(by_name: bool) -> None:
    def build(x: Any) -> Any:
        first, second = keras.Input(VECTOR, name="second"), keras.Input(VECTOR, name="first")
        difference = first - second
        pair = keras.Model({"second": first, "first": second} if by_name else [first, second], difference)
        return pair({"first": x, "second": x * 2.0})

    assert_sound(network(build, VECTOR), data(VECTOR))


def test_a_constant_input_of_an_inner_model_is_refused() -> None:
    def build(x: Any) -> Any:
        inputs = [keras.Input(VECTOR), keras.Input(VECTOR)]
        return keras.Model(inputs, L.Add()(inputs), name="pair")([x, K.ones((2, 6))])

    with pytest.raises(NoIntervalRuleError, match=r"'pair'.*2 inputs"):
        walk(network(build, VECTOR), data(VECTOR))


def test_a_model_computes_in_the_precision_of_its_input() -> None:
    model = network(lambda x: x * 2.0, VECTOR, dtype="float64")
    assert walk(model, data(VECTOR)).value.dtype == "float64"
    assert_sound(model, data(VECTOR))
    with pytest.raises(NoIntervalRuleError, match="its input is int32"):
        walk(network(lambda x: L.Rescaling(0.5)(x), VECTOR, dtype="int32"), data(VECTOR))


def test_a_model_with_other_code_than_its_graph_has_none() -> None:
    model = network(L.Dense(2), VECTOR)
    assert has_graph(model)
    model.call = lambda x, training=False: -x
    assert not has_graph(model)

    class Own(keras.Model):
        def __call__(self, x: Any, **options: Any) -> Any:
            return -super().__call__(x, **options)

    inputs = keras.Input(VECTOR)
    assert not has_graph(Own(inputs, L.Dense(2)(inputs)))
    outer = network(inner(L.Dense(2)), VECTOR)
    nested = outer.get_layer("inner")
    nested.call = lambda x, training=False: -x
    with pytest.raises(NoIntervalRuleError, match="inner"):
        walk(outer, data(VECTOR))


def test_a_bias_of_channels_first_is_added_where_keras_adds_it() -> None:
    """Along the width, where that is as long as there are filters: no one's wish, but the network that predicts."""
    model = network(L.DepthwiseConv2D(2, **FIRST), (3, 4, 4))
    assert_sound(model, data((3, 4, 4)))
    assert_sound(network(L.EinsumDense("abc,cd->abd", (5, 5), bias_axes="b"), SEQUENCE), data(SEQUENCE))


def test_a_norm_over_axes_of_unknown_length_is_refused_by_name() -> None:
    model = network(L.GroupNormalization(2), (None, 4))

    @tf.function(autograph=False, input_signature=[tf.TensorSpec((None, None, 4))])
    def bound(x: Any) -> Any:
        return Walk(training=False).logits(model, Joint(x, Box(x - 0.1, x + 0.1), "input")).value

    with pytest.raises(NoIntervalRuleError, match=r"GroupNormalization.*length"):
        bound(data((3, 4)))


def test_a_name_stands_for_one_operation_of_keras() -> None:
    for name in rules.OPERATIONS:
        classes = {
            kind
            for module in list(sys.modules.values())
            if getattr(module, "__name__", "").startswith("keras.src.")
            and isinstance(kind := vars(module).get(name), type)
            and issubclass(kind, keras.Operation)
            and not issubclass(kind, keras.Layer)
        }
        assert len(classes) == 1, classes


# ------------------------------------------------------------------------------------------- the first layer over an L2 ball

SCALES = np.array([0.5, -2.0], np.float32)
# Of images (4, 4, 2): what is exact in every unit alone, and what may not be, since a number takes part twice.
EXACT: dict[str, Build] = {
    "dense": lambda x: L.Dense(5)(L.Flatten()(x)),
    "convolution": lambda x: L.Conv2D(3, 2, padding="same", strides=2)(x),
    "depthwise": lambda x: L.DepthwiseConv2D(2, depth_multiplier=2)(x),
    "transposed convolution": lambda x: L.Conv2DTranspose(3, 3, strides=2)(x),
    "causal": lambda x: L.Conv1D(3, 2, padding="causal")(L.Reshape((16, 2))(x)),
    "einsum": lambda x: L.EinsumDense("abcd,cde->abe", (None, 5))(x),
    "rescaled": lambda x: L.Conv2D(3, 2)(L.Rescaling([0.5, -2.0], offset=-1.0)(x)),
    "normalised": lambda x: L.Conv2D(3, 2)(L.Normalization(mean=[0.3, 1.0], variance=[0.25, 4.0])(x)),
    "operators": lambda x: L.Conv2D(3, 2)((1.0 - x) / SCALES * 3.0 - SCALES + 0.5),
    "batch norm": lambda x: L.Conv2D(3, 2)(L.BatchNormalization()(x)),
    "padded and cropped": lambda x: L.Conv2D(3, 2)(L.Cropping2D(((1, 0), (0, 0)))(L.ZeroPadding2D(1)(x))),
    "padded by a constant": lambda x: L.Conv2D(3, 2)(K.pad(x, [[0, 0], [1, 1], [0, 1], [0, 0]], constant_values=0.7)),
    "permuted and cut": lambda x: L.Conv2D(3, 2)(K.transpose(x, (0, 2, 1, 3))[:, 1:, :, ::-1]),
    "reshaped": lambda x: L.Dense(5)(K.reshape(x, (-1, 32))),
    "another axis": lambda x: L.Dense(5)(K.squeeze(K.expand_dims(K.reshape(x, (-1, 32)), 1), 1)),
    "network inside": lambda x: keras.Sequential([L.Flatten(), L.Dense(5)])(x),
}
REPEATED: dict[str, Build] = {
    "repeated by a product": lambda x: L.Conv2D(3, 2)(x[..., :1] * SCALES),
    "repeated by a sum": lambda x: L.Conv2D(3, 2)(x[..., :1] + SCALES),
    "repeated": lambda x: L.Conv2D(3, 2)(K.repeat(x[..., :1], 2, axis=-1)),
    "repeated vector": lambda x: L.Conv1D(3, 2)(L.RepeatVector(3)(L.Flatten()(x))),
    "upsampled": lambda x: L.Conv2D(3, 3)(L.UpSampling2D(2)(x)),
    "reflected": lambda x: L.Conv2D(3, 2)(K.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]], mode="reflect")),
    "joined with itself": lambda x: L.Conv2D(3, 2)(L.Concatenate()([x, x])),
    "added to itself": lambda x: L.Conv2D(3, 2)(L.Add()([x, x])),
    "pooled": lambda x: L.Conv2D(3, 2)(L.AveragePooling2D(2, 1)(x)),
    "separable": lambda x: L.SeparableConv2D(3, 2, depth_multiplier=2)(x),
}


@functools.cache
def over_l2_ball(name: str) -> tuple[Any, Any, np.ndarray]:
    """An affine model, its bounds of (x, eps), and its matrix, (units, 32)."""
    keras.utils.set_random_seed(0)
    model = network({**EXACT, **REPEATED}[name], IMAGE)

    @tf.function(autograph=False)
    def bounds(x: Any, eps: Any) -> Any:
        joint = Joint(x, Box(x - eps, x + eps), "input", spread=tf.ones_like(x) * eps)
        return box_of(Walk(training=False).logits(model, joint))

    basis = np.concatenate([np.zeros((1, 32)), np.eye(32)]).astype(np.float32).reshape(-1, *IMAGE)
    values = model(basis, training=False).numpy().astype(np.float64).reshape(33, -1)
    return model, bounds, (values[1:] - values[0]).T


@pytest.mark.parametrize("name", [*EXACT, *REPEATED])
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), eps=st.floats(0.0, 3.0, width=32))
def test_an_l2_ball_stays_inside_the_first_layer_and_reaches_its_ends(name: str, seed: int, eps: float) -> None:
    rng, (model, bounds, rows) = np.random.default_rng(seed), over_l2_ball(name)
    x = rng.normal(size=(2, *IMAGE)).astype(np.float32)
    lower, upper = (np.asarray(end)[0].ravel() for end in bounds(tf.constant(x), tf.constant(np.float32(eps))))
    # The worst points of each unit, and random ones on the sphere.
    steps = np.concatenate([rows, -rows, rng.normal(size=(50, 32))])
    steps = steps / np.maximum(np.linalg.norm(steps, axis=1, keepdims=True), 1e-12)
    there = model((x[0] + eps * steps.reshape(-1, *IMAGE)).astype(np.float32), training=False).numpy().reshape(len(steps), -1)
    slack = 10 * ROUNDING * (1.0 + np.abs(lower) + np.abs(upper))
    assert (there >= lower - slack).all() and (there <= upper + slack).all()
    if name in EXACT:
        value, reach = np.asarray(model(x, training=False))[0].ravel(), eps * np.linalg.norm(rows, axis=1)
        np.testing.assert_array_less(np.abs(value - reach - lower), slack)
        np.testing.assert_array_less(np.abs(value + reach - upper), slack)
