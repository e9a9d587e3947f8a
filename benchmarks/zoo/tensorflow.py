"""Keras networks as users get them: keras.applications, attention, an LSTM, and a subclassed model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import keras
import tensorflow as tf

from .network import CLASSES, SEED, Change, Network

IMAGE = (32, 32, 3)
SEQUENCE = (8, 6)  # steps, features of each


def estimator(make: Callable[[], keras.Model], shape: tuple[int, ...], top: float, kind: str, change: Change) -> Any:
    """An ART classifier over a model, raw inputs in [0, top]."""
    from art.estimators import classification

    keras.utils.set_random_seed(SEED)
    model = change(make())
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = keras.optimizers.Adam(1e-3)
    if kind == "KerasClassifier":
        model.compile(optimizer, loss)
        return classification.KerasClassifier(model, use_logits=True, clip_values=(0.0, top))
    return classification.TensorFlowV2Classifier(
        model,
        loss_object=loss,
        optimizer=optimizer,
        input_shape=shape,
        nb_classes=CLASSES,
        clip_values=(0.0, top),
        channels_first=False,
    )


def of_keras(name: str) -> keras.Model:
    build = getattr(keras.applications, name)
    return build(weights=None, input_shape=IMAGE, classes=CLASSES, classifier_activation=None)


def attention() -> keras.Model:
    x = inputs = keras.Input(SEQUENCE)
    x = keras.layers.Dense(16)(x)
    x = keras.layers.LayerNormalization()(x + keras.layers.MultiHeadAttention(num_heads=2, key_dim=8, name="attention")(x, x))
    x = keras.layers.Dense(16, activation="gelu")(x)
    return keras.Model(inputs, keras.layers.Dense(CLASSES)(keras.layers.GlobalAveragePooling1D()(x)))


def recurrent() -> keras.Model:
    return keras.Sequential([keras.Input(SEQUENCE), keras.layers.LSTM(16, name="lstm"), keras.layers.Dense(CLASSES)])


class Subclassed(keras.Model):
    """Decides in Python what it does, as the guides to subclassing have it."""

    def __init__(self) -> None:
        super().__init__(name="subclassed")
        self.conv = keras.layers.Conv2D(8, 3, strides=2, padding="same")
        self.norm = keras.layers.BatchNormalization()
        self.pool = keras.layers.GlobalAveragePooling2D()
        self.drop = keras.layers.Dropout(0.1)
        self.head = keras.layers.Dense(CLASSES)

    def call(self, x: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        x = tf.nn.relu(self.norm(self.conv(x), training=training))
        return self.head(self.drop(self.pool(x), training=training))


def subclassed() -> keras.Model:
    model = Subclassed()
    model(tf.zeros((1, *IMAGE)))  # which builds it
    return model


def row(
    title: str,
    make: Callable[[], keras.Model],
    shape: tuple[int, ...] = IMAGE,
    top: float = 1.0,
    kind: str = "TensorFlowV2Classifier",
    **about: Any,
) -> Network:
    return Network(title, "tensorflow", partial(estimator, make, shape, top, kind), **about)


NETWORKS = {
    "keras_mobilenet_v2": row("Keras MobileNetV2", partial(of_keras, "MobileNetV2")),
    "keras_resnet50_v2": row("Keras ResNet50V2", partial(of_keras, "ResNet50V2"), overflows=True),
    "keras_efficientnet_b0": row(
        "Keras EfficientNetB0, pixels to 255", partial(of_keras, "EfficientNetB0"), top=255.0, overflows=True
    ),
    "keras_attention": row("Keras MultiHeadAttention", attention, SEQUENCE, without_rule="MultiHeadAttention", in_sample=True),
    "keras_lstm": row("Keras LSTM", recurrent, SEQUENCE, kind="KerasClassifier", without_rule="LSTM", in_sample=True),
    "keras_subclassed": row("subclassed Keras model", subclassed, without_rule="Subclassed", in_sample=True),
}
