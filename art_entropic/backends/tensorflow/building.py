"""TensorFlow: networks described as data, as Keras models and ART estimators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from art.estimators.classification import TensorFlowV2Classifier

from art_entropic.backends.architecture import (
    NORM_EPSILON,
    NORM_MOMENTUM,
    Architecture,
    Conv,
    Dense,
    Flatten,
    MaxPool,
    initial_weights,
)
from art_entropic.backends.tensorflow.devices import check_first
from art_entropic.backends.tensorflow.network import named_weights
from art_entropic.ops import Array


def build_classifier(
    architecture: Architecture,
    *,
    input_shape: tuple[int, int, int],
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


def _network(architecture: Architecture, input_shape: tuple[int, int, int], weights: list[tuple[Array, Array]]) -> Any:
    layers: list[Any] = []
    height, width, _ = input_shape
    for index, layer in enumerate(architecture, start=1):
        match layer:
            case Conv():
                same = all(_same_padding(layer, length) for length in (height, width))
                if layer.padding and not same:
                    layers.append(keras.layers.ZeroPadding2D(layer.padding, name=f"padding{index}"))
                layers.append(
                    keras.layers.Conv2D(
                        layer.filters,
                        layer.kernel,
                        layer.stride,
                        padding="same" if same else "valid",
                        activation=None if layer.batch_norm else layer.activation,
                        name=f"conv{index}",
                    )
                )
                if layer.batch_norm:
                    norm = keras.layers.BatchNormalization(momentum=NORM_MOMENTUM, epsilon=NORM_EPSILON, name=f"norm{index}")
                    layers += [norm, keras.layers.Activation(layer.activation, name=f"activation{index}")]
                height = (height + 2 * layer.padding - layer.kernel) // layer.stride + 1
                width = (width + 2 * layer.padding - layer.kernel) // layer.stride + 1
            case MaxPool():
                layers.append(keras.layers.MaxPooling2D(layer.size, name=f"pool{index}"))
                height, width = height // layer.size, width // layer.size
            case Flatten():
                layers.append(keras.layers.Flatten(name=f"flatten{index}"))
            case Dense():
                name = "logits" if index == len(architecture) else f"dense{index}"
                layers.append(keras.layers.Dense(layer.units, activation=layer.activation, name=name))
    model = keras.Sequential([keras.Input(input_shape), *layers], name="network")
    weighted = [layer for layer in model.layers if isinstance(layer, (keras.layers.Conv2D, keras.layers.Dense))]
    for layer, arrays in zip(weighted, weights, strict=True):
        layer.set_weights(list(arrays))
    return model


def _same_padding(layer: Conv, length: int) -> bool:
    """Whether TensorFlow's "same" pads this length as described: by the same amount on both sides."""
    covered = (-(-length // layer.stride) - 1) * layer.stride + layer.kernel
    return layer.padding > 0 and covered - length == 2 * layer.padding


def state_of(architecture: Architecture, input_shape: tuple[int, int, int], arrays: Sequence[Array]) -> dict[str, Array]:
    """See `Framework`."""
    network = _network(architecture, input_shape, initial_weights(architecture, input_shape, seed=0))
    names = named_weights(network)
    if len(arrays) != len(names):
        raise ValueError(f"`arrays` must be the {len(names)} of the network, got {len(arrays)}")
    return dict(zip(names, arrays, strict=True))
