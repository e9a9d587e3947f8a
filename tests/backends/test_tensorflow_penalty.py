"""What a Keras model adds to its loss counts once in every training step, whichever way the step goes through its layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")

from art.estimators.classification import TensorFlowV2Classifier  # noqa: E402

from art_entropic.backends.protocol import Batch, Controls  # noqa: E402
from art_entropic.backends.registry import backend_for  # noqa: E402
from art_entropic.measures import MEASURES, Channel, Interval  # noqa: E402
from art_entropic.objective import EntropicObjective  # noqa: E402

L = keras.layers
SHAPE, CLASSES = (6,), 3
CONTROLS = Controls(0.05, 0.5, 0.1)
INTERVAL, CHANNEL = EntropicObjective(Interval(read_share=1.0)), EntropicObjective(Channel(read_share=1.0))


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    keras.utils.set_random_seed(0)
    yield


def network(*layers: Any, **last: Any) -> Any:
    return keras.Sequential([keras.Input(SHAPE), *layers, L.Dense(CLASSES, name="last", **last)])


def backend_of(model: Any, rate: float = 0.0) -> Any:
    settings = {"nb_classes": CLASSES, "input_shape": SHAPE, "clip_values": (0.0, 1.0)}
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    return backend_for(TensorFlowV2Classifier(model=model, loss_object=loss, optimizer=keras.optimizers.SGD(rate), **settings))


def batch_of(n: int) -> Batch:
    rng = np.random.default_rng(n)
    x = rng.uniform(0, 1, (n, *SHAPE)).astype(np.float32)
    noise = rng.uniform(-1, 1, x.shape).astype(np.float32)
    return Batch(x, np.eye(CLASSES, dtype=np.float32)[np.arange(n) % CLASSES], noise, rng.uniform(0, 1, n).astype(np.float32))


class Spread(L.Layer):
    """Adds a loss of its own, and has no rule."""

    def call(self, x: Any) -> Any:
        self.add_loss(0.1 * tf.reduce_mean(tf.square(x)))
        return x


def block(**arguments: Any) -> Any:
    return keras.Sequential([keras.Input((5,)), L.Dense(5, **arguments)])


def shared() -> tuple[Any, ...]:
    layer = L.Dense(5, kernel_regularizer="l2", activity_regularizer="l2")
    return L.Dense(5), layer, layer


CASES: dict[str, tuple[Callable[[], tuple[Any, ...]], tuple[str, ...]]] = {
    "kernel": (lambda: (L.Dense(5, activation="relu", kernel_regularizer="l2"),), ("interval", "channel")),
    "kernel and bias": (lambda: (L.Dense(5, kernel_regularizer="l1", bias_regularizer="l2"), L.ReLU()), ("interval",)),
    "activity": (lambda: (L.Dense(5, activation="relu", activity_regularizer="l2"),), ("interval", "channel", "activation")),
    "activity of a pooling": (
        lambda: (L.Reshape((3, 2)), L.MaxPooling1D(3, activity_regularizer="l1"), L.Flatten()),
        ("interval", "channel"),
    ),
    "activity layer": (lambda: (L.Dense(5), L.ActivityRegularization(l1=0.1), L.ReLU()), ("interval", "channel")),
    "activity of a batch norm": (
        lambda: (L.Dense(5), L.BatchNormalization(activity_regularizer="l2")),
        ("interval", "channel"),
    ),
    "activation that is a layer": (
        lambda: (L.Dense(5, activation=L.LeakyReLU(0.1, activity_regularizer="l2")),),
        ("interval", "channel"),
    ),
    "in a block": (
        lambda: (L.Dense(5), block(kernel_regularizer="l2", activity_regularizer="l2"), L.ReLU()),
        ("interval", "channel"),
    ),
    "called twice": (shared, ("interval", "channel")),
    "added": (lambda: (L.Dense(5), Spread(), L.ReLU()), ("channel", "activation")),
}


@pytest.mark.parametrize("case, measure", [(case, measure) for case, (_, measures) in CASES.items() for measure in measures])
def test_the_losses_of_a_model_are_those_of_keras_in_every_step(case: str, measure: str) -> None:
    model = network(*CASES[case][0](), kernel_regularizer="l2")
    data = batch_of(8)
    weights = model.get_weights()
    model(data.x, training=True)
    expected = float(tf.add_n(model.losses))
    model.set_weights(weights)
    backend = backend_of(model)
    step = backend.training_step(EntropicObjective(MEASURES[measure](read_share=1.0)))
    for _ in range(2):
        np.testing.assert_allclose(step(data, CONTROLS)["penalty"], expected, rtol=1e-5)
    assert backend.own_loss().remarks == ()


def test_the_parts_of_a_batch_have_their_share_of_the_activity() -> None:
    model = network(L.Dense(5, activation="relu", activity_regularizer="l2"))
    data = batch_of(10)
    model(data.x)
    (expected,) = model.losses
    for measure in ("interval", "channel"):
        step = backend_of(model).training_step(EntropicObjective(MEASURES[measure](read_share=0.3)))
        np.testing.assert_allclose(step(data, CONTROLS)["penalty"], expected, rtol=1e-5)


def test_a_model_that_adds_nothing_has_no_penalty() -> None:
    for objective in (INTERVAL, CHANNEL):
        assert "penalty" not in backend_of(network(L.Dense(5), L.Dropout(0.3))).training_step(objective)(batch_of(8), CONTROLS)


@pytest.mark.parametrize("objective", [INTERVAL, CHANNEL])
@pytest.mark.parametrize("regularized", ["kernel", "activity"])
def test_one_step_of_descent_by_hand(objective: Any, regularized: str) -> None:
    """SGD at rate 0.1. 0.5 |W|^2 has the gradient W; 0.5 mean_i |W x_i|^2 of a linear layer has mean_i x_i x_i^T W."""
    data = batch_of(8)

    def stepped(regularizer: Any) -> tuple[np.ndarray, np.ndarray]:
        keras.utils.set_random_seed(0)
        model = network(L.Dense(5, use_bias=False, **{f"{regularized}_regularizer": regularizer}))
        before = model.layers[0].kernel.numpy()
        backend_of(model, rate=0.1).training_step(objective)(data, CONTROLS)
        return before, model.layers[0].kernel.numpy()

    (before, without), (_, with_penalty) = stepped(None), stepped(keras.regularizers.L2(0.5))
    gradient = before if regularized == "kernel" else data.x.T @ (data.x @ before) / len(data.x)
    np.testing.assert_allclose(with_penalty, without - 0.1 * gradient, rtol=1e-4, atol=1e-6)


def test_a_dry_step_and_a_trace_leave_no_loss_behind() -> None:
    model = network(L.Dense(5, activity_regularizer="l2"))
    backend = backend_of(model)
    dry = backend.dry_step(INTERVAL, batch_of(8), CONTROLS)
    terms = backend.training_step(INTERVAL)(batch_of(8), CONTROLS)
    np.testing.assert_allclose(dry["penalty"], terms["penalty"], rtol=1e-5)
    backend.training_step(CHANNEL)(batch_of(8), CONTROLS)
    model(batch_of(4).x)
    assert len(model.losses) == 1 and float(model.losses[0]) > 0


def test_steps_and_weights_of_a_models_own_are_named() -> None:
    class Trained(keras.Sequential):
        def train_step(self, data: Any) -> Any:
            return super().train_step(data)

    model = Trained(network(L.Dense(5)).layers)
    model.build((None, *SHAPE))
    model.compile("sgd", keras.losses.CategoricalCrossentropy(from_logits=True), loss_weights=[2.0])
    steps, weights = backend_of(model).own_loss().remarks
    assert "train_step" in steps and "loss_weights=[2.0]" in weights
