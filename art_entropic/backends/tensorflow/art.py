"""TensorFlow: a second ART estimator around a user's own Keras model for ART's adversarial trainers.

Its gradient and its training step are compiled once: ART's own run eagerly or are traced anew with every batch. A
KerasClassifier gets a TensorFlowV2Classifier, which more of ART accepts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from art.estimators.classification import TensorFlowV2Classifier


def cross_entropy(z: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """-log softmax(z)_y of one-hot y, (n,)."""
    return tf.nn.softmax_cross_entropy_with_logits(labels=y, logits=z)


class _Trainee(TensorFlowV2Classifier):  # type: ignore[misc]
    """A TensorFlowV2Classifier with cross-entropy, whose three uses by an attack are compiled for any batch size."""

    remarks = ("gradient and training step are compiled once: ART's own trace the step anew with every batch",)

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        inputs = tf.TensorSpec((None, *self.input_shape), tf.float32)
        labels = tf.TensorSpec((None, self.nb_classes), tf.float32)

        def logits(x: tf.Tensor) -> tf.Tensor:
            prepared, _ = self._apply_preprocessing(x, y=None, fit=False)
            return self.model(prepared, training=False)

        @tf.function(input_signature=[inputs])
        def forward(x: tf.Tensor) -> tf.Tensor:
            return logits(x)

        @tf.function(input_signature=[inputs, labels])
        def losses(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
            return cross_entropy(logits(x), y)

        @tf.function(input_signature=[inputs, labels])
        def gradient(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(x)
                # The sum and not the mean: the gradient at one example must not shrink with the size of the batch.
                loss = tf.reduce_sum(cross_entropy(logits(x), y))
            return tape.gradient(loss, x)

        self._forward, self._losses, self._gradient = forward, losses, gradient

    def predict(self, x: Any, batch_size: int = 128, training_mode: bool = False, **_: Any) -> np.ndarray:
        chunks = (x[start : start + batch_size] for start in range(0, len(x), batch_size))
        return np.concatenate([self._forward(_tensor(chunk)).numpy() for chunk in chunks])

    def compute_loss(self, x: Any, y: Any, reduction: str = "none", training_mode: bool = False, **_: Any) -> np.ndarray:
        values: np.ndarray = self._losses(_tensor(x), _tensor(y)).numpy()
        if reduction == "none":
            return values
        return np.asarray(values.sum() if reduction == "sum" else values.mean())

    def loss_gradient(self, x: Any, y: Any, training_mode: bool = False, **_: Any) -> Any:
        gradient = self._gradient(_tensor(x), _tensor(y))
        return gradient.numpy() if isinstance(x, np.ndarray) else gradient


def _tensor(value: Any) -> tf.Tensor:
    return tf.cast(value, tf.float32)


@contextlib.contextmanager
def before_each_step(twin: Any, act: Callable[[], None]) -> Iterator[None]:
    """Call `act` before each training step of an estimator of `for_art_trainers`, whichever trainer takes it."""
    step = twin._train_step

    def acting(*arguments: Any) -> None:
        act()
        step(*arguments)

    twin._train_step = acting
    try:
        yield
    finally:
        twin._train_step = step


def for_art_trainers(estimator: Any) -> Any:
    """A second ART estimator that shares model and optimizer, with cross-entropy on logits and a training step traced once.

    Its `remarks` say what differs from ART's own way in a manner that a comparison should mention.

    Raises:
        ValueError: the estimator has a preprocessing defence that is not differentiable.
    """
    model = estimator.model
    optimizer = getattr(estimator, "optimizer", None) or model.optimizer
    if not optimizer.built:
        optimizer.build(model.trainable_variables)

    @tf.function(reduce_retracing=True)
    def train_step(model: Any, images: tf.Tensor, labels: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(cross_entropy(model(images, training=True), tf.cast(labels, tf.float32)))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))

    standardisation = estimator.preprocessing
    if standardisation is not None:
        # As numbers, so that ART builds the differentiable form also for a KerasClassifier.
        standardisation = (standardisation.mean, standardisation.std)
    twin = _Trainee(
        model=model,
        nb_classes=estimator.nb_classes,
        input_shape=estimator.input_shape,
        channels_first=estimator.channels_first,
        clip_values=estimator.clip_values,
        preprocessing_defences=estimator.preprocessing_defences,
        preprocessing=standardisation,
        optimizer=optimizer,
        train_step=train_step,
    )
    if not twin.all_framework_preprocessing:
        names = ", ".join(type(operation).__name__ for operation in twin.preprocessing_operations)
        raise ValueError(f"`classifier` must have preprocessing that TensorFlow can differentiate, got {names}")
    return twin
