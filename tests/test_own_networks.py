"""What users do around a retraining of their own networks: callbacks that predict, interruptions, weights, other dtypes."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import torch
from art.data_generators import NumpyDataGenerator
from art.estimators.classification import KerasClassifier, PyTorchClassifier, TensorFlowV2Classifier
from torch import nn

from art_entropic import EntropicTrainer, Schedule, smooth_activations, to_logits
from art_entropic.backends.registry import backend_for
from art_entropic.history import TrainingDivergedError
from art_entropic.measures import Channel

N_CLASSES, FEATURES = 3, 6


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    x, y = rng.uniform(0, 0.4, (64, FEATURES)).astype(np.float32), np.arange(64) % N_CLASSES
    x[np.arange(64), 2 * y] += 0.6
    return x, y


def of_torch(model, *, loss=None, optimizer=None, **settings):
    return PyTorchClassifier(
        model,
        loss or nn.CrossEntropyLoss(),
        (FEATURES,),
        N_CLASSES,
        optimizer or torch.optim.Adam(model.parameters(), lr=1e-2),
        clip_values=(0.0, 1.0),
        device_type="cpu",
        **settings,
    )


def net(*layers, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(FEATURES, 8), *layers, nn.Linear(8, N_CLASSES))


def trainer_of(classifier, measure="channel", **settings):
    return EntropicTrainer(classifier, 0.05, measure, verbose=False, **settings)


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one.values(), other.values(), strict=True))


# -------------------------------------------------------------------------------------------- what listens to a retraining


@pytest.mark.parametrize("asks", ["callback", "generator"])
def test_whoever_predicts_in_between_changes_nothing_of_the_training(asks, data):
    """ART leaves a PyTorch network in inference mode, without dropout and with batch norm as it was, and draws a number.

    What a generator draws is its own affair.
    """
    x, y = data
    ends = []
    for predicts in (False, True):
        model = net(nn.BatchNorm1d(8), nn.SiLU(), *([nn.Dropout(0.5)] if asks == "callback" else []))
        classifier = of_torch(model)

        class Asking(NumpyDataGenerator):
            def __iter__(self):
                for batch in super().__iter__():
                    if predicts:  # noqa: B023
                        classifier.predict(x)  # noqa: B023
                    yield batch

        if asks == "callback":
            callbacks = [lambda epoch, it=classifier: it.predict(x) is None] if predicts else []
            trainer_of(classifier).fit(x, y, batch_size=16, nb_epochs=3, seed=0, callbacks=callbacks)
        else:
            generator = Asking(x, np.eye(N_CLASSES)[y], batch_size=16, shuffle=False)
            trainer_of(classifier).fit_generator(generator, nb_epochs=3, seed=0)
        assert model[1].num_batches_tracked == 24  # two parts of each of 12 batches
        ends.append(backend_for(classifier).state())
    assert same(*ends)


@pytest.mark.parametrize("answer, epochs", [(True, 1), (np.bool_(True), 1), (1, 3), (None, 3), (np.bool_(False), 3)])
def test_a_callback_ends_the_training_with_true_also_that_of_numpy(answer, epochs, data):
    history = trainer_of(of_torch(net(nn.SiLU()))).fit(*data, nb_epochs=3, seed=0, callbacks=[lambda epoch: answer])
    assert len(history.epochs) == epochs


def test_a_learning_rate_that_a_callback_sets_is_let_be_and_told(data):
    classifier = of_torch(net(nn.SiLU()))
    scheduler = torch.optim.lr_scheduler.ExponentialLR(classifier.optimizer, 0.5)
    with pytest.warns(UserWarning, match=r"the learning rate was set to 0\.005 from outside"):
        history = trainer_of(classifier).fit(*data, nb_epochs=4, seed=0, callbacks=[lambda epoch: scheduler.step()])
    assert [epoch.learning_rate for epoch in history.epochs] == pytest.approx([0.01, 0.005, 0.0025, 0.00125])


def test_one_rate_for_groups_of_several_is_refused(data):
    model = net(nn.SiLU())
    groups = [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[2].parameters(), "lr": 0.01}]
    classifier = of_torch(model, optimizer=torch.optim.SGD(groups, lr=0.1))
    with pytest.raises(ValueError, match=r"`scheduler` must be .* several learning rates, \(0\.1, 0\.01\), got a callable"):
        trainer_of(classifier).fit(*data, nb_epochs=1, scheduler=lambda epoch: 0.1)


# ------------------------------------------------------------------------------------------------- what ends a retraining


class Stopped(BaseException):
    """As Ctrl-C."""


@pytest.mark.parametrize("framework", ["pytorch", "tensorflow"])
def test_whatever_ends_a_training_leaves_the_last_finished_epoch_with_its_optimizer(
    framework, make_classifier, points, monkeypatch
):
    x, y = points(framework, n=48)
    classifier = make_classifier(framework)
    trainer, seen = EntropicTrainer(classifier, 0.05, "channel", verbose=False), []
    backend = trainer._backend
    real = backend.training_step

    def training_step(objective):
        step, taken = real(objective), []

        def stops(batch, controls):
            taken.append(step(batch, controls))
            if len(taken) == 8:  # the second step of the third epoch
                raise Stopped
            return taken[-1]

        return stops

    monkeypatch.setattr(backend, "training_step", training_step)
    with pytest.raises(Stopped):
        trainer.fit(
            x, y, batch_size=16, nb_epochs=4, seed=0, validation_data=(x, y),
            callbacks=[lambda epoch: seen.append((backend.state(), backend.optimizer_state()))],
        )  # fmt: skip
    assert len(seen) == 2 and trainer.history.best_epoch == 2
    assert same(backend.state(), seen[-1][0])
    there, here = ({name: array for name, array in one.items() if "generator" not in name} for one in
                   (seen[-1][1], backend.optimizer_state()))  # fmt: skip
    rates = [name for name in there if name.startswith("lr/")]
    assert same(*({name: array for name, array in one.items() if name not in rates} for one in (there, here)))


def test_after_a_divergence_the_advice_works(data):
    """Momenta of a rate that was too large must not outlive the reset, or the next training explodes too."""
    x, y = data
    model = net(nn.ReLU(), nn.Linear(8, 8), nn.ReLU())
    own = torch.optim.SGD(model.parameters(), lr=1e10, momentum=0.9)
    trainer = trainer_of(of_torch(model, optimizer=own))
    with pytest.raises(TrainingDivergedError, match="smaller learning rate"):
        trainer.fit(x, y, batch_size=8, nb_epochs=5, seed=0)
    own.param_groups[0]["lr"] = 0.05
    history = trainer.fit(x, y, batch_size=8, nb_epochs=5, seed=0)
    assert history.epochs[0].terms["cross_entropy"] < 2.0


@pytest.mark.parametrize("framework", ["pytorch", "tensorflow"])
def test_validation_that_does_not_fit_into_memory_is_told_and_undone(framework, make_classifier, points, monkeypatch):
    x, y = points(framework, n=48)
    trainer = EntropicTrainer(make_classifier(framework), 0.05, "channel", verbose=False)
    backend, sizes = trainer._backend, []
    real, before = backend.measuring_step, backend.state()

    def measuring_step(objective):
        step = real(objective)

        def fails(batch, controls):
            sizes.append(len(batch.x))
            if len(batch.x) > 8:  # not that of the rehearsal
                raise MemoryError
            return step(batch, controls)

        return fails

    monkeypatch.setattr(backend, "measuring_step", measuring_step)
    with pytest.raises(MemoryError, match="batch of 16: try `batch_size` 4; the weights were reset to those of the start"):
        trainer.fit(x, y, batch_size=8, nb_epochs=1, seed=0, validation_data=(x, y))
    assert max(sizes) == 16  # twice the batch, since nothing descends
    assert same(backend.state(), before)


# --------------------------------------------------------------------------------------------- what goes on after a resume


def interrupted(classifier, data, path, **arguments):
    trainer_of(classifier, Channel(schedule=Schedule(ramp=0.1))).fit(
        *data, batch_size=16, nb_epochs=4, seed=0, checkpoint=path, callbacks=[lambda epoch: epoch.epoch == 2], **arguments
    )


def resumed(classifier, data, path, **arguments):
    trainer = trainer_of(classifier, Channel(schedule=Schedule(ramp=0.1)))
    trainer.resume(path)
    return trainer.fit(*data, batch_size=16, nb_epochs=4, seed=0, **arguments)


def test_resume_refuses_other_data(data, tmp_path):
    x, y = data
    path = tmp_path / "half.npz"
    interrupted(of_torch(net(nn.SiLU())), data, path, validation_data=data)
    for arguments, message in (
        ({}, r"`validation_data` must be as in .*: '64 points, CRC-32 [0-9a-f]{8}', got None"),
        ({"validation_data": (x[::-1], y[::-1])}, "`validation_data` must be as in .*, got '64 points, CRC-32"),
    ):
        with pytest.raises(ValueError, match=message):
            resumed(of_torch(net(nn.SiLU())), data, path, **arguments)
    with pytest.raises(ValueError, match=r"`x and y` must be as in .*: '64 points, CRC-32"):
        resumed(of_torch(net(nn.SiLU())), (x, (y + 1) % N_CLASSES), path, validation_data=data)
    history = resumed(of_torch(net(nn.SiLU())), (x.astype(np.float64), np.eye(N_CLASSES)[y]), path, validation_data=data)
    assert len(history.epochs) == 4 and not history.stopped_early


@pytest.mark.parametrize("framework", ["pytorch", "tensorflow"])
def test_resume_refuses_a_network_that_answers_otherwise_with_the_same_weights(framework, make_classifier, points, tmp_path):
    x, y = points(framework, n=32)
    path = tmp_path / "half.npz"

    def trainer_of(classifier):
        return EntropicTrainer(classifier, 0.05, "channel", verbose=False)

    smooth = make_classifier(framework)
    smooth_activations(smooth)
    trainer_of(smooth).fit(x, y, nb_epochs=2, seed=0, checkpoint=path)
    forgotten = make_classifier(framework)
    before = backend_for(forgotten).state()
    with pytest.raises(ValueError, match=r"answers otherwise than that of `classifier` .*`smooth_activations`"):
        trainer_of(forgotten).resume(path)
    assert same(before, backend_for(forgotten).state())
    smooth_activations(forgotten)
    trainer_of(forgotten).resume(path)


def test_resume_refuses_another_preprocessing_and_another_optimizer(data, tmp_path):
    path = tmp_path / "half.npz"
    model = net(nn.SiLU())
    interrupted(of_torch(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.01)), data, path)
    for settings, kind, message in (
        ({"preprocessing": (0.5, 0.5)}, torch.optim.SGD, "another `preprocessing`"),
        ({}, torch.optim.RMSprop, "`state` must be that of a RMSprop, got that of a SGD"),
    ):
        model = net(nn.SiLU())
        with pytest.raises(ValueError, match=message):
            resumed(of_torch(model, optimizer=kind(model.parameters(), lr=0.01), **settings), data, path)


# ------------------------------------------------------------------------------------------------------- what is reported


def cross_entropy_of(model, x, y, weights):
    with torch.no_grad():
        logits = model.eval()(torch.from_numpy(x))
    return float(nn.functional.cross_entropy(logits, torch.from_numpy(y), torch.tensor(weights)))


@pytest.mark.parametrize("order", ["sorted", "shuffled"])
def test_validation_weighs_classes_over_all_points_whatever_their_order(order, data):
    """PyTorch on the whole set says the same."""
    rng = np.random.default_rng(1)
    xv, yv = rng.random((90, FEATURES), np.float32), np.repeat(np.arange(N_CLASSES), 30)
    if order == "shuffled":
        chosen = rng.permutation(90)
        xv, yv = xv[chosen], yv[chosen]
    weights = [1.0, 1.0, 50.0]
    model = net(nn.SiLU())
    classifier = of_torch(model, loss=nn.CrossEntropyLoss(weight=torch.tensor(weights)))
    history = trainer_of(classifier).fit(*data, batch_size=10, nb_epochs=1, seed=0, validation_data=(xv, yv))
    (epoch,) = history.epochs
    wish = cross_entropy_of(model, xv, yv, weights)
    assert epoch.validation["cross_entropy"] == pytest.approx(wish, rel=1e-5)


@pytest.mark.parametrize("framework", ["pytorch", "tensorflow"])
def test_examples_without_weight_in_a_part_of_a_batch_are_no_divergence(framework, make_classifier, points):
    x, y = points(framework, n=32)
    weight = np.tile(np.repeat([0.0, 1.0], 4), 4)  # the first half of each batch, which the measure reads, has none
    batches = [(x[n : n + 8], y[n : n + 8], weight[n : n + 8]) for n in range(0, 32, 8)]

    class Generator(NumpyDataGenerator):
        def __iter__(self):
            return iter(batches)

    classifier = make_classifier(framework)
    generator = Generator(x, y, batch_size=8, shuffle=False)
    history = EntropicTrainer(classifier, 0.05, "channel", verbose=False).fit_generator(generator, nb_epochs=2, seed=0)
    assert all(np.isfinite(list(epoch.terms.values())).all() for epoch in history.epochs)
    assert history.epochs[-1].terms["worst_case_cross_entropy"] == 0.0


def test_a_class_without_weight_may_fill_batches_and_validation(data):
    x, y = data
    order = np.argsort(y, kind="stable")
    classifier = of_torch(net(nn.SiLU()), loss=nn.CrossEntropyLoss(ignore_index=0))
    history = trainer_of(classifier).fit(x, y, batch_size=4, nb_epochs=3, seed=0, validation_data=(x[order], y[order]))
    assert all(np.isfinite(epoch.validation["loss"]) for epoch in history.epochs)


def test_a_network_that_answers_the_same_for_all_classes_has_no_hits(data):
    model = nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(), nn.Linear(8, N_CLASSES, bias=False))
    with torch.no_grad():
        model[0].bias.fill_(-100.0)
    history = trainer_of(of_torch(model)).fit(*data, nb_epochs=1, seed=0, validation_data=data)
    assert history.epochs[0].terms["accuracy"] == history.epochs[0].validation["accuracy"] == 0.0


def test_the_closing_line_tells_the_accuracy_on_all_validation_points(data, capsys):
    x, y = data
    many = np.argsort(np.tile(y, 10), kind="stable")  # 640 points, sorted by class
    validation = np.tile(x, (10, 1))[many], np.tile(y, 10)[many]
    classifier = of_torch(net(nn.SiLU()))
    trainer_of(classifier).fit(x, y, nb_epochs=1, seed=0, validation_data=validation, verbose=True)
    right = np.mean(classifier.predict(validation[0]).argmax(axis=1) == validation[1])
    assert "clean accuracy on validation" in (told := capsys.readouterr().err) and f"-> {100 * right:.1f} %" in told


def test_an_epoch_whose_validation_is_not_finite_is_told_and_never_the_best(data):
    class Late(nn.Module):
        """Overflows on the last point alone."""

        def __init__(self):
            super().__init__()
            self.inner = net(nn.SiLU())

        def forward(self, x):
            return self.inner(x) * torch.where(x[:, :1] == 0.987, torch.inf, 1.0)

    x, y = data
    bad = x.copy()
    bad[-1, 0] = 0.987
    with pytest.warns(UserWarning) as told:
        history = trainer_of(of_torch(Late())).fit(x, y, nb_epochs=3, seed=0, validation_data=(bad, y))
    assert history.best_epoch == 3
    assert "epoch 3 cannot be the best one, its validation has loss = nan, cross_entropy = nan" in str(told[-1].message)


# ----------------------------------------------------------------------------------------------------- what networks hold


class Half(nn.Module):
    """In bfloat16 within."""

    def __init__(self):
        super().__init__()
        self.inner = net(nn.SiLU()).bfloat16()

    def forward(self, x):
        return self.inner(x.bfloat16()).float()


def test_weights_in_bfloat16_are_trained_and_resumed(data, tmp_path):
    whole = of_torch(Half())
    trainer_of(whole, Channel(schedule=Schedule(ramp=0.1))).fit(*data, batch_size=16, nb_epochs=4, seed=0)
    interrupted(of_torch(Half()), data, tmp_path / "half.npz")
    again = of_torch(Half())
    resumed(again, data, tmp_path / "half.npz")
    assert same(backend_for(whole).state(), backend_for(again).state())
    assert next(again.model.parameters()).dtype == torch.bfloat16


def keras_model(*layers):
    return keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(8, activation="silu"), *layers])


def of_keras(model, **settings):
    return TensorFlowV2Classifier(
        model, N_CLASSES, (FEATURES,), loss_object=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        optimizer=keras.optimizers.Adam(1e-2), clip_values=(0.0, 1.0), **settings,
    )  # fmt: skip


def test_keras_weights_in_bfloat16_are_resumed(data, tmp_path):
    def made():
        keras.utils.set_random_seed(0)
        policy = keras.DTypePolicy("bfloat16")
        return of_keras(
            keras.Sequential([
                keras.Input((FEATURES,)), keras.layers.Dense(8, activation="silu", dtype=policy),
                keras.layers.Dense(N_CLASSES, dtype=policy),
            ])
        )  # fmt: skip

    whole, again = made(), made()
    trainer_of(whole, Channel(schedule=Schedule(ramp=0.1))).fit(*data, batch_size=16, nb_epochs=4, seed=0)
    interrupted(made(), data, tmp_path / "half.npz")
    resumed(again, data, tmp_path / "half.npz")
    assert same(backend_for(whole).state(), backend_for(again).state())


def test_state_that_is_no_tensor_is_refused_by_name(data):
    class Counting(nn.SiLU):
        def get_extra_state(self):
            return {"calls": 3}

        def set_extra_state(self, state):
            pass

    with pytest.raises(ValueError, match=r"state is tensors alone, got '1\._extra_state' of type dict"):
        trainer_of(of_torch(net(Counting()))).fit(*data, nb_epochs=1)


class Remembering(nn.Module):
    """Keeps what it saw in a buffer, in a list and in a dictionary of lists."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(FEATURES, 8), nn.Linear(8, N_CLASSES)
        self.register_buffer("last", torch.zeros(8))
        self.kept = {"seen": []}

    def forward(self, x):
        hidden = self.first(x).relu()
        self.last = hidden.mean(0)
        self.kept["seen"] = [hidden]
        return self.second(hidden)


def test_a_network_that_remembers_what_it_saw_keeps_plain_tensors(data):
    model = Remembering()
    trainer_of(of_torch(model), "interval").fit(*data, batch_size=16, nb_epochs=2, seed=0, validation_data=data)
    assert type(model.last) is type(model.kept["seen"][0]) is torch.Tensor


def test_a_softmax_that_is_removed_after_the_trainer_was_made_is_gone(data):
    inputs = keras.Input((FEATURES,))
    outputs = keras.layers.Softmax()(keras.layers.Dense(N_CLASSES)(inputs))
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.Adam(1e-2), keras.losses.SparseCategoricalCrossentropy())
    classifier = KerasClassifier(model, clip_values=(0.0, 1.0))
    trainer = trainer_of(classifier)
    with pytest.raises(ValueError, match="to_logits"):
        trainer.fit(*data, nb_epochs=1)
    to_logits(classifier)
    assert len(trainer.fit(*data, nb_epochs=1).epochs) == 1


def test_a_kernel_that_is_frozen_between_two_fits_stays(data):
    model = keras_model(keras.layers.Dense(N_CLASSES))
    classifier = of_keras(model)
    trainer = trainer_of(classifier)
    trainer.fit(*data, nb_epochs=1, seed=0)
    kernel = model.layers[0].kernel
    kernel.trainable = False
    before, others = kernel.numpy(), model.layers[1].kernel.numpy()
    trainer.fit(*data, nb_epochs=1, seed=0)
    np.testing.assert_array_equal(kernel.numpy(), before)
    assert np.any(model.layers[1].kernel.numpy() != others)


def test_a_train_step_of_the_classifier_is_told_to_stand_aside(data):
    def train_step(model, images, labels):
        raise AssertionError("nobody calls it")

    (remark,) = backend_for(of_keras(keras_model(keras.layers.Dense(N_CLASSES)), train_step=train_step)).own_loss().remarks
    assert remark == "the classifier has a train_step of its own, which the retraining does not call"
    assert backend_for(of_keras(keras_model(keras.layers.Dense(N_CLASSES)))).own_loss().remarks == ()
