"""Linear bounds of a training step, for every framework: those of the certificates, differentiable, sound."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from art_entropic.backends.architecture import Conv, Dense, Flatten, MaxPool
from art_entropic.backends.protocol import Backend, Batch, Controls
from art_entropic.backends.registry import FRAMEWORKS, backend_for, framework_module
from art_entropic.information import least_over_ball
from art_entropic.linear_bounds import Ball
from art_entropic.measures import Linear
from art_entropic.objective import EntropicObjective

N, CLASSES, SIDE, EPS = 5, 3, 6, 0.1
NORMS = [np.inf, 2.0]


def convolutional(activation: Any, batch_norm: bool = False) -> tuple[Any, ...]:
    first = Conv(4, 3, activation=activation, batch_norm=batch_norm)
    return (first, MaxPool(2), Conv(6, 2, activation=activation), Flatten(), Dense(8, activation), Dense(CLASSES, None))


def plain(layers: tuple[Any, ...]) -> Callable[[str], Any]:
    return lambda framework: framework_module(framework).build_classifier(
        layers, input_shape=(SIDE, SIDE, 1), nb_classes=CLASSES, clip_values=(0.0, 1.0), learning_rate=1e-2, seed=0
    )


def residual(framework: str) -> Any:
    """relu(h + norm(conv(h))) behind relu(norm(conv(x))), on standardised inputs, with a gate of its own units at the end."""
    how = {"clip_values": (0.0, 1.0), "preprocessing": (0.3, 0.7)}
    if framework == "pytorch":
        import torch
        from art.estimators.classification import PyTorchClassifier
        from torch import nn

        class Residual(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.one, self.two = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
                self.three, self.four, self.last = nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.Linear(4, CLASSES)

            def forward(self, x: Any) -> Any:
                h = self.three(self.one(x)).relu()
                h = (h + self.four(self.two(h))).relu().mean((2, 3))
                return self.last(h * h.sigmoid())

        torch.manual_seed(0)
        model = Residual()
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        return PyTorchClassifier(model, nn.CrossEntropyLoss(), (1, SIDE, SIDE), CLASSES, optimizer, **how)
    import keras
    from art.estimators.classification import TensorFlowV2Classifier
    from keras import layers as L

    keras.utils.set_random_seed(0)
    x = keras.Input((SIDE, SIDE, 1))
    h = L.ReLU()(L.BatchNormalization()(L.Conv2D(4, 3, padding="same")(x)))
    h = L.ReLU()(L.Add()([h, L.BatchNormalization()(L.Conv2D(4, 3, padding="same")(h))]))
    h = L.GlobalAveragePooling2D()(h)
    model = keras.Model(x, L.Dense(CLASSES)(L.Multiply()([h, L.Activation("sigmoid")(h)])))
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    return TensorFlowV2Classifier(model, CLASSES, (SIDE, SIDE, 1), loss_object=loss, optimizer=keras.optimizers.SGD(1.0), **how)


MODELS = {
    "relu": plain(convolutional("relu")),
    "silu": plain(convolutional("silu")),
    "batch norm": plain(convolutional("relu", batch_norm=True)),
    "residual": residual,
}


def made(model: str, framework: str) -> Backend:
    """Running statistics and all that starts at 0 or 1 become numbers of their own."""
    backend, rng = backend_for(MODELS[model](framework)), np.random.default_rng(1)
    state = {
        name: array * rng.uniform(0.5, 1.5, array.shape) + (0.1 if array.ndim == 1 else 0.0) if array.ndim else array
        for name, array in backend.state().items()
    }
    backend.load_state({name: np.asarray(array, np.float32) if array.ndim else array for name, array in state.items()})
    sgd(backend)
    return backend


def sgd(backend: Backend) -> None:
    """Descent whose step is the gradient."""
    if backend.framework == "pytorch":
        import torch

        backend.estimator._optimizer = torch.optim.SGD(backend.estimator.model.parameters(), lr=1.0)
    else:
        import keras

        backend.estimator._optimizer = keras.optimizers.SGD(1.0)


def images(framework: str) -> np.ndarray:
    x = np.random.default_rng(0).random((N, SIDE, SIDE, 1), np.float32)
    x[:, :2] = 0.0  # where clip_values cut the ball
    return x.transpose(0, 3, 1, 2).copy() if FRAMEWORKS[framework].channels_first else x


Y = np.eye(CLASSES, dtype=np.float32)[[0, 1, 2, 0, 1]]
DIRECTION = Y - np.eye(CLASSES, dtype=np.float32)[[1, 2, 0, 2, 0]]


def bounds(norm: float) -> Callable[[Any, Batch, Controls], dict[str, Any]]:
    def objective(view: Any, batch: Batch, controls: Controls) -> dict[str, Any]:
        ops, (_, bound) = view.ops, view.relaxed(batch.x, controls.eps, norm)
        box, radius = view.ball(batch.x, controls.eps), None if norm == np.inf else controls.eps
        margin = least_over_ball(ops, *bound(batch.y), batch.x, box, radius)
        return {"loss": ops.sum(margin), **{str(row): margin[row] for row in range(N)}}

    return objective


CONTROLS = Controls(EPS, 0.0, 0.0)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("model", MODELS)
def test_bounds_of_a_step_are_those_of_the_certificates_and_hold_on_the_ball(model: str, norm: float, framework: str) -> None:
    backend, x, rng = made(model, framework), images(framework), np.random.default_rng(3)
    values = backend.measuring_step(bounds(norm))(Batch(x, DIRECTION), CONTROLS)
    plane, ball = backend.relaxed(x, EPS, norm, "lines").below(DIRECTION), Ball.around(x, EPS, norm, (0.0, 1.0))
    # Without what its `least` takes off for rounding.
    bound = plane.value - plane.gap + ball.least(plane.gradient)
    np.testing.assert_allclose([values[str(row)] for row in range(N)], bound, rtol=1e-4, atol=1e-4)
    for _ in range(20):
        shift = ball.farthest(rng.normal(size=(N, x[0].size)))
        margins = (backend.logits((x + shift.reshape(x.shape)).astype(np.float32)) * DIRECTION).sum(axis=1)
        assert (margins >= bound - 1e-4).all()


# Of curves the lines jump where another slope becomes the best one.
@pytest.mark.parametrize(("model", "norm"), [("relu", 2.0), ("batch norm", np.inf)])
def test_a_step_goes_down_the_gradient_of_the_bounds(model: str, norm: float, framework: str) -> None:
    """In training mode, with the statistics of the batch, along a random direction of all weights, by central differences."""
    backend, batch = made(model, framework), Batch(images(framework), DIRECTION)
    before, objective = backend.state(), bounds(norm)
    with backend.training(0):
        backend.training_step(objective)(batch, CONTROLS)
    moved = {name: before[name] - array for name, array in backend.state().items()}
    rng = np.random.default_rng(2)
    trained = [name for name, change in moved.items() if change.ndim and not _is_statistic(name)]
    step = {name: rng.normal(size=moved[name].shape).astype(np.float32) for name in trained}

    def along(t: float) -> float:
        backend.load_state({name: a + t * step[name] if name in step else a for name, a in before.items()})
        return backend.dry_step(objective, batch, CONTROLS)["loss"]

    slope = sum(float(np.sum(moved[name] * part)) for name, part in step.items())
    np.testing.assert_allclose(slope, (along(1e-4) - along(-1e-4)) / 2e-4, rtol=1e-2, atol=5e-2)


def _is_statistic(name: str) -> bool:
    return any(word in name for word in ("running", "moving", "seed", "num_batches"))


def test_steps_with_statistics_of_the_batch_agree_between_the_frameworks() -> None:
    terms = []
    for framework in FRAMEWORKS:
        backend = backend_for(MODELS["batch norm"](framework))
        batch = Batch(images(framework), Y, class_noise=np.linspace(0.1, 0.9, N, dtype=np.float32))
        step = backend.training_step(EntropicObjective(Linear(read_share=1.0)))
        with backend.training(0):
            rows = [step(batch, Controls(EPS, 0.5, 0.3)) for _ in range(3)]
        terms.append([[row[name] for name in sorted(row)] for row in rows])
    np.testing.assert_allclose(*terms, rtol=2e-3, atol=1e-5)
