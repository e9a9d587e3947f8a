"""TensorFlow: linear bounds of networks that a tape of values could get wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")

from art.estimators.classification import TensorFlowV2Classifier  # noqa: E402

from art_entropic.backends.registry import backend_for  # noqa: E402
from art_entropic.certificates import certify  # noqa: E402

L = keras.layers
X = np.array([[0.9, 0.2], [0.2, 0.9]], np.float32)


def classifier(network, *shape):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return TensorFlowV2Classifier(network, 2, shape or (2,), loss_object=loss)


def plain(bias: float = 0.0):
    """x + bias."""
    return L.Dense(2, kernel_initializer="identity", bias_initializer=keras.initializers.Constant(bias))


@pytest.mark.parametrize("method", ["ibp", "crown"])
def test_a_margin_within_the_rounding_of_the_logits_certifies_nothing(method):
    # Of 1e5 float32 knows multiples of 1/128; the rounding that is allowed for, 1e-5 of two logits, is 2, the margin 0.7.
    for bias, proved in ((0.0, 2), (1e5, 0)):
        network = keras.Sequential([keras.Input((2,)), plain(bias)])
        assert certify(classifier(network), X, [0, 1], 0.01, method=method).sum() == proved


@pytest.mark.parametrize("method", ["ibp", "crown-ibp", "crown"])
def test_a_product_of_three_tensors_is_bounded(method):
    inputs = keras.Input((2,))
    network = keras.Model(inputs, L.Multiply()([plain()(inputs), plain()(inputs), plain()(inputs)]))
    # x**3: at the worst point of the ball 0.6**3 against 0.5**3, or 0.54**3 against 0.56**3.
    assert certify(classifier(network), X, [0, 1], 0.3, method=method).all()
    assert not certify(classifier(network), X, [0, 1], 0.36, method=method).any()


@pytest.mark.parametrize("width", [4, 8])
def test_work_counts_layers_that_carry_their_activation(width):
    def work(*layers):
        keras.utils.set_random_seed(0)
        network = keras.Sequential([keras.Input((2,)), *layers])
        return backend_for(classifier(network)).relaxed(X, 0.5, math.inf, "lines").work

    apart = [L.Dense(width), L.Activation("tanh"), L.Dense(width), L.Activation("tanh"), L.Dense(2)]
    within = [L.Dense(width, "tanh"), L.Dense(width, "tanh"), L.Dense(2)]
    wide = work(*within) / (4.0 * (2 * width + width * width))
    # Each unit that is wide takes two passes forward and back through 2 w + w**2 weights, and some for the activations.
    assert (wide >= 1.0).all() and (work(*within) <= work(*apart) * 1.01).all()
