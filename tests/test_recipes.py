"""The smooth twin of a network. What EntropicTrainer chooses by itself is tested with the trainer."""

import importlib.util

import numpy as np
import pytest

from art_entropic import EntropicTrainer, certify, smooth_activations, to_logits
from art_entropic.backends.architecture import Conv, Dense, Flatten, MaxPool
from art_entropic.backends.registry import backend_for


def network(activation, batch_norm=False):
    return (
        Conv(3, 3, padding=1, activation=activation, batch_norm=batch_norm),
        MaxPool(),
        Flatten(),
        Dense(8, activation),
        Dense(3, None),
    )


@pytest.mark.parametrize("batch_norm", [False, True])
def test_the_twin_is_the_network_with_silu_and_the_same_weights(framework, make_classifier, points, batch_norm):
    x, y = points(framework)
    classifier = make_classifier(framework, architecture=network("relu", batch_norm))
    sharp = classifier.predict(x)
    changed = smooth_activations(classifier)
    assert len(changed) == len(set(changed)) == 2
    wanted = make_classifier(framework, architecture=network("silu", batch_norm)).predict(x)
    np.testing.assert_allclose(classifier.predict(x), wanted, rtol=1e-5, atol=1e-6)
    assert np.abs(classifier.predict(x) - sharp).max() > 1e-3
    history = EntropicTrainer(classifier, 0.2, verbose=False).fit(x, y, nb_epochs=1, seed=0)
    assert history.settings["measure"] == "channel"


def test_a_network_that_is_smooth_already_is_refused(framework, make_classifier):
    with pytest.raises(ValueError, match="`classifier` must have layers with ReLU that can be replaced, got none"):
        smooth_activations(make_classifier(framework, architecture=network("silu")))


def test_modules_are_found_at_any_depth_and_keep_their_mode():
    torch = pytest.importorskip("torch")
    from art.estimators.classification import PyTorchClassifier

    class Deep(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.act = self.again = torch.nn.ReLU()
            self.body = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 4), torch.nn.ReLU6(), torch.nn.ReLU())

        def forward(self, x):
            return self.again(self.body(self.act(x)))

    model = Deep().eval()
    assert smooth_activations(PyTorchClassifier(model, torch.nn.CrossEntropyLoss(), (4,), 4)) == ("act", "again", "body.3")
    kinds = [type(module).__name__ for module in (model.act, model.again, *model.body)]
    assert kinds == ["SiLU", "SiLU", "Flatten", "Linear", "ReLU6", "SiLU"]
    assert not any(module.training for module in model.modules())


def test_keras_does_not_go_on_with_what_it_compiled_before(make_classifier, points):
    pytest.importorskip("tensorflow")
    x, _ = points("tensorflow", n=8)
    model = make_classifier("tensorflow", architecture=network("relu")).model
    model.predict(x, verbose=0)
    from art.estimators.classification import TensorFlowV2Classifier

    classifier = TensorFlowV2Classifier(model, nb_classes=3, input_shape=(6, 6, 2))
    smooth_activations(classifier)
    np.testing.assert_allclose(model.predict(x, verbose=0), classifier.predict(x), rtol=1e-5, atol=1e-6)


def test_every_way_to_write_a_relu_in_keras_is_found():
    keras = pytest.importorskip("keras")
    import tensorflow as tf
    from art.estimators.classification import KerasClassifier

    class Block(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.inner = keras.layers.Dense(5, activation="relu", name="inner")

        def call(self, x):
            return self.inner(x)

    layers = [
        keras.layers.Input((4, 3)), keras.layers.TimeDistributed(keras.layers.Dense(5, activation="relu", name="timed")),
        keras.layers.Dense(5, activation=tf.nn.relu, name="raw"), keras.layers.Dense(5, activation=keras.ops.relu, name="ops"),
        keras.layers.Dense(5, activation=keras.layers.ReLU(), name="layer"), Block(),
        keras.layers.SimpleRNN(5, activation="relu", name="recurrent"), keras.layers.ReLU(max_value=6.0),
        keras.layers.Activation("relu", name="alone"), keras.layers.Dense(3),
    ]  # fmt: skip
    model = keras.Sequential(layers)
    model.compile("adam", keras.losses.CategoricalCrossentropy(from_logits=True))
    classifier = KerasClassifier(model, use_logits=True, clip_values=(0, 1))
    x = np.random.default_rng(0).random((5, 4, 3), np.float32)
    backend_for(classifier).logits(x), classifier.predict(x)
    assert {"timed", "raw", "ops", "layer", "inner", "alone"} < set(smooth_activations(classifier))
    assert model.layers[5].cell.activation is keras.activations.silu
    wanted = model(x).numpy()
    for found in (classifier.predict(x), backend_for(classifier).logits(x), model.predict(x, verbose=0)):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


def test_a_relu_that_keras_cannot_exchange_is_named_and_nothing_is_changed():
    keras = pytest.importorskip("keras")
    from art.estimators.classification import TensorFlowV2Classifier

    inner = keras.Sequential(
        [keras.layers.Input((4,)), keras.layers.Dense(4, activation="relu"), keras.layers.ReLU(name="own")]
    )
    model = keras.Sequential([keras.layers.Input((4,)), inner, keras.layers.Dense(3)])
    with pytest.raises(ValueError, match=r"`classifier` must apply relu by .* got layers of another kind: own"):
        smooth_activations(TensorFlowV2Classifier(model, nb_classes=3, input_shape=(4,)))
    assert inner.layers[0].activation is keras.activations.relu


def softmax_networks():
    """Networks of four inputs and three classes that end in a softmax, and whether it is one that can be taken away."""
    import torch
    from torch import nn

    class Ends(nn.Module):
        def __init__(self, end, gate=None):
            super().__init__()
            self.body, self.end, self.gate = nn.Linear(4, 3), end, gate or nn.Identity()

        def forward(self, x):
            z = self.body(x)
            return self.end(z * self.gate(z))

    class Calls(nn.Linear):
        def forward(self, x):
            return torch.softmax(super().forward(x), 1)

    shared = nn.Softmax(dim=1)
    return {
        "module": (nn.Sequential(nn.Linear(4, 3), nn.Softmax(dim=1)), True),
        "last axis": (nn.Sequential(nn.Linear(4, 3), nn.Sequential(nn.Softmax(dim=-1))), True),
        "logarithm": (nn.Sequential(nn.Linear(4, 3), nn.LogSoftmax(dim=1)), True),
        "attribute": (Ends(nn.Softmax(dim=1)), True),
        "another one as a gate": (Ends(nn.Softmax(dim=1), nn.Softmax(dim=1)), True),
        "compiled": (torch.compile(Ends(nn.Softmax(dim=1)), backend="eager"), True),
        "the same one as a gate": (Ends(shared, shared), True),
        "over the batch": (nn.Sequential(nn.Linear(4, 3), nn.Softmax(dim=0)), False),
        "function": (Calls(4, 3), False),
        "in the middle": (nn.Sequential(nn.Linear(4, 3), nn.Softmax(dim=1), nn.Linear(3, 3)), False),
        "none": (nn.Sequential(nn.Linear(4, 3)), False),
    }


@pytest.mark.parametrize("case", softmax_networks() if importlib.util.find_spec("torch") else [])
def test_a_final_softmax_of_pytorch_is_taken_away_or_nothing_is_changed(case):
    import torch
    from art.estimators.classification import PyTorchClassifier

    torch.manual_seed(0)
    model, works = softmax_networks()[case]
    log = case == "logarithm"
    loss = torch.nn.NLLLoss(weight=torch.tensor([1.0, 2.0, 3.0])) if log else torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    classifier = PyTorchClassifier(model, loss, (4,), 3, optimizer=optimizer, clip_values=(0.0, 1.0))
    x, y = np.random.default_rng(0).random((12, 4), np.float32), np.arange(12) % 3
    model.train()
    before, state = classifier.predict(x), torch.get_rng_state()
    model.train()
    if not works:
        with pytest.raises(ValueError, match=r"`classifier` must end in a module nn\.Softmax or nn\.LogSoftmax"):
            to_logits(classifier)
        np.testing.assert_array_equal(classifier.predict(x), before)
        return
    assert to_logits(classifier) is classifier
    assert model.training and torch.equal(torch.get_rng_state(), state)
    logits = classifier.predict(x).astype(np.float64)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(shares, np.exp(before) if log else before, rtol=1e-5)
    if log:
        assert type(classifier.loss) is torch.nn.CrossEntropyLoss and classifier.loss.weight.tolist() == [1, 2, 3]
    if "gate" not in case:
        np.testing.assert_array_equal(certify(classifier, x, y, 1e-6), logits.argmax(axis=1) == y)
    EntropicTrainer(classifier, eps=0.05, verbose=False).fit(x, y, nb_epochs=1, batch_size=6, seed=0)
