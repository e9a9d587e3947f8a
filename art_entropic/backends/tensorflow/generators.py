"""TensorFlow: what is random for a model, and how the model and its generators leave as they came."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from keras.src.random.seed_generator import global_seed_generator  # the public API can neither read nor set it
from tensorflow.python.eager import context as eager  # the public API can set the global seed, but not read it

from art_entropic.backends.tensorflow.precision import full_float32


def generators(model: Any) -> list[Any]:
    """States of everything random that Keras runs for the model: one per random layer, and the one they share."""
    known = {id(variable) for variable in (*model.weights, *model.metrics_variables)}
    return [v for v in model.variables if id(v) not in known] + [global_seed_generator().state]


@contextlib.contextmanager
def kept_generators(model: Any) -> Iterator[None]:
    """Everything random that Keras runs for the model is afterwards where it was."""
    own = generators(model)
    before = [generator.numpy() for generator in own]
    try:
        yield
    finally:
        for generator, state in zip(own, before, strict=True):
            generator.assign(state)


@contextlib.contextmanager
def unchanged(model: Any, seed: int) -> Iterator[None]:
    """Inside everything random starts from a seed. On leaving, weights, statistics and generators are as they were."""
    before = [weight.numpy() for weight in model.weights]
    with seeded(model, seed):
        try:
            yield
        finally:
            for weight, value in zip(model.weights, before, strict=True):
                weight.assign(value)


@contextlib.contextmanager
def seeded(model: Any, seed: int) -> Iterator[None]:
    """Everything random of TensorFlow, of Keras and of the model's layers starts from a seed inside; as before after."""
    rng = np.random.default_rng(seed)
    with _global_seed(seed), kept_generators(model):
        for generator in generators(model):
            generator.assign(rng.integers(0, 2**31, size=2).astype(generator.dtype))
        yield


@contextlib.contextmanager
def _global_seed(seed: int) -> Iterator[None]:
    """TensorFlow's own seed inside; as before after."""
    context = eager.context()
    before, generator = context._seed, vars(context).get("_rng")
    tf.random.set_seed(seed)
    try:
        yield
    finally:
        tf.random.set_seed(before)
        if generator is not None:
            context._rng = generator


@contextlib.contextmanager
def untouched(estimator: Any, seed: int) -> Iterator[None]:
    """The model leaves as it came, and so do the generators of TensorFlow and Keras, which are seeded inside.

    A call in inference mode changes no other state of a Keras model. A layer that draws by ``tf.random`` itself keeps its own
    count inside compiled functions, which nobody can set. Inside, float32 is computed in full.
    """
    with full_float32, seeded(estimator.model, seed):
        yield
