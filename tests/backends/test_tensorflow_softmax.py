"""Keras networks that end in a softmax come to return logits, and their classifiers go on as before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")

from art.estimators.classification import KerasClassifier, TensorFlowV2Classifier  # noqa: E402

from art_entropic import EntropicTrainer, to_logits  # noqa: E402
from art_entropic.backends.registry import backend_for  # noqa: E402

L = keras.layers
CLASSES, SHAPE = 3, (6,)
X = np.random.default_rng(0).uniform(0, 1, (24, *SHAPE)).astype(np.float32)
Y = np.eye(CLASSES, dtype=np.float32)[np.arange(24) % CLASSES]
CATEGORICAL, SPARSE = keras.losses.CategoricalCrossentropy, keras.losses.SparseCategoricalCrossentropy


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    keras.utils.set_random_seed(0)
    yield


def functional(end: Callable[[Any], Any]) -> Any:
    inputs = keras.Input(SHAPE)
    return keras.Model(inputs, end(L.Dense(5, activation="relu")(inputs)))


def sequential(*end: Any) -> Any:
    return keras.Sequential([keras.Input(SHAPE), L.Dense(5, activation="relu"), *end])


def block(*layers: Any) -> Any:
    return keras.Sequential([keras.Input((5,)), *layers])


def graph_block() -> Any:
    inputs = keras.Input((5,))
    return keras.Model(inputs, L.Softmax(name="end")(L.Dense(CLASSES)(inputs)))


ENDS: dict[str, Callable[[], Any]] = {
    "activation": lambda: sequential(L.Dense(CLASSES, activation="softmax", name="end")),
    "activation of ops": lambda: sequential(L.Dense(CLASSES, activation=keras.ops.softmax, name="end")),
    "activation of tensorflow": lambda: functional(L.Dense(CLASSES, activation=tf.nn.softmax, name="end")),
    "activation that is a layer": lambda: functional(L.Dense(CLASSES, activation=L.Softmax(), name="end")),
    "activation layer": lambda: sequential(L.Dense(CLASSES), L.Activation("softmax", name="end")),
    "activation layer of a graph": lambda: functional(lambda x: L.Activation("softmax", name="end")(L.Dense(CLASSES)(x))),
    "layer": lambda: sequential(L.Dense(CLASSES), L.Softmax(name="end")),
    "layer of a graph": lambda: functional(lambda x: L.Softmax(name="end")(L.Dense(CLASSES)(x))),
    "operation": lambda: functional(lambda x: keras.activations.softmax(L.Dense(CLASSES)(x))),
    "activation in a block": lambda: sequential(block(L.Dense(CLASSES, activation="softmax", name="end"))),
    "layer in a block": lambda: sequential(block(L.Dense(CLASSES), L.Softmax(name="end"))),
    "layer in a graph in a list": lambda: sequential(graph_block()),
    "layer in a graph in a graph": lambda: functional(lambda x: graph_block()(x)),
    "logarithm": lambda: sequential(L.Dense(CLASSES, activation="log_softmax", name="end")),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("kind", ["keras", "tensorflow"])
def test_a_final_softmax_is_taken_away_and_everything_goes_on(end: str, kind: str) -> None:
    model = ENDS[end]()
    if kind == "keras":
        model.compile(keras.optimizers.Adam(0.01), CATEGORICAL(label_smoothing=0.1), metrics=["accuracy"], loss_weights=[2.0])
        classifier = KerasClassifier(model, clip_values=(0.0, 1.0))
        model.fit(X, Y, verbose=0)
    else:
        settings = {"nb_classes": CLASSES, "input_shape": SHAPE, "clip_values": (0.0, 1.0)}
        loss, rate = CATEGORICAL(label_smoothing=0.1), keras.optimizers.Adam(0.01)
        classifier = TensorFlowV2Classifier(model=model, loss_object=loss, optimizer=rate, train_step=print, **settings)
        backend_for(classifier).optimizer_state()
    probabilities = classifier.predict(X)
    optimizer = backend_for(classifier)._optimizer
    slots = [variable.numpy() for variable in optimizer.variables]
    assert to_logits(classifier) is classifier
    undone = tf.nn.log_softmax if end == "logarithm" else tf.nn.softmax
    np.testing.assert_allclose(undone(classifier.predict(X)), probabilities, rtol=1e-4, atol=1e-6)
    backend = backend_for(classifier)
    assert backend._optimizer is optimizer
    for before, variable in zip(slots, optimizer.variables, strict=True):
        np.testing.assert_array_equal(before, variable)
    loss = classifier.model.loss if kind == "keras" else classifier.loss_object
    assert loss.from_logits and loss.label_smoothing == 0.1 and backend.own_loss().label_smoothing == 0.1
    assert len(backend.intervals(X, 0.01)) == 2
    assert np.isfinite(classifier.loss_gradient(X, Y)).all()
    classifier.fit(X, Y, batch_size=8, nb_epochs=1)
    if kind == "keras":
        config = classifier.model._compile_config.config
        assert (config["metrics"], config["loss_weights"], classifier.use_logits) == (["accuracy"], [2.0], True)
        assert "accuracy" in classifier.model.evaluate(X, Y, verbose=0, return_dict=True)


@pytest.mark.parametrize(
    "loss, kind",
    [
        ("categorical_crossentropy", CATEGORICAL),
        (keras.losses.categorical_crossentropy, CATEGORICAL),
        ("sparse_categorical_crossentropy", SPARSE),
        (keras.losses.sparse_categorical_crossentropy, SPARSE),
        (keras.losses.CategoricalFocalCrossentropy(gamma=3.0), keras.losses.CategoricalFocalCrossentropy),
    ],
)
def test_the_loss_is_the_same_one_of_logits(loss: Any, kind: type) -> None:
    model = sequential(L.Dense(CLASSES, activation="softmax"))
    model.compile("adam", loss)
    classifier = KerasClassifier(model, clip_values=(0.0, 1.0))
    labels = np.argmax(Y, axis=1) if kind is SPARSE else Y
    before = model.evaluate(X, labels, verbose=0)
    to_logits(classifier)
    assert type(model.loss) is kind
    np.testing.assert_allclose(model.evaluate(X, labels, verbose=0), before, rtol=1e-5)
    classifier.fit(X, Y, batch_size=8, nb_epochs=1, verbose=0)


def test_keras_examples_of_art_are_retrained() -> None:
    """Its networks end in Dense(10, activation="softmax") with a loss by name or as a function, and the default optimizer."""
    model = keras.Sequential([keras.Input((8, 8, 1)), L.Conv2D(4, 3, activation="relu"), L.MaxPooling2D(2), L.Dropout(0.25)])
    for layer in (L.Flatten(), L.Dense(16, activation="relu"), L.Dropout(0.5), L.Dense(CLASSES, activation="softmax")):
        model.add(layer)
    model.compile(loss=keras.losses.categorical_crossentropy, optimizer="adam", metrics=["accuracy"])
    classifier = KerasClassifier(model=model, clip_values=(0.0, 1.0), use_logits=False)
    x = np.random.default_rng(1).uniform(0, 1, (24, 8, 8, 1)).astype(np.float32)
    classifier.fit(x, Y, batch_size=12, nb_epochs=1, verbose=0)
    to_logits(classifier)
    before = model.get_weights()
    EntropicTrainer(classifier, eps=0.05, measure="interval", verbose=False).fit(x, Y, nb_epochs=1, batch_size=12, seed=0)
    assert any(not np.array_equal(one, other) for one, other in zip(before, model.get_weights(), strict=True))


class Own(keras.Model):
    def __init__(self) -> None:
        super().__init__(name="mine")
        self.last = L.Dense(CLASSES, activation="softmax")

    def call(self, x: Any, training: bool = False) -> Any:
        return self.last(x)


def twice(x: Any) -> Any:
    layer = L.Dense(5, activation="softmax", name="end")
    return layer(layer(x))


REFUSED: dict[str, tuple[Callable[[], Any], Any, str]] = {
    "no softmax": (lambda: sequential(L.Dense(CLASSES, name="last")), CATEGORICAL(), "ends in Dense 'last'"),
    "over another axis": (
        lambda: functional(lambda x: L.Reshape((CLASSES,))(L.Softmax(axis=1)(L.Reshape((CLASSES, 1))(L.Dense(CLASSES)(x))))),
        CATEGORICAL(),
        "ends in Reshape",
    ),
    "used twice": (lambda: functional(twice), CATEGORICAL(), "'end': without it the model does not return logits"),
    "subclassed": (Own, CATEGORICAL(), "'mine' of class Own, whose own code hides it"),
    "alone in a block": (lambda: sequential(L.Dense(CLASSES), keras.Sequential([keras.Input((CLASSES,)), L.Softmax()])),
                         CATEGORICAL(), "cannot be removed"),
    "another loss": (lambda: sequential(L.Dense(CLASSES, activation="softmax")), keras.losses.MeanSquaredError(), "Squared"),
    "function of the user's": (lambda: sequential(L.Dense(CLASSES, activation="softmax")), lambda y, p: y - p, "lambda"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_taken_away_is_refused_and_left_as_it_was(case: str) -> None:
    build, loss, message = REFUSED[case]
    model = build()
    before = model(X, training=False).numpy()
    classifier = TensorFlowV2Classifier(
        model=model, nb_classes=before.shape[1], input_shape=SHAPE, loss_object=loss, train_step=print
    )
    with pytest.raises(ValueError, match=message):
        to_logits(classifier)
    assert (classifier.model, classifier.loss_object, classifier.train_step) == (model, loss, print)
    np.testing.assert_array_equal(model(X, training=False), before)
