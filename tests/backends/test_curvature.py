"""Which operations bend, against second differences; and networks that multiply."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
import torch.nn.functional as F
from art.estimators.classification import KerasClassifier, PyTorchClassifier
from torch import nn

from art_entropic.backends.curvature import bends
from art_entropic.backends.registry import backend_for
from art_entropic.backends.tensorflow import rules as _keras_rules
from art_entropic.backends.torch import bounds as _torch_bounds
from art_entropic.backends.torch.tensor import name_of

GRID = np.linspace(0.05, 3.0, 400)  # where all of them are defined, and those with a bend at 0 have none
STEP = GRID[1] - GRID[0]
ARGUMENTS = {
    "prelu": (torch.tensor([0.25], dtype=torch.float64),),
    "threshold": (0.5, 0.0),
    "pow": (3.0,),
    "rrelu": (0.1, 0.3, False),
}


def is_curved(f):
    """Whether second differences of f are not 0 along a stretch, on one side of 0 at least."""
    sides = [np.asarray(f(grid), np.float64) for grid in (GRID, -GRID)]
    return any(np.isfinite(values).all() and np.mean(np.abs(np.diff(values, 2)) / STEP**2 > 1e-4) > 0.2 for values in sides)


PYTORCH = {}
for function in _torch_bounds.NONLINEARITIES - set(_torch_bounds.IN_PLACE):
    PYTORCH.setdefault(name_of(function), []).append(function)


@pytest.mark.parametrize("name", sorted(PYTORCH.keys() - {"glu"}))  # which takes two tensors in one
def test_pytorch_functions_bend_where_their_second_differences_do(name):
    for function in PYTORCH[name]:
        f = lambda grid, f=function: f(torch.as_tensor(grid.copy()), *ARGUMENTS.get(name, ())).numpy()  # noqa: E731
        assert bends(name, 1) == is_curved(f)


KERAS = {
    name: next(getattr(module, name) for module in _keras_rules.MODULES if name in dir(module))
    for name in _keras_rules.FUNCTIONS
}


@pytest.mark.parametrize("name", KERAS)
def test_keras_activations_bend_where_their_second_differences_do(name):
    function = KERAS[name]
    assert bends(function.__name__, 1) == is_curved(lambda grid: np.asarray(function(tf.constant(grid, tf.float64))))


def test_every_name_that_bends_is_one_that_has_a_rule():
    from art_entropic.backends.curvature import _CURVED, _PRODUCTS

    torch_names = {name_of(function) for function in _torch_bounds.RULES}
    keras_names = {*_keras_rules.LAYERS, *_keras_rules.OPERATIONS, *(f.__name__ for f in KERAS.values())}
    assert {name.replace("_", "").lower() for name in torch_names | keras_names} >= (_CURVED - {"swish"}) | _PRODUCTS


class Torch(nn.Module):
    def __init__(self, between):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.between = nn.Linear(6, 8), nn.Linear(8, 3), between

    def forward(self, x):
        return self.b(self.between(self.a(x)))


BETWEEN_TORCH = {
    "relu": (F.relu, None),
    "batch norm": (nn.BatchNorm1d(8), None),
    "absolute": (lambda h: h.abs(), None),
    "scaled": (lambda h: 2.0 * h / 3.0, None),
    "softplus": (F.softplus, "softplus"),
    "a divisor": (lambda h: torch.ones(8) / (1 + h.abs()), "div"),
    "an affine map": (lambda h: torch.addmm(h, h, torch.eye(8)), None),
    "a scaled sum": (lambda h: torch.addcmul(h, h.relu(), torch.ones(8)), None),
    "gate": (lambda h: h * F.hardsigmoid(h), "mul"),
    "gate of a product": (lambda h: torch.addcmul(h, h.relu(), h), "addcmul"),
    "layer norm": (nn.LayerNorm(8), "layer_norm"),
    "in place": (lambda h: h.mul_(h.relu()), "mul"),
    "square": (lambda h: h**2, "pow"),
}


@pytest.mark.parametrize("name", BETWEEN_TORCH)
def test_the_first_operation_of_a_pytorch_network_that_bends_is_named(name):
    between, curved = BETWEEN_TORCH[name]
    model = Torch(between).train()
    classifier = PyTorchClassifier(model, nn.CrossEntropyLoss(), (6,), 3, clip_values=(0.0, 1.0), device_type="cpu")
    assert backend_for(classifier).curved_operation(np.full((1, 6), 0.5, np.float32)) == curved
    assert model.training


BETWEEN_KERAS = {
    "relu": (lambda h: keras.layers.ReLU()(h), None),
    "an argument": (lambda h: keras.layers.Dense(8, activation="leaky_relu")(h), None),
    "batch norm": (lambda h: keras.layers.BatchNormalization()(h), None),
    "scaled": (lambda h: 2.0 * h / 3.0, None),
    "silu": (lambda h: keras.layers.Dense(8, activation="silu")(h), "silu"),
    "a layer": (lambda h: keras.layers.ELU()(h), "ELU"),
    "gate": (lambda h: keras.layers.Multiply()([h, keras.layers.ReLU()(h)]), "Multiply"),
    "an operator": (lambda h: h * keras.ops.relu(h), "Multiply"),
    "layer norm": (lambda h: keras.layers.LayerNormalization()(h), "LayerNormalization"),
    "nested": (lambda h: keras.Sequential([keras.layers.Dense(8, activation="tanh")])(h), "tanh"),
}


@pytest.mark.parametrize("name", BETWEEN_KERAS)
def test_the_first_operation_of_a_keras_network_that_bends_is_named(name):
    between, curved = BETWEEN_KERAS[name]
    inputs = keras.Input((6,))
    model = keras.Model(inputs, keras.layers.Dense(3)(between(keras.layers.Dense(8)(inputs))))
    model.compile("adam", keras.losses.CategoricalCrossentropy(from_logits=True))
    classifier = KerasClassifier(model, clip_values=(0.0, 1.0), use_logits=True)
    assert backend_for(classifier).curved_operation(np.full((1, 6), 0.5, np.float32)) == curved
