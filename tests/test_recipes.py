"""The smooth twin of a network. What EntropicTrainer chooses by itself is tested with the trainer."""

import numpy as np
import pytest

from art_entropic import EntropicTrainer, smooth_activations
from art_entropic.backends import backend_for
from art_entropic.backends.architecture import Conv, Dense, Flatten, MaxPool


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
    with pytest.raises(ValueError, match="`classifier` must have layers with ReLU to get smooth ones, got none"):
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
    with pytest.raises(ValueError, match=r"`classifier` must apply relu by .* got a layer of its own: own"):
        smooth_activations(TensorFlowV2Classifier(model, nb_classes=3, input_shape=(4,)))
    assert inner.layers[0].activation is keras.activations.relu
