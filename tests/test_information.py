"""The measures: hand-computed nats, the float64 reference, and the same numbers from every framework."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import entropy

from art_entropic.backends import Batch, Controls, Interval, LayerInterval, Propagation, backend_for, framework_module
from art_entropic.backends.numpy import ops
from art_entropic.information import (
    MEASURES,
    channel_information,
    mean_transmitted_information,
    rival_direction,
    transmitted_information,
)


def test_transmitted_information_by_hand():
    # log 2 + log 3 + log 1 nats for widths of one, two and zero resolutions; half a resolution each for the second example.
    width = np.array([[0.5, 1.0, 0.0], [0.25, 0.25, 0.25]])
    np.testing.assert_allclose(transmitted_information(ops, width, resolution=0.5), [np.log(6.0), 3 * np.log(1.5)], rtol=1e-12)


def test_transmitted_information_bounds_the_entropy_of_any_distribution_on_the_range(rng):
    """I(d; t + U) = h(t + U) - h(U), estimated with fine bins for perturbations of several shapes."""
    tau, low, high = 0.3, -1.0, 0.7
    bound = transmitted_information(ops, np.array([[high - low]]), resolution=tau)[0]
    for t in (rng.uniform(low, high, 200_000), rng.choice([low, high], 200_000), rng.triangular(low, 0, high, 200_000)):
        noisy = t + rng.uniform(-tau / 2, tau / 2, len(t))
        counts, edges = np.histogram(noisy, bins=200)
        information = entropy(counts) + np.log(edges[1] - edges[0]) - np.log(tau)
        assert information <= bound + 0.01


@pytest.mark.parametrize("resolution", [0.0, -1.0, float("nan"), float("inf")])
def test_resolution_must_be_positive_and_finite(resolution):
    with pytest.raises(ValueError, match="`resolution` must be positive and finite"):
        transmitted_information(ops, np.ones((1, 1)), resolution=resolution)


@given(width=st.floats(0, 1e6), more=st.floats(0, 10), tau=st.floats(1e-3, 10))
def test_transmitted_information_grows_with_the_width(width, more, tau):
    narrow, wide = transmitted_information(ops, np.array([[width], [width + more]]), resolution=tau)
    assert 0 <= narrow <= wide


def test_mean_over_units_and_sum_over_layers():
    def layer(widths):
        upper = np.array([widths])
        return LayerInterval("layer", Interval(np.zeros_like(upper), upper))

    layers = [layer([[1.0, 3.0]]), layer([7.0])]
    expected = (np.log(2) + np.log(4)) / 2 + np.log(8)
    np.testing.assert_allclose(mean_transmitted_information(ops, layers, resolution=1.0), [expected])


def test_channel_information_by_hand():
    # ||g||_1 = 7, eps = 0.1: the margin moves by 0.7 to first order.
    gradient = np.array([[[3.0, -4.0]], [[0.0, 0.0]]])
    np.testing.assert_allclose(channel_information(ops, gradient, eps=0.1), [0.5 * np.log(1.49), 0.0])


def test_rival_is_drawn_from_the_posterior_over_the_wrong_classes():
    n = 40_000
    logits = np.tile([[2.0, 1.0, 0.0, -1.0]], (n, 1))
    y = np.tile([[0.0, 1.0, 0.0, 0.0]], (n, 1))
    v = rival_direction(ops, logits, y, np.random.default_rng(0).random(n))
    np.testing.assert_array_equal(v.sum(1), 0)
    np.testing.assert_array_equal(v[:, 1], 1)
    wrong = np.exp([2.0, 0.0, -1.0])
    np.testing.assert_allclose(-v[:, [0, 2, 3]].mean(0), wrong / wrong.sum(), atol=0.01)


@pytest.mark.parametrize("noise", [0.0, 0.5, 1 - 2**-24])
@pytest.mark.parametrize("label", [0, 2])
def test_rival_is_another_class_however_sure_the_network_is(noise, label):
    logits = np.full((1, 3), -200.0, np.float32)
    logits[0, label] = 300.0
    y = np.eye(3, dtype=np.float32)[[label]]
    v = rival_direction(ops, logits, y, np.array([noise], np.float32))
    assert v[0, label] == 1 and v.min() == -1 and v.sum() == 0


# ------------------------------------------------------------------------------- every framework against NumPy float64


class Reference:
    """A two-layer ReLU network in float64 with its gradient and its boxes by hand: a `View` without a framework."""

    ops = ops

    def __init__(self, w1, b1, w2, b2):
        self.w1, self.b1, self.w2, self.b2 = (np.asarray(a, np.float64) for a in (w1, b1, w2, b2))

    def logits(self, x):
        return np.maximum(x.reshape(len(x), -1) @ self.w1 + self.b1, 0) @ self.w2 + self.b2

    def ball(self, x, eps):
        return Interval(np.clip(x - eps, 0, 1), np.clip(x + eps, 0, 1))

    def propagate(self, x, eps):
        def through(box, w, b):
            centre, radius = (box.lower + box.upper) / 2 @ w + b, (box.upper - box.lower) / 2 @ np.abs(w)
            return Interval(centre - radius, centre + radius)

        flat = x.reshape(len(x), -1)
        hidden = through(Interval(np.clip(flat - eps, 0, 1), np.clip(flat + eps, 0, 1)), self.w1, self.b1)
        box = through(Interval(np.maximum(hidden.lower, 0), np.maximum(hidden.upper, 0)), self.w2, self.b2)
        return Propagation(self.logits(x), box, (LayerInterval("hidden", hidden), LayerInterval("logits", box)))

    def input_gradient(self, x, direction):
        logits = self.logits(x)
        active = x.reshape(len(x), -1) @ self.w1 + self.b1 > 0
        return logits, ((direction(logits) @ self.w2.T * active) @ self.w1.T).reshape(x.shape)


@pytest.fixture
def two_layers(rng):
    return [rng.normal(size=(16, 12)) / 4, rng.normal(size=12) / 4, rng.normal(size=(12, 3)) / 3, rng.normal(size=3) / 4]


@pytest.mark.parametrize("measure", MEASURES)
def test_measure_agrees_with_the_float64_reference(framework, measure, two_layers, rng):
    from art_entropic.backends.architecture import Dense, Flatten

    classifier = framework_module(framework).build_classifier(
        (Flatten(), Dense(12), Dense(3, None)),
        input_shape=(4, 4, 1), nb_classes=3, clip_values=(0.0, 1.0), learning_rate=0.1, seed=0,
    )  # fmt: skip
    backend = backend_for(classifier)
    names = list(backend.state())
    w1, b1, w2, b2 = two_layers
    arrays = [w1.T, b1, w2.T, b2] if framework == "pytorch" else two_layers
    backend.load_state({name: a.astype(np.float32) for name, a in zip(names, arrays, strict=True)})
    n = 9
    x = rng.random((n, *classifier.input_shape))
    batch = Batch(x, np.eye(3)[rng.integers(0, 3, n)], rng.uniform(-1, 1, x.shape), rng.random(n))
    read = MEASURES[measure].read
    expected = read(Reference(*two_layers), batch, 0.1, 0.7)
    seen = {}

    def objective(view, batch, controls):
        reading = read(view, batch, controls.eps, 0.7)
        seen.update({"nats": reading.information[0], "logit": reading.logits[0, 0]})
        return {"loss": view.ops.mean(reading.information), **seen}

    values = backend.measuring_step(objective)(Batch(*(a.astype(np.float32) for a in batch)), Controls(0.1, 0.0, 0.0))
    np.testing.assert_allclose(values["loss"], expected.information.mean(), rtol=1e-4)
    np.testing.assert_allclose(values["nats"], expected.information[0], rtol=1e-4)
    np.testing.assert_allclose(values["logit"], expected.logits[0, 0], rtol=1e-4)
