"""Networks as users get them go through every door, and what is said of them is true."""

import contextlib
import copy
import importlib.util
import re

import numpy as np
import pytest
from networks import records
from zoo import networks, points, top

from art_entropic import EntropicTrainer, certify, evaluate
from art_entropic.backends.errors import NoIntervalRuleError
from art_entropic.backends.registry import backend_for, framework_of
from art_entropic.history import TrainingDivergedError

NETWORKS, PUBLISHED = networks(), records()
SHARE = 0.1  # of the range of the inputs: eps of the retraining, where both measures may be chosen
NARROW = 1e-3  # the same, of the boxes that points are sent through: wide ones contain anything
BOX_POINTS = 512
# Boxes are float32: they may lie off by this share of their largest end. The points' values are float64.
ROUNDING = 1e-5


def selected(chosen):
    """The networks that a test takes; those outside the sample are slow."""
    marks = {True: (), False: (pytest.mark.slow,)}
    return [pytest.param(name, marks=marks[row.in_sample]) for name, row in NETWORKS.items() if chosen(row)]


@pytest.fixture
def build():
    """Builds the ART classifier of a network by name, where its packages are installed."""

    def make(name, change=None):
        row = NETWORKS[name]
        for package in row.packages:
            if importlib.util.find_spec(package) is None:
                pytest.skip(f"{package} is not installed")
        return row.build(change) if change else row.build()

    return make


def retrain(name, classifier, measure=None):
    """Two steps on batches of four; the history."""
    x, y = points(classifier)
    told = NETWORKS[name].warns
    trainer = EntropicTrainer(classifier, SHARE * top(classifier), measure=measure, verbose=False)
    with pytest.warns(UserWarning, match=told) if told else contextlib.nullcontext():
        return trainer.fit(x, y, batch_size=4, nb_epochs=1, seed=0)


def as_it_is(classifier):
    """All of a network that a refused or a finished call must leave alone; for `assert_same`."""
    model = classifier.model
    if framework_of(classifier) == "tensorflow":
        weights = {str(index): np.array(value) for index, value in enumerate(model.get_weights())}
        return weights, [(layer.name, layer.trainable) for layer in model._flatten_layers()]
    import torch

    tensors = {name: tensor.detach().cpu().numpy().copy() for name, tensor in model.state_dict().items()}
    tensors |= {f"buffer {name}": tensor.detach().cpu().numpy().copy() for name, tensor in model.named_buffers()}
    tensors["generator"] = torch.get_rng_state().numpy().copy()
    modes = [(name, module.training, len(module._forward_hooks)) for name, module in model.named_modules()]
    return tensors, (modes, [(name, p.requires_grad, p.grad) for name, p in model.named_parameters()])


def assert_same(after, before):
    assert after[1] == before[1]
    assert after[0].keys() == before[0].keys()
    for name, array in after[0].items():
        np.testing.assert_array_equal(array, before[0][name], err_msg=name)


@pytest.mark.filterwarnings("ignore:`classifier` has batch norm inside custom code that cannot be inspected")
@pytest.mark.parametrize("name", selected(lambda row: True))
def test_a_measure_is_found_and_trains(name, build):
    classifier = build(name)
    before = backend_for(classifier).state()
    history = retrain(name, classifier)
    assert all(np.isfinite(list(history.epochs[0].terms.values())))
    assert history.settings["measure"] == PUBLISHED[name].measure
    assert any(not np.array_equal(array, before[key]) for key, array in backend_for(classifier).state().items())


@pytest.mark.parametrize("name", selected(lambda row: True))
def test_an_evaluation_counts_every_point_and_changes_nothing(name, build):
    classifier = build(name)
    x, y = points(classifier, 4)
    y[0] = np.argmax(classifier.predict(x[:1]))
    before, kept = as_it_is(classifier), x.copy()
    result = evaluate(classifier, x, y, eps=SHARE * top(classifier), battery="quick", checks=False, verbose=False)
    np.testing.assert_array_equal(x, kept)
    assert_same(as_it_is(classifier), before)
    assert 1 <= result.clean.correct <= result.clean.n == 4
    assert not any(outcome.error for outcome in result.attacks)
    without = NETWORKS[name].without_rule
    assert (result.certified_points is None) == (without is not None)
    assert without is None or without in result.certified_reason


@pytest.mark.parametrize("name", selected(lambda row: row.without_rule is not None))
def test_bounds_are_refused_by_layer_and_operation_before_anything_changes(name, build):
    classifier = build(name)
    x, y = points(classifier)
    before = as_it_is(classifier)
    for ask in (lambda: retrain(name, classifier, "interval"), lambda: certify(classifier, x, y, NARROW)):
        with pytest.raises(NoIntervalRuleError) as caught:
            ask()
        assert caught.value.operation == NETWORKS[name].without_rule
        assert caught.value.layer in layers_of(classifier)
        assert f"{caught.value.operation} in layer '{caught.value.layer}'" in str(caught.value)
        assert_same(as_it_is(classifier), before)


def layers_of(classifier):
    if framework_of(classifier) == "tensorflow":
        return {layer.name for layer in classifier.model._flatten_layers()}
    return {name for name, _ in classifier.model.named_modules()}


@pytest.mark.parametrize("name", selected(lambda row: row.without_rule is None))
def test_interval_trains_or_leaves_the_weights(name, build):
    classifier = build(name)
    before = backend_for(classifier).state()
    if NETWORKS[name].overflows:
        with pytest.raises((ValueError, TrainingDivergedError), match=r"float32|diverged"):
            retrain(name, classifier, "interval")
        for key, array in backend_for(classifier).state().items():
            np.testing.assert_array_equal(array, before[key], err_msg=key)
        return
    history = retrain(name, classifier, "interval")
    assert history.settings["measure"] == "interval"
    assert all(np.isfinite(list(history.epochs[0].terms.values())))


@pytest.mark.parametrize("name", selected(lambda row: row.without_rule is None))
def test_boxes_contain_the_points_of_the_ball(name, build):
    classifier = build(name)
    x, _ = points(classifier, 2)
    eps = NARROW * top(classifier)
    boxes = backend_for(classifier).intervals(x, eps)
    values = values_of(name, classifier, boxes, ball(classifier, x, eps))
    assert list(boxes)[-1] in values
    for layer, value in values.items():
        lower, upper = (np.asarray(end, np.float64) for end in boxes[layer])
        bounded = np.isfinite(lower) & np.isfinite(upper)
        scale = np.max(np.maximum(np.abs(lower), np.abs(upper)), where=bounded, initial=0.0)
        value = value.reshape(len(x), -1, *lower.shape[1:])
        outside = np.maximum(lower[:, None] - value, value - upper[:, None])
        assert np.max(outside, where=bounded[:, None], initial=0.0) <= ROUNDING * scale, layer


def ball(classifier, x, eps):
    """(len(x) * BOX_POINTS / 2, ...) in float64: corners along the gradients of the logits, random corners, random points."""
    rng, copies = np.random.default_rng(1), BOX_POINTS // 2
    directions = rng.normal(size=(copies // 8, len(x), 5)).astype(np.float32)
    gradients = [backend_for(classifier).input_gradient(x, direction) for direction in directions]
    share = rng.uniform(-1, 1, (len(x), copies, *x.shape[1:]))
    share[:, ::2] = np.sign(share[:, ::2])
    share[:, : 2 * len(gradients)] = np.stack([sign * np.sign(one) for one in gradients for sign in (-1, 1)], axis=1)
    moved = x.astype(np.float64)[:, None] + eps * share
    return np.clip(moved, 0.0, top(classifier)).reshape(-1, *x.shape[1:])


def values_of(name, classifier, layers, x):
    """Layer -> its values at x, computed in float64: the logits, and on PyTorch what is the output of a module."""
    logits = list(layers)[-1]
    if framework_of(classifier) == "tensorflow":
        return {logits: in_double(name, classifier)(x, training=False).numpy()}
    import torch

    model = copy.deepcopy(classifier.model).cpu().double().eval()
    modules, values = dict(model.named_modules()), {}

    def keep(layer):
        # The first call alone, before what follows works in place.
        return lambda _, inputs, output: values.setdefault(layer, []).append(output.numpy().copy())

    for layer in set(layers) & set(modules):
        modules[layer].register_forward_hook(keep(layer))
    with torch.no_grad():
        found = [model(chunk).numpy().copy() for chunk in torch.as_tensor(x).split(64)]
    whole = {layer: np.concatenate(parts) for layer, parts in values.items() if len(parts) == len(found)}
    return {**whole, logits: np.concatenate(found)}


def in_double(name, classifier):
    """The same Keras model, built with float64."""
    import keras

    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float64")
    try:
        model = NETWORKS[name].build().model
    finally:
        keras.config.set_dtype_policy(policy)
    model.set_weights(classifier.model.get_weights())
    return model


def whole(model):
    import torch

    return torch.compile(model, backend="eager")


def in_place(model):
    model.compile(backend="eager")
    return model


def a_block(model):
    model[1] = whole(model[1])
    return model


# PyTorch itself cannot train "checkpointed" when it is compiled so: BatchNorm counts its batches in place.
COMPILED_QUICKLY = {"conv1d", "lstm", "spectral_norm", "inplace_residual"}
COMPILED = [
    *(
        (name, whole, () if name in COMPILED_QUICKLY else pytest.mark.slow)
        for name, row in NETWORKS.items()
        if row.framework == "pytorch" and name != "checkpointed"
    ),
    ("inplace_residual", in_place, ()),
    ("inplace_residual", a_block, ()),
]


@pytest.mark.parametrize(
    "name, change",
    [pytest.param(name, change, id=f"{name}-{change.__name__}", marks=marks) for name, change, marks in COMPILED],
)
def test_a_compiled_network_is_the_network_as_written(name, change, build):
    written, compiled = build(name), build(name, change)
    x, y = points(written, 4)
    eps = SHARE * top(written)
    if NETWORKS[name].without_rule is None:
        there, here = (backend_for(one).intervals(x, NARROW) for one in (written, compiled))
        assert [of_original(layer) for layer in here] == list(there)
        for one, other in zip(here.values(), there.values(), strict=True):
            np.testing.assert_allclose(one.lower, other.lower, rtol=1e-6)
            np.testing.assert_allclose(one.upper, other.upper, rtol=1e-6)
        np.testing.assert_array_equal(*(certify(one, x, y, NARROW) for one in (written, compiled)))
    else:
        with pytest.raises(NoIntervalRuleError, match=re.escape(NETWORKS[name].without_rule)):
            certify(compiled, x, y, NARROW)
    asked = dict(eps=eps, battery="quick", checks=False, verbose=False)
    np.testing.assert_array_equal(*(evaluate(one, x, y, **asked).survived for one in (written, compiled)))
    histories = [retrain(name, one) for one in (written, compiled)]
    assert histories[0].settings["measure"] == histories[1].settings["measure"]
    there, here = (backend_for(one).state() for one in (written, compiled))
    assert {of_original(key) for key in here} == set(there)
    for key, array in here.items():
        np.testing.assert_allclose(array, there[of_original(key)], rtol=1e-4, atol=1e-6, err_msg=key)


def of_original(name):
    """A name as it is without the wrapper of `torch.compile`."""
    return name.replace("_orig_mod.", "")
