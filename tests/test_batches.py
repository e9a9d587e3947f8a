"""What the user hands over is read as ART reads it, and left as it was: generators, weights, losses, schedulers."""

import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
from art.data_generators import (
    DataGenerator,
    KerasDataGenerator,
    NumpyDataGenerator,
    PyTorchDataGenerator,
    TensorFlowV2DataGenerator,
)
from art.estimators.classification import PyTorchClassifier, TensorFlowV2Classifier
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from art_entropic import EntropicTrainer
from art_entropic.backends.registry import backend_for
from art_entropic.batches import Generated
from art_entropic.measures import MEASURES, Channel, Schedule
from art_entropic.states import plain_state, restored_state

N, BATCH = 10, 4


@pytest.fixture
def data():
    """Points whose first feature is their number."""
    x = np.random.default_rng(0).uniform(size=(N, 3)).astype(np.float32)
    x[:, 0] = np.arange(N)
    return x, np.arange(N) % 2


def unchecked(x, y):
    return np.asarray(x, np.float32), np.asarray(y)


def numbers(source, epoch):
    """Of the points of each batch of an epoch."""
    return [batch.x[:, 0].astype(int).tolist() for batch in source.batches(epoch)]


IN_ORDER = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


class Indexed(keras.utils.PyDataset):
    def __init__(self, x, y):
        super().__init__()
        self._x, self._y, self.ended = x, y, 0

    def __len__(self):
        return 3

    def __getitem__(self, index):
        part = slice(index * BATCH, (index + 1) * BATCH)
        return self._x[part], self._y[part]

    def on_epoch_end(self):
        self.ended += 1


class Endless(DataGenerator):
    """A user's own, with no iterator."""

    def __init__(self, x, y):
        super().__init__(N, BATCH)
        self._x, self._y, self._next = x, y, 0

    def get_batch(self):
        part = slice(self._next * BATCH, (self._next + 1) * BATCH)
        self._next = (self._next + 1) % 3
        return self._x[part], self._y[part]


def forever(x, y):
    while True:
        for start in range(0, N, BATCH):
            yield x[start : start + BATCH], y[start : start + BATCH]


# fmt: off
KINDS = {
    "DataLoader": lambda x, y: PyTorchDataGenerator(
        DataLoader(TensorDataset(torch.tensor(x), torch.tensor(y)), BATCH), N, BATCH),
    "finite tf.data": lambda x, y: TensorFlowV2DataGenerator(tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH), N, BATCH),
    "endless tf.data": lambda x, y: TensorFlowV2DataGenerator(
        tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH).repeat(), N, BATCH),
    "PyDataset": lambda x, y: KerasDataGenerator(Indexed(x, y), N, BATCH),
    "Python's generator": lambda x, y: KerasDataGenerator(forever(x, y), N, BATCH),
    "NumPy": lambda x, y: NumpyDataGenerator(x, y, BATCH, drop_remainder=False),
    "a user's own": Endless,
}
# fmt: on


@pytest.mark.parametrize("kind", KINDS)
def test_each_epoch_sees_every_batch_once_and_the_one_that_was_looked_at_too(kind, data):
    source = Generated(KINDS[kind](*data), unchecked)
    assert source.steps == 3
    assert source.first().x[:, 0].astype(int).tolist() == IN_ORDER[0]
    assert [numbers(source, epoch) for epoch in range(3)] == [IN_ORDER] * 3


def test_a_dataset_is_told_of_the_end_of_each_epoch(data):
    dataset = Indexed(*data)
    source = Generated(KerasDataGenerator(dataset, N, BATCH), unchecked)
    for epoch in range(2):
        numbers(source, epoch)
    assert dataset.ended == 2


def test_a_generator_that_has_ended_is_named_with_what_to_give(data):
    source = Generated(KerasDataGenerator((batch for batch in [data]), N, N), unchecked)
    source.first()
    assert len(list(source.batches(0))) == 1
    with pytest.raises(ValueError, match=r"`generator` must give batches in every epoch, got none in epoch 2: .* start again"):
        list(source.batches(1))


def test_what_is_no_generator_of_art_and_what_is_no_batch_is_named(data):
    loader = DataLoader(TensorDataset(*map(torch.tensor, data)), BATCH)
    with pytest.raises(TypeError, match=r"`generator` must be a DataGenerator of ART, .*, got DataLoader"):
        Generated(loader, unchecked)
    for bad, got in (({"x": 1}, "got a dict"), ((1, 2, 3, 4), "got a tuple of 4")):
        with pytest.raises(ValueError, match=rf"`generator` must give batches \(x, y\) or .* {got}"):
            Generated(KerasDataGenerator(iter([bad]), N, N), unchecked).first()
    weighted = KerasDataGenerator(iter([(*data, -np.ones(N))]), N, N)
    with pytest.raises(ValueError, match="sample weights that are finite, >= 0 and not all 0"):
        Generated(weighted, unchecked).first()


# ---------------------------------------------------------------------------------------------- weights, by hand

RATE = 0.5


def linear(framework, loss=None, **arguments):
    """z = W x on 3 inputs and 2 classes, W = 0, plain descent."""
    if framework == "pytorch":
        model = nn.Linear(3, 2, bias=False)
        nn.init.zeros_(model.weight)
        optimizer = torch.optim.SGD(model.parameters(), RATE)
        return PyTorchClassifier(model, loss or nn.CrossEntropyLoss(), (3,), 2, optimizer, device_type="cpu", **arguments)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, use_bias=False, kernel_initializer="zeros")])
    loss = loss or keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return TensorFlowV2Classifier(model, 2, (3,), loss_object=loss, optimizer=keras.optimizers.SGD(RATE), **arguments)


def kernel(classifier):
    """W, (2, 3)."""
    (weight,) = backend_for(classifier).state().values()
    return weight if weight.shape == (2, 3) else weight.T


def natural(classifier):
    """A trainer with nothing but the cross-entropy on the data."""
    return EntropicTrainer(classifier, 0.1, Channel(beta=0.0, k=0.0, schedule=Schedule(decay=0.0)), verbose=False)


def one_step(x, y, weight, target=None):
    """W after one step of weighted cross-entropy from W = 0, in float64: p = 1/2 for both classes."""
    target = np.eye(2)[y] if target is None else target
    return -RATE * ((0.5 - target) * (weight / weight.sum())[:, None]).T @ x.astype(np.float64)


def test_sample_weights_of_a_generator_count(framework, data):
    x, y = data
    weight = np.arange(N, dtype=np.float32)
    classifier = linear(framework)
    natural(classifier).fit_generator(KerasDataGenerator(iter([(x, y, weight)]), N, N), nb_epochs=1, seed=0)
    np.testing.assert_allclose(kernel(classifier), one_step(x, y, weight), atol=1e-5)


def test_class_weights_and_label_smoothing_of_the_loss_count(data):
    x, y = data
    classifier = linear("pytorch", nn.CrossEntropyLoss(torch.tensor([3.0, 1.0])))
    natural(classifier).fit(x, y, batch_size=N, nb_epochs=1, seed=0)
    np.testing.assert_allclose(kernel(classifier), one_step(x, y, np.where(y == 0, 3.0, 1.0)), atol=1e-5)
    for framework, loss in (
        ("pytorch", nn.CrossEntropyLoss(label_smoothing=0.2)),
        ("tensorflow", keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.2)),
    ):
        classifier = linear(framework, loss)
        natural(classifier).fit(x, y, batch_size=N, nb_epochs=1, seed=0)
        expected = one_step(x, y, np.ones(N), 0.8 * np.eye(2)[y] + 0.1)
        np.testing.assert_allclose(kernel(classifier), expected, atol=1e-5)


def test_a_kernel_regularizer_counts():
    x, y = np.ones((2, 3), np.float32), np.array([0, 1])
    classifier = linear("tensorflow")
    dense = classifier.model.layers[0]
    dense.kernel.regularizer = keras.regularizers.L2(0.1)
    dense.kernel.assign(np.ones((3, 2)))
    history = natural(classifier).fit(x, y, batch_size=2, nb_epochs=1, seed=0)
    # Both classes are equally likely, so the cross-entropy moves nothing: W - rate * 2 * 0.1 * W.
    np.testing.assert_allclose(kernel(classifier), np.full((2, 3), 1 - RATE * 0.2), rtol=1e-6)
    np.testing.assert_allclose(history.epochs[0].terms["penalty"], 0.6, rtol=1e-6)


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # Keras', told anew by the block that looks for ours
@pytest.mark.parametrize(
    ("framework", "loss", "told"),
    [
        ("pytorch", nn.MultiMarginLoss(), "its loss is MultiMarginLoss"),
        ("pytorch", nn.CrossEntropyLoss(reduction="sum"), "reduction='sum'"),
        ("tensorflow", keras.losses.MeanSquaredError(), "its loss is MeanSquaredError"),
        ("tensorflow", keras.losses.SparseCategoricalCrossentropy(), "from_logits=False"),
    ],
)
def test_a_loss_that_cannot_be_honoured_is_warned_of_by_name(framework, loss, told, data):
    with pytest.warns(UserWarning, match=f"retrained with a loss that differs from its own: .*{told}"):
        natural(linear(framework, loss)).fit(*data, nb_epochs=1, seed=0)


# ------------------------------------------------------------------------------------- the user's optimizer, scheduler


def classifier_of(model, optimizer=None):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), 0.1)
    return PyTorchClassifier(model, nn.CrossEntropyLoss(), (3,), 2, optimizer, device_type="cpu")


def _of_another_network():
    return classifier_of(nn.Linear(3, 2), torch.optim.SGD(nn.Linear(3, 2).parameters(), 0.1))


def _with_a_closure():
    model = nn.Linear(3, 2)
    return classifier_of(model, torch.optim.LBFGS(model.parameters()))


REFUSED = {
    "another network's parameters": (_of_another_network, "parameters of its network, got SGD over"),
    "everything frozen": (lambda: classifier_of(nn.Linear(3, 2).requires_grad_(False)), "parameters are all frozen"),
    "a closure": (_with_a_closure, "closure, got LBFGS"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_optimizer_that_could_train_nothing_is_refused_by_name(case):
    make, message = REFUSED[case]
    with pytest.raises(ValueError, match=f"`classifier` must .*({message})"):
        EntropicTrainer(make(), 0.1)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_training_without_gradients_is_refused_before_any_work(mode, data):
    trainer = EntropicTrainer(linear("pytorch"), 0.1, verbose=False)
    with mode(), pytest.raises(ValueError, match="must be retrained with gradients"):
        trainer.fit(*data, nb_epochs=1)


SCHEDULERS = {
    "StepLR": lambda o: torch.optim.lr_scheduler.StepLR(o, 2, 0.5),
    "MultiStepLR": lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [1, 3], 0.1),
    "SequentialLR": lambda o: torch.optim.lr_scheduler.SequentialLR(
        o, [torch.optim.lr_scheduler.ConstantLR(o), torch.optim.lr_scheduler.ExponentialLR(o, 0.5)], [2]
    ),
    "ReduceLROnPlateau": lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=0, threshold=10.0),
}


@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step")  # PyTorch's own SequentialLR calls it so
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_goes_on_where_it_stood(name, data, tmp_path):
    def fit(nb_epochs, resume=False, stop=None):
        classifier = linear("pytorch")
        trainer = EntropicTrainer(classifier, 0.1, measure="channel", verbose=False)
        if resume:
            trainer.resume(tmp_path / "half.npz")
        history = trainer.fit(
            *data, nb_epochs=nb_epochs, seed=0, scheduler=SCHEDULERS[name](classifier.optimizer), validation_data=data,
            callbacks=[lambda epoch: epoch.epoch == stop], checkpoint=tmp_path / ("half.npz" if stop else "whole.npz"),
        )  # fmt: skip
        return [epoch.learning_rate for epoch in history.epochs], kernel(classifier)

    rates, whole = fit(5)
    fit(5, stop=2)
    resumed, weights = fit(5, resume=True)
    assert resumed == rates and len(set(rates)) > 1
    np.testing.assert_array_equal(weights, whole)


def test_a_scheduler_that_follows_the_validation_loss_needs_one(data):
    classifier = linear("pytorch")
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(classifier.optimizer)
    with pytest.raises(ValueError, match="ReduceLROnPlateau needs `validation_data`"):
        EntropicTrainer(classifier, 0.1, verbose=False).fit(*data, nb_epochs=1, scheduler=plateau)
    other = torch.optim.lr_scheduler.StepLR(torch.optim.SGD(nn.Linear(1, 1).parameters(), 0.1), 1)
    with pytest.raises(ValueError, match="`scheduler` must be made for the optimizer of `classifier`"):
        EntropicTrainer(classifier, 0.1, verbose=False).fit(*data, nb_epochs=1, scheduler=other)


plain_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.integers() | st.text(), inner),
    max_leaves=8,
)


@given(plain_values)
def test_a_state_of_plain_values_comes_back_as_it_was(value):
    again = restored_state(plain_state(value))
    assert again == value and type(again) is type(value)


def test_a_state_with_a_function_is_refused_by_its_place():
    with pytest.raises(ValueError, match=r"`scheduler.factor\[1\]` must hold plain values .* got function"):
        plain_state({"factor": [1.0, lambda epoch: epoch]})


# ---------------------------------------------------------------------------------- nothing of the user's is changed


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(3, 2)

    def forward(self, x):
        return self.fc(x.sub_(0.5))


@pytest.mark.parametrize("measure", ["interval", "channel"])
def test_arrays_stay_as_they_are_under_a_network_that_works_in_place(measure, data, tmp_path):
    x, y = data
    x = x / N
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    kept, plain, other = x.copy(), classifier_of(InPlace()), classifier_of(InPlace())
    for classifier, points in ((plain, x), (other, mapped)):
        EntropicTrainer(classifier, 0.1, measure=measure, verbose=False).fit(points, y, nb_epochs=1, seed=0)
    np.testing.assert_array_equal(x, kept)
    for a, b in zip(plain.model.state_dict().values(), other.model.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


class Busy(nn.Module):
    """Buffers, a mode of its own for one layer, random numbers, and an operation that has no interval rule."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.fc = nn.BatchNorm1d(3), nn.utils.parametrizations.spectral_norm(nn.Linear(3, 2))
        self.register_buffer("seen", torch.zeros(()), persistent=False)

    def forward(self, x):
        self.seen = self.seen + len(x)
        x = nn.functional.dropout(self.norm(x), 0.5, self.training)
        return self.fc(torch.erf(x + np.random.rand()))


def test_a_refusal_leaves_network_and_generators_as_they_were(data):
    model = Busy()
    model.norm.eval()
    classifier = classifier_of(model)
    fc = {id(parameter): parameter.detach().clone() for parameter in model.parameters()}
    before = {name: value.clone() for name, value in [*model.named_buffers()]}
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    from art_entropic import NoIntervalRuleError

    with pytest.raises((NoIntervalRuleError, ValueError)):
        EntropicTrainer(classifier, 0.1, measure="interval", verbose=False).fit(*data, nb_epochs=1)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers() if name != "seen")
    assert all(torch.equal(parameter, fc[id(parameter)]) for parameter in model.parameters())
    assert model.training and not model.norm.training and all(parameter.grad is None for parameter in model.parameters())
    assert numpy_state.shape == np.random.get_state()[1].shape


def test_a_prediction_from_another_thread_changes_nothing_of_a_retraining():
    x = np.random.default_rng(0).uniform(size=(64, 3)).astype(np.float32)
    y = np.arange(64) % 2

    def trained(while_training):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 2))
        backend, ended = backend_for(classifier_of(model)), threading.Event()
        expected = backend.logits(x[:4]).shape

        def ask():
            while not ended.is_set():
                assert backend.logits(x[:4]).shape == expected

        other = threading.Thread(target=ask)
        if while_training:
            other.start()
        try:
            EntropicTrainer(backend.estimator, 0.1, measure="channel", verbose=False).fit(
                x, y, batch_size=8, nb_epochs=6, seed=0
            )
        finally:
            ended.set()
            if while_training:
                other.join()
        return model.state_dict()

    alone, beside = trained(False), trained(True)
    assert all(torch.equal(alone[name], beside[name]) for name in alone)


# ------------------------------------------------------------------------------------------------ what it tells


def test_an_attack_in_place_of_a_radius_is_told_what_to_take():
    from art.attacks.evasion import FastGradientMethod

    classifier = linear("pytorch")
    with pytest.raises(TypeError, match=r"`eps` must be a number, got an attack of type FastGradientMethod: .* attack.eps"):
        EntropicTrainer(classifier, FastGradientMethod(classifier))


def test_repr_tells_radius_and_measure(data):
    trainer = EntropicTrainer(linear("pytorch"), 0.1, verbose=False)
    assert repr(trainer) == "EntropicTrainer(PyTorchClassifier, eps=0.1, measure='automatic')"
    trainer.fit(*data, nb_epochs=1)
    assert (
        repr(trainer)
        == f"EntropicTrainer(PyTorchClassifier, eps=0.1, measure={MEASURES[trainer.history.settings['measure']]()!r})"
    )


def test_fit_ends_with_a_line_on_what_became_of_the_accuracy_and_what_to_do(data, capsys):
    trainer = EntropicTrainer(linear("pytorch"), 0.1, verbose=False)
    trainer.fit(*data, nb_epochs=2, seed=0)
    assert capsys.readouterr() == ("", "")
    trainer.fit(*data, nb_epochs=2, seed=0, verbose=True)
    out, err = capsys.readouterr()
    assert out == ""
    first, *_, last = [line for line in err.splitlines() if line.strip()]
    assert first.startswith("entropic retraining with measure '")
    assert "2 epochs" in last and "% -> " in last
    assert "train for " in last and "epochs or more" in last and "give `validation_data`" in last


# --------------------------------------------------------------------------------- optimizers, schedulers and their state


class Preconditioned(torch.optim.SGD):
    """Remembers tensors and counts in dictionaries and lists, as Shampoo and SOAP do."""

    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter].setdefault("past", {"squares": [torch.zeros_like(parameter)], "steps": (0, "of")})
                state["squares"][0] += parameter.grad**2
                state["steps"] = (state["steps"][0] + 1, "of")
                parameter.data -= group["lr"] * parameter.grad / (state["squares"][0].sqrt() + 1e-3) / state["steps"][0]


CYCLES = {
    "one cycle": lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=4),
    "cyclic": lambda optimizer: torch.optim.lr_scheduler.CyclicLR(optimizer, 0.01, 0.05, step_size_up=2),
    "none": lambda optimizer: None,
}


@pytest.mark.parametrize(
    "optimizer, cycle",
    [
        (lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9), "one cycle"),
        (lambda p: torch.optim.Adam(p, lr=0.01), "one cycle"),
        (lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9), "cyclic"),
        (lambda p: Preconditioned(p, lr=0.05), "none"),
        (lambda p: torch.optim.Adam(p, lr=torch.tensor(0.01)), "none"),
    ],
)
def test_all_that_an_optimizer_is_set_to_goes_on_after_a_resume(optimizer, cycle, tmp_path):
    x, y = np.random.default_rng(0).random((24, 6), np.float32), np.arange(24) % 3
    ends = []
    for stop in (None, 1, "resumed"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
        own = optimizer(model.parameters())
        one = PyTorchClassifier(model, nn.CrossEntropyLoss(), (6,), 3, own, clip_values=(0.0, 1.0), device_type="cpu")
        trainer = EntropicTrainer(one, 0.05, measure="channel", verbose=False)
        if stop == "resumed":
            trainer.resume(tmp_path / "half.npz")
        callbacks = [lambda epoch, stop=stop: epoch.epoch == stop]
        checkpoint = tmp_path / "half.npz" if stop == 1 else None
        trainer.fit(
            x, y, nb_epochs=4, batch_size=8, seed=0, scheduler=CYCLES[cycle](own), checkpoint=checkpoint, callbacks=callbacks
        )
        ends.append([parameter.detach().clone() for parameter in model.parameters()])
    assert type(own.param_groups[0]["lr"]) is type(optimizer(model.parameters()).param_groups[0]["lr"])
    for there, here in zip(ends[0], ends[2], strict=True):
        assert torch.equal(there, here)
    assert not torch.equal(ends[0][0], ends[1][0])


def test_an_optimizer_for_sparse_gradients_is_refused_by_name():
    model = nn.Linear(6, 3)
    own = torch.optim.SparseAdam(model.parameters())
    one = PyTorchClassifier(model, nn.CrossEntropyLoss(), (6,), 3, own, clip_values=(0.0, 1.0), device_type="cpu")
    with pytest.raises(ValueError, match="must take dense gradients, got SparseAdam"):
        EntropicTrainer(one, 0.05, verbose=False).fit(np.zeros((6, 6), np.float32), np.arange(6) % 3)


class Stream(IterableDataset):
    """Begins anew, and has no length."""

    def __iter__(self):
        rng = np.random.default_rng(0)
        return iter([(rng.random(6, np.float32), np.eye(3, dtype=np.float32)[n % 3]) for n in range(20)])


def test_a_stream_without_a_length_begins_anew_where_it_ends():
    model = nn.Linear(6, 3)
    own = torch.optim.Adam(model.parameters())
    one = PyTorchClassifier(model, nn.CrossEntropyLoss(), (6,), 3, own, clip_values=(0.0, 1.0), device_type="cpu")
    generator = PyTorchDataGenerator(DataLoader(Stream(), batch_size=8), 20, 8)
    history = EntropicTrainer(one, 0.05, verbose=False).fit_generator(generator, nb_epochs=3)
    assert len(history.epochs) == 3
