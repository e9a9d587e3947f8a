"""Equation (2): its terms by hand, its schedule, and the same descent in both frameworks."""

import importlib
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from art_entropic.backends.numpy import ops
from art_entropic.backends.protocol import Activations, Batch, Controls, LayerActivation, LayerInterval, Propagation
from art_entropic.backends.registry import FRAMEWORKS, backend_for
from art_entropic.measures import MEASURES, Activation, Interval, Schedule
from art_entropic.objective import EntropicObjective, natural_objective
from art_entropic.ops import Box
from art_entropic.schedule import ControlSchedule

FOLDERS = {"pytorch": "torch", "tensorflow": "tensorflow"}


def ops_of(framework):
    return importlib.import_module(f"art_entropic.backends.{FOLDERS[framework]}.ops").ops


LOGITS = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]))
Y = np.eye(3)[[0, 1]]


class Logits:
    """A `View` whose input is the logits, and whose boxes reach 0.5 to either side."""

    ops = ops

    def logits(self, x):
        return x

    def penalty(self):
        return None

    def propagate(self, x, eps, norm=np.inf):
        box = Box(x - 0.5, x + 0.5)
        return Propagation(x, box, (LayerInterval("logits", box),))


BATCH = Batch(LOGITS, Y, np.zeros((2, 1)), np.zeros(2))


def test_loss_by_hand():
    terms = EntropicObjective(Interval(read_share=1.0))(Logits(), BATCH, Controls(0.1, 0.25, 2.0))
    natural = -np.log([0.5, 0.8]).mean()
    # The label's odds fall by e^-0.5, its rivals' rise by e^0.5.
    down, up = np.exp(-0.5), np.exp(0.5)
    worst = -np.log([0.5 * down / (0.5 * down + 0.5 * up), 0.8 * down / (0.8 * down + 0.2 * up)]).mean()
    np.testing.assert_allclose(terms["cross_entropy"], natural)
    np.testing.assert_allclose(terms["worst_case_cross_entropy"], worst)
    np.testing.assert_allclose(terms["information"], np.log(2.0))
    np.testing.assert_allclose(terms["loss"], 0.75 * natural + 0.25 * worst + 2.0 * np.log(2.0))
    # log(.8) - log(.1) = 2.08 > 1 survives the ball, log(.5) - log(.25) = 0.69 does not.
    np.testing.assert_allclose([terms["accuracy"], terms["certified_accuracy"]], [1.0, 0.5])


def test_only_a_share_of_the_batch_is_read_but_all_of_it_is_classified():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(10, 3)), np.eye(3)[rng.integers(0, 3, 10)]
    batch, controls = Batch(x, y, np.zeros((10, 3)), np.zeros(10)), Controls(0.1, 0.5, 1.0)
    part = EntropicObjective(Interval(read_share=0.4))(Logits(), batch, controls)
    whole = EntropicObjective(Interval(read_share=1.0))(Logits(), batch, controls)
    first = EntropicObjective(Interval(read_share=1.0))(Logits(), Batch(*(values[:4] for values in batch[:4])), controls)
    for name in ("cross_entropy", "accuracy"):
        np.testing.assert_allclose(part[name], whole[name])
    for name in ("information", "worst_case_cross_entropy", "certified_accuracy"):
        np.testing.assert_allclose(part[name], first[name])
    natural, worst = whole["cross_entropy"], first["worst_case_cross_entropy"]
    np.testing.assert_allclose(part["loss"], 0.5 * natural + 0.5 * worst + first["information"])


@pytest.mark.parametrize(("n", "share", "first"), [(10, 0.5, 5), (10, 0.01, 2), (10, 0.99, 8), (5, 0.5, 2), (4, 0.9, 2)])
def test_both_parts_of_a_batch_are_two_rows_or_more(framework, n, share, first):
    x = np.arange(3.0 * n, dtype=np.float32).reshape(n, 3)
    for there in (ops, ops_of(framework)):
        head, tail = (np.asarray(part) for part in there.parts(to_tensor(there, x), share))
        np.testing.assert_array_equal(head, x[:first])
        np.testing.assert_array_equal(tail, x[first:])


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_batch_too_small_for_two_parts_is_not_divided(framework, n):
    x = np.arange(3.0 * n, dtype=np.float32).reshape(n, 3)
    for there in (ops, ops_of(framework)):
        for part in there.parts(to_tensor(there, x), 0.5):
            np.testing.assert_array_equal(np.asarray(part), x)


def to_tensor(there, x):
    """x as the operations `there` take it."""
    if there is ops:
        return x
    if there is ops_of("pytorch"):
        return importlib.import_module("torch").from_numpy(x)
    return importlib.import_module("tensorflow").constant(x)


def test_no_strength_is_natural_training():
    terms = EntropicObjective(Interval(read_share=1.0))(Logits(), BATCH, Controls(0.0, 0.0, 0.0))
    np.testing.assert_allclose(terms["loss"], natural_objective(Logits(), BATCH, None)["loss"])


SHAPES = {"conv": (2, 2, 2, 1), "hidden": (2, 5), "logits": (2, 3)}
WIDTHS = {"conv": 1.0, "hidden": 2.0, "logits": 3.0}


class Layered(Logits):
    """An image-shaped layer, one with one axis per example, and the logits, whose widths and values differ."""

    def propagate(self, x, eps, norm=np.inf):
        boxes = {name: Box(np.zeros(shape), np.full(shape, WIDTHS[name])) for name, shape in SHAPES.items()}
        return Propagation(LOGITS, boxes["logits"], tuple(LayerInterval(*item) for item in boxes.items()))

    def activations(self, x):
        # Every second point all zeros, every other one all w: all units have the variance (w / 2)^2 and move together.
        values = {name: np.full(shape, WIDTHS[name]) for name, shape in SHAPES.items()}
        for value in values.values():
            value[1] = 0.0
        return Activations(LOGITS, tuple(LayerActivation(*item) for item in values.items()))


CHOICES = [
    ("all", ["conv", "hidden", "logits"]),
    ("dense", ["hidden", "logits"]),
    ("logits", ["logits"]),
    (("conv",), ["conv"]),
    (("logits", "conv"), ["conv", "logits"]),
]


@pytest.mark.parametrize("layers, names", CHOICES)
def test_information_is_read_from_the_chosen_layers_alone(layers, names):
    controls = Controls(0.1, 0.25, 2.0)
    terms, every = (
        EntropicObjective(Interval(layers=some, read_share=1.0))(Layered(), BATCH, controls) for some in (layers, "all")
    )
    np.testing.assert_allclose(terms["information"], sum(np.log1p(WIDTHS[name]) for name in names))
    np.testing.assert_allclose(terms["worst_case_cross_entropy"], every["worst_case_cross_entropy"])
    # One direction, (1, ..., 1) over the units, of variance units (w / 2)^2, counted per unit.
    units = {name: np.prod(shape[1:]) for name, shape in SHAPES.items()}
    rates = [0.5 * np.log1p(units[name] * WIDTHS[name] ** 2 / 4) / units[name] for name in names]
    terms = EntropicObjective(Activation(layers=layers, read_share=1.0))(Layered(), BATCH, Controls(0.1, 0.0, 2.0))
    np.testing.assert_allclose(terms["information"], sum(rates))


@pytest.mark.parametrize("measure", ["interval", "coding", "activation"])
def test_an_unknown_layer_is_refused_by_the_first_step_with_those_that_are_known(framework, make_classifier, points, measure):
    backend = backend_for(make_classifier(framework))
    x, labels = points(framework, n=4)
    batch = Batch(x, np.eye(3, dtype=np.float32)[labels], np.zeros_like(x), np.zeros(4, np.float32))
    known = backend.layer_names()
    step = backend.measuring_step(EntropicObjective(MEASURES[measure](layers=(known[0], "nowhere"))))
    with pytest.raises(ValueError, match=f"`layers` must be among .*'{known[0]}', .*'{known[-1]}'; got 'nowhere'"):
        step(batch, Controls(0.1, 0.0, 1.0))


def test_words_choose_the_same_layers_in_every_framework(framework, make_classifier, points):
    backend = backend_for(make_classifier(framework))
    x, labels = points(framework, n=4)
    batch = Batch(x, np.eye(3, dtype=np.float32)[labels], np.ones_like(x), np.zeros(4, np.float32))
    names = backend.layer_names()
    for measure in ("interval", "coding", "activation"):
        reading = partial(MEASURES[measure], read_share=1.0)
        each = {name: measured(backend, batch, EntropicObjective(reading(layers=(name,)))) for name in names}
        for word, chosen in (("all", names), ("dense", names[2:]), ("logits", names[3:])):
            got = measured(backend, batch, EntropicObjective(reading(layers=word)))
            np.testing.assert_allclose(got, sum(each[name] for name in chosen), rtol=1e-5)


def measured(backend, batch, objective):
    return backend.measuring_step(objective)(batch, Controls(0.1, 0.0, 1.0))["information"]


def test_controls_ramp_linearly_after_the_warmup():
    schedule = ControlSchedule(eps=0.2, k=0.5, beta=1.0, warmup=0.25, ramp=0.5)
    np.testing.assert_allclose([schedule.at(p).eps for p in (0.0, 0.25, 0.5, 0.75, 1.0)], [0.0, 0.0, 0.1, 0.2, 0.2])
    np.testing.assert_allclose(schedule.at(0.5), (0.1, 0.25, 0.5))
    assert ControlSchedule(eps=0.2, k=0.5, beta=1.0, ramp=0.0).at(0.0) == Controls(0.2, 0.5, 1.0)


def test_controls_are_pure_first_where_they_are_asked_to_be():
    # Of a ramp of 0.6, two thirds are pure: 0.4 of the retraining.
    measure = Interval(k=0.5, beta=0.1, pure=2 / 3, pure_beta=1.0, schedule=Schedule(warmup=0.2, ramp=0.6))
    schedule = measure.controls(0.2)
    expected = {0.2: (0.0, 0.0, 0.0), 0.4: (0.1, 0.0, 0.5), 0.6: (0.2, 0.0, 1.0), 0.7: (0.2, 0.25, 0.55), 0.8: (0.2, 0.5, 0.1)}
    for progress, controls in expected.items():
        np.testing.assert_allclose(schedule.at(progress), controls, atol=1e-12)
    assert not schedule.is_full(0.79) and schedule.is_full(0.8) and schedule.at(0.9) == schedule.full()


share = st.floats(0, 1)


@given(warmup=share, ramp=share, pure=share, one=share, two=share)
def test_eps_and_k_never_fall_and_end_at_full_strength(warmup, ramp, pure, one, two):
    def controls():
        schedule = Schedule(warmup=warmup, ramp=ramp)
        return Interval(k=1.0, beta=0.1, pure=pure, pure_beta=1.0, schedule=schedule).controls(1.0)

    if warmup + ramp > 1:
        with pytest.raises(ValueError, match="must not exceed"):
            controls()
        return
    schedule = controls()
    early, late = schedule.at(min(one, two)), schedule.at(max(one, two))
    assert 0 <= early.eps <= late.eps <= 1 and 0 <= early.k <= late.k <= 1 and 0 <= early.beta <= 1
    assert schedule.at(1.0) == schedule.full() == Controls(1.0, 1.0, 0.1)


@pytest.mark.parametrize("read_share", [0.5, 1.0])
@pytest.mark.parametrize("measure", MEASURES)
def test_three_steps_agree_between_the_frameworks(make_classifier, points, measure, read_share):
    losses, predictions = {}, {}
    for framework, row in FRAMEWORKS.items():
        backend = backend_for(make_classifier(framework))
        x, labels = points(framework, n=16)
        noise = np.random.default_rng(1).uniform(-1, 1, (16, 6, 6, 2)).astype(np.float32)
        noise = noise.transpose(0, 3, 1, 2) if row.channels_first else noise
        rivals = np.random.default_rng(2).random(16, np.float32)
        batch = Batch(x, np.eye(3, dtype=np.float32)[labels], np.ascontiguousarray(noise), rivals)
        step = backend.training_step(EntropicObjective(MEASURES[measure](read_share=read_share)))
        with backend.training(0):
            k = MEASURES[measure]().controls(0.05).k
            values = [step(batch, Controls(0.05, k, 0.7)) for _ in range(3)]
        losses[framework] = [[v[name] for name in sorted(v)] for v in values]
        predictions[framework] = backend.logits(x)
    one, two = FRAMEWORKS
    np.testing.assert_allclose(losses[one], losses[two], rtol=2e-3, atol=1e-5)
    np.testing.assert_allclose(predictions[one], predictions[two], rtol=5e-3, atol=1e-3)
