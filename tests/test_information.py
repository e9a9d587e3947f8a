"""The measures: hand-computed nats, the float64 reference, and the same numbers from every framework."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import entropy

from art_entropic.backends.numpy import ops
from art_entropic.backends.protocol import Activations, Batch, Controls, LayerActivation, LayerInterval, Propagation
from art_entropic.backends.registry import backend_for, framework_module
from art_entropic.information import (
    L2Ball,
    channel_information,
    coding_rate,
    first_order_loss_of_margin,
    mean_transmitted_information,
    rival_direction,
    transmitted_information,
)
from art_entropic.measures import MEASURES, Activation, Channel, Coding
from art_entropic.ops import Box
from art_entropic.perturbations import unit_ball


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


@pytest.mark.parametrize("formula", [transmitted_information, coding_rate])
@pytest.mark.parametrize("resolution", [0.0, -1.0, float("nan"), float("inf")])
def test_resolution_must_be_positive_and_finite(resolution, formula):
    with pytest.raises(ValueError, match="`resolution` must be positive and finite"):
        formula(ops, np.ones((1, 1)), resolution=resolution)


@given(width=st.floats(0, 1e6), more=st.floats(0, 10), tau=st.floats(1e-3, 10))
def test_transmitted_information_grows_with_the_width(width, more, tau):
    narrow, wide = transmitted_information(ops, np.array([[width], [width + more]]), resolution=tau)
    assert 0 <= narrow <= wide


def test_mean_over_units_and_sum_over_layers():
    def layer(widths):
        upper = np.array([widths])
        return LayerInterval("layer", Box(np.zeros_like(upper), upper))

    layers = [layer([[1.0, 3.0]]), layer([7.0])]
    expected = (np.log(2) + np.log(4)) / 2 + np.log(8)
    np.testing.assert_allclose(mean_transmitted_information(ops, layers, resolution=1.0), [expected])


def test_coding_rate_by_hand():
    # Second moments 9/2 and 16/2 along two axes, against noise of variance 1/4; a third axis that nothing moves.
    vectors = np.array([[3.0, 0.0, 0.0], [0.0, 4.0, 0.0]])
    expected = 0.5 * (np.log(1 + 4.5 / 0.25) + np.log(1 + 8.0 / 0.25))
    np.testing.assert_allclose(coding_rate(ops, vectors, resolution=0.5), expected, rtol=1e-12)
    # The same three vectors twice: n doubles, and so do the sums. More vectors than units this time.
    np.testing.assert_allclose(coding_rate(ops, np.tile(vectors, (4, 1)), resolution=0.5), expected, rtol=1e-12)
    assert coding_rate(ops, np.zeros((4, 3)), resolution=0.5) == 0


def test_coding_rate_of_parallel_units_adds_up_and_of_one_unit_is_the_capacity_of_its_channel(rng):
    orthonormal = np.linalg.qr(rng.normal(size=(50, 4)))[0] * np.sqrt(50)
    deviations = np.array([0.1, 1.0, 3.0, 10.0])
    rates = 0.5 * np.log1p((deviations / 0.3) ** 2)
    np.testing.assert_allclose(coding_rate(ops, orthonormal * deviations, resolution=0.3), rates.sum(), rtol=1e-12)
    np.testing.assert_allclose(coding_rate(ops, orthonormal[:, 2:3] * 3.0, resolution=0.3), rates[2], rtol=1e-12)


def test_width_may_be_read_in_shares_of_the_spread_between_examples():
    # Centres 1 and 5: a standard deviation of 2. Widths 4 and 8 are then 2 and 4 deviations.
    box = Box(np.array([[-1.0], [1.0]]), np.array([[3.0], [9.0]]))
    information = mean_transmitted_information(ops, [LayerInterval("layer", box)], resolution=0.5, relative=True)
    np.testing.assert_allclose(information, np.log1p([4.0, 8.0]), rtol=1e-6)


BALL = Box(np.array([[[0.4, 0.0]], [[0.4, 0.0]]]), np.array([[[0.6, 0.1]], [[0.6, 0.1]]]))
MIDDLE = np.array([[[0.5, 0.0]], [[0.5, 0.0]]])


def test_channel_information_by_hand():
    # The second pixel is black and can only brighten: w = 3 * 0.2 + 4 * 0.1 = 1.
    gradient = np.array([[[3.0, -4.0]], [[0.0, 0.0]]])
    np.testing.assert_allclose(channel_information(ops, gradient, BALL, resolution=1.0), [0.5 * np.log(1.25), 0.0])
    np.testing.assert_allclose(channel_information(ops, gradient, BALL, resolution=0.5), [0.5 * np.log(2.0), 0.0])


def test_first_order_loss_of_margin_by_hand():
    # Down by 3 * 0.1 on the grey pixel; brightening the black one costs 4 * 0.1, or helps and is not done.
    gradient = np.array([[[3.0, -4.0]], [[-3.0, 4.0]]])
    np.testing.assert_allclose(first_order_loss_of_margin(ops, gradient, MIDDLE, BALL), [0.7, 0.3])


class Linear:
    """A `View` of a linear network."""

    ops = ops

    def __init__(self, w):
        self.w = w

    def logits(self, x):
        return x @ self.w

    def ball(self, x, eps):
        return Box(np.clip(x - eps, 0, 1), np.clip(x + eps, 0, 1))

    def linearised(self, x, point, direction):
        there = self.logits(point)
        return self.logits(x), there, direction(there) @ self.w.T


def test_worst_case_logits_of_the_channel_are_exact_for_a_linear_network(rng):
    """Of two classes, so that there is one rival; grey, black and white pixels; against the corners of the ball."""
    w, x, y = rng.normal(size=(4, 2)), np.array([[0.0, 1.0, 0.5, 0.1]] * 5), np.eye(2)[[0] * 5]
    batch = Batch(x, y, rng.uniform(-1, 1, x.shape), rng.random(5))
    worst = Channel().read(Linear(w), batch, 0.2).worst
    corners = np.array(list(itertools.product(*np.stack([np.clip(x[0] - 0.2, 0, 1), np.clip(x[0] + 0.2, 0, 1)], axis=1))))
    np.testing.assert_allclose(worst[:, 0] - worst[:, 1], np.full(5, (corners @ w @ [1, -1]).min()))


def test_channel_over_an_l2_ball_by_hand():
    # |g| = 5 and eps = 0.2: w = 2; half of it is lost at the centre, and as much more as the point is uphill of it.
    gradient, centre = np.array([[[3.0, -4.0]], [[0.0, 0.0]]]), np.zeros((2, 1, 2))
    ball, point = L2Ball(centre, 0.2), centre + np.array([0.1, 0.0])
    np.testing.assert_allclose(channel_information(ops, gradient, ball, resolution=1.0), [0.5 * np.log(2.0), 0.0], atol=1e-14)
    np.testing.assert_allclose(first_order_loss_of_margin(ops, gradient, centre, ball), [1.0, 0.0], atol=1e-14)
    np.testing.assert_allclose(first_order_loss_of_margin(ops, gradient, point, ball), [1.3, 0.0], atol=1e-14)


def test_worst_case_logits_of_the_channel_over_an_l2_ball_are_reached_against_the_gradient(rng):
    w, x, y = rng.normal(size=(4, 2)), np.full((5, 4), 0.5), np.eye(2)[[0] * 5]
    noise = unit_ball(rng, x.shape, 2.0)
    worst = Channel().read(Linear(w), Batch(x, y, noise, rng.random(5)), 0.2, 2.0).worst
    direction = w @ [1, -1]
    lowest = (x[0] - 0.2 * direction / np.linalg.norm(direction)) @ direction
    np.testing.assert_allclose(worst[:, 0] - worst[:, 1], np.full(5, lowest))


def test_points_of_the_l2_ball_are_uniform_in_it(rng):
    """The share of the volume within a radius r is r^3 in three dimensions, and no direction is preferred."""
    points = unit_ball(rng, (20_000, 1, 3), 2.0)
    radii = np.linalg.norm(points.reshape(-1, 3), axis=1)
    assert points.dtype == np.float32 and radii.max() <= 1 + 1e-6
    np.testing.assert_allclose(np.quantile(radii**3, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.015)
    np.testing.assert_allclose(np.cov(points.reshape(-1, 3).T), np.eye(3) / 5, atol=0.01)  # E r^2 / 3 = (3 / 5) / 3


@given(gradient=arrays(float, (1, 3), elements=st.floats(-5, 5)), share=arrays(float, (1, 3), elements=st.floats(0, 1)))
def test_no_point_of_the_ball_lowers_a_linear_margin_further(gradient, share):
    x, ball = np.array([[0.0, 0.5, 1.0]]), Box(np.array([[0.0, 0.2, 0.7]]), np.array([[0.3, 0.8, 1.0]]))
    point = ball.lower + share * (ball.upper - ball.lower)
    lost = -np.sum(gradient * (point - x))
    assert lost <= first_order_loss_of_margin(ops, gradient, x, ball)[0] + 1e-9


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
        return Box(np.clip(x - eps, 0, 1), np.clip(x + eps, 0, 1))

    def propagate(self, x, eps, norm=np.inf):
        def through(box, w, b):
            centre, radius = (box.lower + box.upper) / 2 @ w + b, (box.upper - box.lower) / 2 @ np.abs(w)
            return Box(centre - radius, centre + radius)

        flat = x.reshape(len(x), -1)
        hidden = through(Box(np.clip(flat - eps, 0, 1), np.clip(flat + eps, 0, 1)), self.w1, self.b1)
        if norm == 2:
            value, far = flat @ self.w1 + self.b1, eps * np.linalg.norm(self.w1, axis=0)
            hidden = Box(np.maximum(hidden.lower, value - far), np.minimum(hidden.upper, value + far))
        box = through(Box(np.maximum(hidden.lower, 0), np.maximum(hidden.upper, 0)), self.w2, self.b2)
        return Propagation(self.logits(x), box, (LayerInterval("hidden", hidden), LayerInterval("logits", box)))

    def relaxed(self, x, eps, norm=np.inf):
        propagation = self.propagate(x, eps, norm)
        low, high = propagation.layers[0].box
        value = x.reshape(len(x), -1) @ self.w1 + self.b1

        def bound(v):
            upstream = v @ self.w2.T
            crosses, chord = (low < 0) & (high > 0), high / (high - low)
            below = 1.0 * (high > -low)
            above = np.where(crosses, chord, below)
            slope = np.where(upstream > 0, below, above)
            offset = np.where((upstream < 0) & crosses, -chord * low, 0.0)
            number = (upstream * (slope * value + offset)).sum(axis=1) + v @ self.b2
            return number, ((upstream * slope) @ self.w1.T).reshape(x.shape)

        return propagation, bound

    def activations(self, x):
        hidden, logits = x.reshape(len(x), -1) @ self.w1 + self.b1, self.logits(x)
        return Activations(logits, (LayerActivation("hidden", hidden), LayerActivation("logits", logits)))

    def input_gradient(self, x, direction):
        logits = self.logits(x)
        active = x.reshape(len(x), -1) @ self.w1 + self.b1 > 0
        return logits, ((direction(logits) @ self.w2.T * active) @ self.w1.T).reshape(x.shape)

    def linearised(self, x, point, direction):
        return self.logits(x), *self.input_gradient(point, direction)


@pytest.fixture
def two_layers(rng):
    return [rng.normal(size=(16, 12)) / 4, rng.normal(size=12) / 4, rng.normal(size=(12, 3)) / 3, rng.normal(size=3) / 4]


def backend_of(framework, weights, side=4):
    from art_entropic.backends.architecture import Dense, Flatten

    classifier = framework_module(framework).build_classifier(
        (Flatten(), Dense(12), Dense(3, None)),
        input_shape=(side, side, 1), nb_classes=3, clip_values=(0.0, 1.0), learning_rate=0.1, seed=0,
    )  # fmt: skip
    backend = backend_for(classifier)
    w1, b1, w2, b2 = weights
    arrays = [w1.T, b1, w2.T, b2] if framework == "pytorch" else weights
    backend.load_state({name: a.astype(np.float32) for name, a in zip(backend.state(), arrays, strict=True)})
    return backend


def batch_for(backend, rng, n=9):
    x = rng.random((n, *backend.estimator.input_shape))
    return Batch(x, np.eye(3)[rng.integers(0, 3, n)], rng.uniform(-1, 1, x.shape), rng.random(n))


def single(batch):
    return Batch(*(part.astype(np.float32) for part in batch[:4]))


@pytest.mark.parametrize("norm", [np.inf, 2.0])
@pytest.mark.parametrize("measure", MEASURES)
def test_measure_agrees_with_the_float64_reference(framework, measure, norm, two_layers, rng):
    backend = backend_of(framework, two_layers)
    batch = batch_for(backend, rng)
    one = MEASURES[measure](resolution=0.7)
    expected = one.read(Reference(*two_layers), batch, 0.1, norm)
    seen = {}

    def objective(view, batch, controls):
        reading = one.read(view, batch, controls.eps, norm)
        seen.update({"nats": reading.information[0], "logit": reading.logits[0, 0]})
        if reading.worst is not None:
            seen["worst"] = view.ops.mean(reading.worst * batch.y)
        return {"loss": view.ops.mean(reading.information), **seen}

    values = backend.measuring_step(objective)(single(batch), Controls(0.1, 0.0, 0.0))
    np.testing.assert_allclose(values["loss"], expected.information.mean(), rtol=1e-4)
    np.testing.assert_allclose(values["nats"], expected.information[0], rtol=1e-4)
    np.testing.assert_allclose(values["logit"], expected.logits[0, 0], rtol=1e-4)
    if expected.worst is not None:
        np.testing.assert_allclose(values["worst"], (expected.worst * batch.y).mean(), rtol=1e-4)


def test_linear_bounds_lift_the_label_against_all_rivals_and_prove_it_against_one(two_layers, rng):
    view, y = Reference(*two_layers), np.eye(3)[rng.integers(0, 3, 50)]
    batch = Batch(rng.random((50, 16)), y, class_noise=rng.random(50))
    boxes, lines = (MEASURES[name]().read(view, batch, 0.1) for name in ("interval", "linear"))
    lift = lines.worst - boxes.worst
    assert (lift >= 0).all() and (lift * (1 - y) == 0).all() and (lift.sum(axis=1) > 0.05).mean() > 0.9
    np.testing.assert_allclose(lines.information, boxes.information)
    np.testing.assert_array_equal(lines.box.lower, boxes.box.lower)
    rival = y - rival_direction(ops, boxes.worst, y, batch.class_noise)
    np.testing.assert_allclose(lines.box.upper, boxes.box.upper - rival * lift.sum(axis=1, keepdims=True))


def test_activation_and_coding_of_the_reference_by_their_definitions(two_layers, rng):
    batch = Batch(rng.random((9, 16)), np.eye(3)[rng.integers(0, 3, 9)], rng.uniform(-1, 1, (9, 16)), rng.random(9))
    shifted = np.clip(batch.x + 0.1 * batch.ball_noise, 0, 1)
    view = Reference(*two_layers)
    activation, coding = 0.0, 0.0
    for (_, value), (_, moved) in zip(view.activations(batch.x).layers, view.activations(shifted).layers, strict=True):
        units = value.shape[1]
        spread = np.cov(value.T, bias=True)
        activation += 0.5 * np.linalg.slogdet(np.eye(units) + spread / 0.7**2)[1] / units
        shift = moved - value
        moment = shift.T @ shift / 9 / (np.trace(spread) / units)
        coding += 0.5 * np.linalg.slogdet(np.eye(units) + moment / 0.7**2)[1] / units
    np.testing.assert_allclose(Activation(resolution=0.7).read(view, batch, 0.1).information, np.full(9, activation))
    np.testing.assert_allclose(Coding(resolution=0.7).read(view, batch, 0.1).information, np.full(9, coding), rtol=1e-6)


def test_coding_does_not_fall_when_a_layer_is_only_scaled_down(two_layers, rng):
    w1, b1, w2, b2 = two_layers
    batch = Batch(rng.random((9, 16)), np.eye(3)[[0] * 9], rng.uniform(-1, 1, (9, 16)), rng.random(9))
    read = Coding().read
    small = read(Reference(w1 / 8, b1 / 8, w2 * 8, b2), batch, 0.1).information
    np.testing.assert_allclose(small, read(Reference(*two_layers), batch, 0.1).information, rtol=1e-5)


# One side of the Gram matrix is shorter where there are more units than points, the other where there are fewer.
@pytest.mark.parametrize("side, n", [(12, 5), (2, 9)], ids=["wide", "long"])
@pytest.mark.parametrize("resolution", [0.7, 1e-5])
def test_coding_rate_agrees_with_the_float64_reference(framework, side, n, resolution, rng):
    backend = backend_of(framework, [np.zeros((side * side, 12)), np.zeros(12), np.zeros((12, 3)), np.zeros(3)], side)
    batch = single(batch_for(backend, rng, n))

    def objective(view, batch, controls):
        return {"loss": coding_rate(view.ops, view.ops.flatten(batch.x), resolution=resolution)}

    vectors = batch.x.reshape(n, -1).astype(np.float64)
    expected = 0.5 * np.linalg.slogdet(np.eye(n) + vectors @ vectors.T / (n * resolution**2))[1]
    loss = backend.measuring_step(objective)(batch, Controls(0.0, 0.0, 0.0))["loss"]
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize("measure", ["coding", "activation"])
def test_steps_are_finite_without_shifts_and_with_dead_layers(framework, measure, two_layers, rng):
    for weights, eps in ((two_layers, 0.0), ([np.zeros_like(part) for part in two_layers], 0.1)):
        backend = backend_of(framework, weights)
        values = backend.training_step(information_of(measure))(single(batch_for(backend, rng)), Controls(eps, 0.0, 1.0))
        if measure == "coding" or eps:
            np.testing.assert_allclose(values["loss"], 0.0, atol=1e-12)
        assert np.isfinite(values["gradient_norm"])
        assert all(np.isfinite(array).all() for array in backend.state().values())


@pytest.mark.parametrize("measure", ["coding", "activation"])
def test_the_gradient_is_that_of_the_float64_reference(framework, measure, two_layers, rng):
    """Along one random direction of all weights, by central differences."""
    backend = backend_of(framework, two_layers)
    batch = batch_for(backend, rng)
    direction = [rng.normal(size=part.shape) for part in two_layers]
    read = MEASURES[measure](resolution=0.7).read

    def along(t):
        weights = [part + t * step for part, step in zip(two_layers, direction, strict=True)]
        return read(Reference(*weights), batch, 0.1).information[0]

    expected = (along(1e-5) - along(-1e-5)) / 2e-5
    before = backend.state()
    sgd(backend, 1e-2)
    backend.training_step(information_of(measure, 0.7))(single(batch), Controls(0.1, 0.0, 1.0))
    steps = [step.T if framework == "pytorch" else step for step in direction]
    moved = [(before[name] - array) / 1e-2 for name, array in backend.state().items()]
    got = sum(float(np.sum(gradient * step)) for gradient, step in zip(moved, steps, strict=True))
    np.testing.assert_allclose(got, expected, rtol=5e-3, atol=1e-4)


@pytest.mark.parametrize("measure", ["coding", "activation"])
def test_a_step_on_numbers_that_are_not_finite_leaves_the_weights_alone(framework, measure, two_layers, rng):
    backend = backend_of(framework, two_layers)
    before = backend.state()
    batch = single(batch_for(backend, rng))
    batch.x[3] = np.nan
    values = backend.training_step(information_of(measure))(batch, Controls(0.1, 0.0, 1.0))
    assert np.isnan(values["loss"])
    for name, array in backend.state().items():
        np.testing.assert_array_equal(array, before[name])


def information_of(measure, resolution=1.0):
    def objective(view, batch, controls):
        reading = MEASURES[measure](resolution=resolution).read(view, batch, controls.eps)
        return {"loss": view.ops.mean(reading.information)}

    return objective


def sgd(backend, learning_rate):
    """Plain descent, whose step is the gradient."""
    if backend.framework == "pytorch":
        import torch

        backend.estimator._optimizer = torch.optim.SGD(backend.model.parameters(), lr=learning_rate)
    else:
        import keras

        backend.estimator._optimizer = keras.optimizers.SGD(learning_rate)


def test_activations_are_those_of_the_backend_and_the_centres_of_an_empty_ball(framework, make_classifier, points):
    backend = backend_for(make_classifier(framework))
    x, labels = points(framework, n=6)
    names = []

    def objective(view, batch, controls):
        passed, empty = view.activations(batch.x), view.propagate(batch.x, controls.eps)
        names[:] = [layer.name for layer in passed.layers]
        assert names == [layer.name for layer in empty.layers]
        ops = view.ops
        terms = {"loss": ops.mean(passed.logits), "logits": ops.mean(ops.abs(passed.logits - passed.layers[-1].value))}
        for one, other in zip(passed.layers, empty.layers, strict=True):
            terms[f"value {one.name}"] = ops.mean(ops.abs(one.value))
            terms[f"off {one.name}"] = ops.mean(ops.abs(one.value - (other.box.lower + other.box.upper) * 0.5))
        return terms

    batch = Batch(x, np.eye(3, dtype=np.float32)[labels], np.zeros_like(x), np.zeros(6, np.float32))
    terms = backend.measuring_step(objective)(batch, Controls(0.0, 0.0, 0.0))
    values = backend.activations(x)
    assert tuple(names) == tuple(values) == backend.layer_names()
    np.testing.assert_allclose([terms["logits"], *(terms[f"off {name}"] for name in names)], 0.0, atol=1e-6)
    means = [np.abs(value).mean() for value in values.values()]
    np.testing.assert_allclose([terms[f"value {name}"] for name in names], means, rtol=1e-5)
