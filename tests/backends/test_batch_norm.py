"""Batch norm in a step of `channel`: the points of the ball are standardised as the data beside them are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from art_entropic import Channel
from art_entropic.backends.architecture import NORM_EPSILON, Conv, Dense, Flatten
from art_entropic.backends.protocol import Batch, Controls
from art_entropic.backends.registry import FRAMEWORKS, backend_for, framework_module
from art_entropic.objective import EntropicObjective

ARCHITECTURE = (Conv(5, 3, padding=1, activation="silu", batch_norm=True), Flatten(), Dense(3, None))
CONTROLS = Controls(0.1, 0.5, 0.5)
RATE = 1e-3


@pytest.fixture
def classifier(framework: str) -> Any:
    built = framework_module(framework).build_classifier(
        ARCHITECTURE, input_shape=(6, 6, 2), nb_classes=3, clip_values=(0.0, 1.0), learning_rate=RATE, seed=0
    )
    if framework == "pytorch":
        import torch

        built._optimizer = torch.optim.SGD(built.model.parameters(), RATE)
    else:
        import keras

        built._optimizer = keras.optimizers.SGD(RATE)
    return built


def batch_of(framework: str, n: int = 16) -> Batch:
    rng = np.random.default_rng(3)
    x = 0.5 * rng.random((n, 6, 6, 2)).astype(np.float32)
    noise = rng.uniform(-1, 1, x.shape).astype(np.float32)
    y = np.eye(3, dtype=np.float32)[rng.integers(0, 3, n)]
    if FRAMEWORKS[framework].channels_first:
        x, noise = (np.ascontiguousarray(part.transpose(0, 3, 1, 2)) for part in (x, noise))
    return Batch(x, y, noise, rng.random(n).astype(np.float32))


def linearised(view: Any, batch: Batch, controls: Controls) -> dict[str, Any]:
    """Two numbers of all logits and of all gradients at points of the ball, and one of the logits at the data."""
    ops = view.ops
    logits, there, gradient = view.linearised(batch.x, batch.x + controls.eps * batch.ball_noise, lambda z: batch.y)
    flat, noise = ops.flatten(gradient), ops.flatten(batch.ball_noise)
    return {"loss": ops.mean(ops.sum(there * batch.y, axis=1)), "slope": ops.mean(ops.sum(flat * noise, axis=1)),
            "clean": ops.mean(ops.sum(logits * batch.y, axis=1))}  # fmt: skip


def expected(backend: Any, batch: Batch) -> dict[str, float]:
    """The same of a network in inference whose running statistics are those of the batch."""
    point = batch.x + np.float32(CONTROLS.eps) * batch.ball_noise
    slopes = (backend.input_gradient(point, batch.y) * batch.ball_noise).reshape(len(point), -1).sum(axis=1)
    there, here = ((backend.logits(x) * batch.y).sum(axis=1) for x in (point, batch.x))
    return {"loss": there.mean(), "slope": slopes.mean(), "clean": here.mean()}


def with_statistics_of(backend: Any, x: Any, channel_axis: int) -> None:
    """Running statistics become those of the batch; before, they stand at mean 0 and variance 1, with scale 1 and shift 0."""
    entering = np.moveaxis(next(iter(backend.activations(x).values())), channel_axis, -1).reshape(-1, 5).astype(np.float64)
    before = entering * np.sqrt(1 + NORM_EPSILON)
    statistics = {"mean": before.mean(axis=0), "var": before.var(axis=0)}
    state = backend.state()
    for kind, values in statistics.items():
        (name,) = (name for name in state if f"running_{kind}" in name or f"moving_{kind}" in name)
        state[name] = values.astype(np.float32)
    backend.load_state(state)


def test_a_point_is_standardised_by_the_batch_beside_it(framework: str, classifier: Any) -> None:
    backend, batch = backend_for(classifier), batch_of(framework)
    told = backend.dry_step(linearised, batch, CONTROLS)
    running = expected(backend, batch)
    with_statistics_of(backend, batch.x, 1 if FRAMEWORKS[framework].channels_first else -1)
    wanted = expected(backend, batch)
    for name, value in wanted.items():
        np.testing.assert_allclose(told[name], value, rtol=2e-4, err_msg=name)
        assert abs(running[name] - value) > 0.02 * abs(value), "else the test would not tell"
    np.testing.assert_allclose(backend.measuring_step(linearised)(batch, CONTROLS)["slope"], wanted["slope"], rtol=2e-4)


def test_a_step_does_not_change_the_scale_of_weights_that_batch_norm_takes_away(framework: str, classifier: Any) -> None:
    """Loss and information are those of a network that the scale of its kernel does not change: no gradient lies along it."""
    backend, batch = backend_for(classifier), batch_of(framework)
    before = backend.state()
    backend.training_step(EntropicObjective(Channel(read_share=1.0)))(batch, CONTROLS)
    kernel = next(iter(before))
    step = (backend.state()[kernel] - before[kernel]).astype(np.float64) / RATE
    length = np.linalg.norm(step)
    assert length > 0.01
    assert abs(np.sum(step * before[kernel])) < 5e-3 * length * np.linalg.norm(before[kernel])


def test_batch_norm_that_was_frozen_keeps_its_statistics(framework: str, classifier: Any) -> None:
    backend, batch = backend_for(classifier), batch_of(framework)
    if framework == "pytorch":
        from torch import nn

        for module in classifier.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.train = lambda mode=True, module=module: module  # type: ignore[method-assign]
                module.training = False
    else:
        import keras

        for layer in classifier.model.layers:
            layer.trainable = not isinstance(layer, keras.layers.BatchNormalization)
    told, wanted = backend.dry_step(linearised, batch, CONTROLS), expected(backend, batch)
    for name, value in wanted.items():
        np.testing.assert_allclose(told[name], value, rtol=2e-4, err_msg=name)


def test_a_torch_norm_used_twice_and_one_without_weights_have_statistics_of_their_own() -> None:
    import torch
    from art.estimators.classification import PyTorchClassifier
    from torch import nn

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.norm = nn.Linear(6, 6), nn.BatchNorm1d(6)
            self.first, self.second, self.last = (
                nn.BatchNorm1d(6, affine=False),
                nn.BatchNorm1d(6, affine=False),
                nn.Linear(6, 3),
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.first(torch.tanh(self.norm(self.inner(x))))
            return self.last(self.second(torch.sigmoid(self.norm(3.0 * h + 1.0)) ** 2))

    torch.manual_seed(0)
    model = Twice()
    optimizer = torch.optim.SGD(model.parameters(), RATE)
    classifier = PyTorchClassifier(model, nn.CrossEntropyLoss(), (6,), 3, optimizer, clip_values=(0.0, 1.0))
    rng = np.random.default_rng(0)
    x, noise = rng.random((16, 6)).astype(np.float32), rng.uniform(-1, 1, (16, 6)).astype(np.float32)
    batch = Batch(x, np.eye(3, dtype=np.float32)[rng.integers(0, 3, 16)], noise, None)
    told = backend_for(classifier).dry_step(linearised, batch, CONTROLS)

    fixed: list[tuple[torch.Tensor, torch.Tensor]] = []

    def standardised(h: torch.Tensor, norm: nn.BatchNorm1d, use: int) -> torch.Tensor:
        if len(fixed) <= use:
            fixed.append((h.mean(0), h.var(0, correction=0)))
        mean, variance = fixed[use]
        h = (h - mean) / (variance + norm.eps).sqrt()
        return h if norm.weight is None else h * norm.weight + norm.bias

    def by_hand(x: torch.Tensor) -> torch.Tensor:
        h = standardised(torch.tanh(standardised(model.inner(x), model.norm, 0)), model.first, 1)
        h = torch.sigmoid(standardised(3.0 * h + 1.0, model.norm, 2)) ** 2
        return model.last(standardised(h, model.second, 3))

    y = torch.from_numpy(batch.y)
    clean = (by_hand(torch.from_numpy(x)) * y).sum(1).mean()
    point = torch.from_numpy(x + np.float32(CONTROLS.eps) * noise).requires_grad_(True)
    score = (by_hand(point) * y).sum(1)
    (gradient,) = torch.autograd.grad(score.sum(), point)
    wanted = {"clean": clean, "loss": score.mean(), "slope": (gradient * torch.from_numpy(noise)).sum(1).mean()}
    for name, value in wanted.items():
        np.testing.assert_allclose(told[name], value.item(), rtol=1e-4, err_msg=name)


def test_batch_norm_in_code_of_a_keras_layer_is_told() -> None:
    import keras
    from art.estimators.classification import TensorFlowV2Classifier

    class Block(keras.layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.dense, self.norm = keras.layers.Dense(6), keras.layers.BatchNormalization(name="hidden_norm")

        def call(self, x: Any, training: bool = False) -> Any:
            return self.norm(self.dense(x), training=training)

    model = keras.Sequential([keras.Input((6,)), Block(), keras.layers.Dense(3)])
    classifier = TensorFlowV2Classifier(
        model, nb_classes=3, input_shape=(6,), clip_values=(0.0, 1.0),
        loss_object=keras.losses.CategoricalCrossentropy(from_logits=True), optimizer=keras.optimizers.SGD(RATE),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    batch = Batch(rng.random((8, 6), np.float32), np.eye(3, dtype=np.float32)[rng.integers(0, 3, 8)],
                  rng.uniform(-1, 1, (8, 6)).astype(np.float32), None)  # fmt: skip
    with pytest.warns(
        UserWarning, match=r"`classifier` has batch norm inside custom code that cannot be inspected \(hidden_norm\)"
    ):
        backend_for(classifier).dry_step(linearised, batch, CONTROLS)
