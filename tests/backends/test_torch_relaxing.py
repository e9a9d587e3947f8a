"""PyTorch: linear bounds of networks that a graph of values could get wrong."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from art.estimators.classification import PyTorchClassifier  # noqa: E402
from torch import nn  # noqa: E402

from art_entropic.certificates import certify  # noqa: E402

X = np.array([[0.9, 0.2], [0.2, 0.9]], np.float32)


def classifier(network: nn.Module) -> PyTorchClassifier:
    return PyTorchClassifier(network.eval(), nn.CrossEntropyLoss(), (2,), 2)


def layer(bias: float = 0.0) -> nn.Linear:
    """x + bias."""
    linear = nn.Linear(2, 2)
    with torch.no_grad():
        linear.weight.copy_(torch.eye(2))
        linear.bias.fill_(bias)
    return linear


@pytest.mark.parametrize("method", ["ibp", "crown"])
def test_a_margin_within_the_rounding_of_the_logits_certifies_nothing(method):
    # Of 1e5 float32 knows multiples of 1/128; the rounding that is allowed for, 1e-5 of two logits, is 2, the margin 0.7.
    assert certify(classifier(layer()), X, [0, 1], 0.01, method=method).all()
    assert not certify(classifier(layer(1e5)), X, [0, 1], 0.01, method=method).any()


@pytest.mark.parametrize("method", ["ibp", "crown"])
def test_weights_made_in_inference_mode_are_bounded_as_others(method):
    with torch.inference_mode():
        network = nn.Sequential(layer(), nn.ReLU(), layer())
    # The margin is 0.7 at the data, 0.7 - 2 eps at the worst point of the ball.
    assert certify(classifier(network), X, [0, 1], 0.34, method=method).all()
    assert not certify(classifier(network), X, [0, 1], 0.36, method=method).any()


@pytest.mark.parametrize("method", ["ibp", "crown"])
def test_the_callers_inference_mode_changes_no_certificate(method):
    def proved(eps):
        network = nn.Sequential(layer(), nn.GELU(), layer()).eval()
        scaled = PyTorchClassifier(network, nn.CrossEntropyLoss(), (2,), 2, preprocessing=(0.5, 2.0))
        return certify(scaled, X, [0, 1], eps, method=method).all()

    with torch.inference_mode():
        assert proved(0.1) and not proved(0.36)
