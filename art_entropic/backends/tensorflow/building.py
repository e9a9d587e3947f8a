"""TensorFlow: networks described as data, as Keras models and ART estimators."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
from art.estimators.classification import TensorFlowV2Classifier

from art_entropic.backends.architecture import (
    NORM_EPSILON,
    NORM_MOMENTUM,
    Architecture,
    Conv,
    Dense,
    Encoder,
    Flatten,
    GlobalAverage,
    MaxPool,
    OneHot,
    Patches,
    Residual,
    Shape,
    TokenMean,
    initial_weights,
    shape_after,
    with_shapes,
)
from art_entropic.backends.tensorflow.devices import check_first
from art_entropic.backends.tensorflow.network import named_weights
from art_entropic.ops import Array


def build_classifier(
    architecture: Architecture,
    *,
    input_shape: Shape,
    nb_classes: int,
    clip_values: tuple[float, float],
    learning_rate: float,
    seed: int,
    device: str | None = None,
) -> Any:
    """An ART TensorFlowV2Classifier (NHWC, Adam, cross-entropy); see `Framework`.

    Raises:
        ValueError: the device is not the one that TensorFlow computes on.
    """
    if device is not None:
        check_first(device)
    return TensorFlowV2Classifier(
        model=_network(architecture, input_shape, initial_weights(architecture, input_shape, seed)),
        # PyTorch's epsilon; ART turns one-hot labels into the indices that this loss wants.
        optimizer=keras.optimizers.Adam(learning_rate, epsilon=1e-8),
        loss_object=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        input_shape=input_shape,
        nb_classes=nb_classes,
        clip_values=clip_values,
        channels_first=False,
    )


def _network(architecture: Architecture, input_shape: Shape, weights: Sequence[Array]) -> Any:
    layers: list[Any] = []
    for index, (layer, shape) in enumerate(with_shapes(architecture, input_shape), start=1):
        match layer:
            case Conv():
                layers += _convolution(layer, shape, str(index))
            case Residual():
                layers.append(_residual(layer, shape, str(index)))
            case MaxPool():
                layers.append(_BY_RANK[len(shape)].max_pool(layer.size, name=f"pool{index}"))
            case GlobalAverage():
                layers.append(_BY_RANK[len(shape)].average(name=f"average{index}"))
            case Flatten():
                layers.append(keras.layers.Flatten(name=f"flatten{index}"))
            case Dense():
                name = "logits" if index == len(architecture) else f"dense{index}"
                layers.append(keras.layers.Dense(layer.units, activation=layer.activation, name=name))
            case OneHot():
                layers.append(_one_hot(layer, shape, str(index)))
            case Patches():
                layers += _convolution(layer.embedding, shape, str(index))
                tokens = shape_after(layer, shape)
                layers += [keras.layers.Reshape(tokens, name=f"tokens{index}"), _Positions(name=f"positions{index}")]
            case Encoder():
                layers.append(_encoder(layer, shape, str(index)))
            case TokenMean():
                layers.append(keras.layers.LayerNormalization(epsilon=NORM_EPSILON, name=f"norm{index}"))
                layers.append(keras.layers.GlobalAveragePooling1D(name=f"average{index}"))
    model = keras.Sequential([keras.Input(input_shape), *layers], name="network")
    model.set_weights(list(weights))
    return model


class _Layers(NamedTuple):
    """Keras has classes of their own for each number of axes."""

    convolution: Any
    padding: Any
    max_pool: Any
    average: Any


_L = keras.layers
_BY_RANK = {  # of what enters
    2: _Layers(_L.Conv1D, _L.ZeroPadding1D, _L.MaxPooling1D, _L.GlobalAveragePooling1D),
    3: _Layers(_L.Conv2D, _L.ZeroPadding2D, _L.MaxPooling2D, _L.GlobalAveragePooling2D),
}


def _convolution(layer: Conv, shape: Shape, name: str) -> list[Any]:
    same, kinds = all(_same_padding(layer, length) for length in shape[:-1]), _BY_RANK[len(shape)]
    layers = [kinds.padding(layer.padding, name=f"padding{name}")] if layer.padding and not same else []
    convolution = kinds.convolution(
        layer.filters,
        layer.kernel,
        layer.stride,
        padding="same" if same else "valid",
        activation=None if layer.batch_norm else layer.activation,
        name=f"conv{name}",
    )
    layers.append(convolution)
    if layer.batch_norm:
        layers.append(keras.layers.BatchNormalization(momentum=NORM_MOMENTUM, epsilon=NORM_EPSILON, name=f"norm{name}"))
        if layer.activation is not None:
            layers.append(keras.layers.Activation(layer.activation, name=f"activation{name}"))
    return layers


def _residual(layer: Residual, shape: Shape, name: str) -> Any:
    """A model of its own, since a Sequential has no branches."""
    (first, second), shortcut = layer.body, layer.shortcut(shape)
    x = keras.Input(shape)
    inner = _convolution(first, shape, f"{name}a") + _convolution(second, shape_after(first, shape), f"{name}b")
    outer = [] if shortcut is None else _convolution(shortcut, shape, f"{name}c")
    ends = [functools.reduce(lambda y, part: part(y), parts, x) for parts in (inner, outer)]
    added = keras.layers.Add(name=f"sum{name}")(ends)
    return keras.Model(x, keras.layers.Activation(layer.activation, name=f"activation{name}")(added), name=f"residual{name}")


def _one_hot(layer: OneHot, shape: Shape, name: str) -> Any:
    x = keras.Input(shape)
    codes = keras.ops.clip(2.0 * x[:, layer.first :] - 0.5, 0.0, 1.0)
    joined = keras.layers.Concatenate(name=f"features{name}")([x[:, : layer.first], codes])
    return keras.Model(x, joined, name=f"one_hot{name}")


class _Positions(keras.layers.Layer):  # type: ignore[misc]
    """Adds a learned vector to each token."""

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self.positions = self.add_weight(shape=input_shape[1:], name="positions")

    def call(self, x: Any) -> Any:
        return x + self.positions


def _encoder(layer: Encoder, shape: Shape, name: str) -> Any:
    x, width = keras.Input(shape), shape[-1]

    def norm(part: str) -> Any:
        return keras.layers.LayerNormalization(epsilon=NORM_EPSILON, name=f"norm{name}{part}")

    entering = norm("a")(x)
    attention = keras.layers.MultiHeadAttention(layer.heads, width // layer.heads, name=f"attention{name}")
    attended = keras.layers.Add(name=f"attended{name}")([x, attention(entering, entering)])
    hidden = keras.layers.Dense(layer.hidden, activation="gelu", name=f"hidden{name}")(norm("b")(attended))
    added = keras.layers.Dense(width, name=f"dense{name}")(hidden)
    return keras.Model(x, keras.layers.Add(name=f"sum{name}")([attended, added]), name=f"encoder{name}")


def _same_padding(layer: Conv, length: int) -> bool:
    """Whether TensorFlow's "same" pads this length as described: by the same amount on both sides."""
    covered = (-(-length // layer.stride) - 1) * layer.stride + layer.kernel
    return layer.padding > 0 and covered - length == 2 * layer.padding


def state_of(architecture: Architecture, input_shape: Shape, arrays: Sequence[Array]) -> dict[str, Array]:
    """See `Framework`."""
    network = _network(architecture, input_shape, initial_weights(architecture, input_shape, seed=0))
    names = named_weights(network)
    if len(arrays) != len(names):
        raise ValueError(f"`arrays` must hold the {len(names)} arrays of the network, got {len(arrays)}")
    return dict(zip(names, arrays, strict=True))
