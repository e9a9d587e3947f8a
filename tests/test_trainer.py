"""`EntropicTrainer` on every framework: what it promises, what it refuses, and what it leaves behind."""

import importlib
import inspect

import numpy as np
import pytest
from art.defences.trainer import Trainer
from art.estimators.classification import SklearnClassifier
from sklearn.linear_model import LogisticRegression

from art_entropic._validate import check_inputs
from art_entropic.backends.architecture import Conv, Dense, Flatten, MaxPool
from art_entropic.backends.errors import NoIntervalRuleError
from art_entropic.backends.numpy import ops
from art_entropic.backends.registry import FRAMEWORKS, backend_for
from art_entropic.batches import LabelledBatch
from art_entropic.certificates import certify
from art_entropic.choosing import piecewise_linear
from art_entropic.history import TrainingDivergedError
from art_entropic.intervals import certified
from art_entropic.measures import MEASURES, Activation, Channel, Coding, Interval, Measure, Schedule
from art_entropic.trainer import EntropicTrainer

EPS = 0.1


def trainer_of(classifier, measure="interval", **hyperparameters):
    schedule = {name: hyperparameters.pop(name) for name in ("ramp", "decay") if name in hyperparameters}
    return EntropicTrainer(classifier, EPS, MEASURES[measure](schedule=Schedule(**schedule), **hyperparameters), verbose=False)


def weights(classifier):
    return list(backend_for(classifier).state().values())


def assert_same(one, two):
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture
def classifier(framework, make_classifier):
    return make_classifier(framework)


@pytest.fixture
def data(framework, points):
    return points(framework)


def test_is_an_art_trainer_with_arts_names(classifier):
    trainer = trainer_of(classifier)
    assert isinstance(trainer, Trainer) and trainer.classifier is classifier and trainer.get_classifier() is classifier
    names = set(inspect.signature(EntropicTrainer.fit).parameters)
    assert {"x", "y", "batch_size", "nb_epochs", "validation_data"} <= names


def test_retraining_certifies_what_was_not_certified_before(classifier, data):
    x, y = data
    before = certify(classifier, x, y, EPS).mean()
    history = trainer_of(classifier).fit(x, y, batch_size=16, nb_epochs=30, seed=0)
    assert before < 0.5 and certify(classifier, x, y, EPS).mean() > 0.9
    assert [epoch.epoch for epoch in history.epochs] == list(range(1, 31)) and history.best_epoch == 30
    assert history.terms("information")[-1] < max(history.terms("information"))
    assert history.epochs[0].eps < history.epochs[-1].eps == EPS


@pytest.mark.parametrize("measure", ["interval", "channel"])
def test_retraining_for_an_l2_ball_widens_the_margin_against_it(framework, make_classifier, data, measure):
    """By the bounds for the worst case, to first order for the channel: the share of points whose margin reaches beyond 0.3."""
    x, y = data

    def held(classifier):
        backend = backend_for(classifier)
        if measure == "interval":
            return certified(ops, backend.logit_bounds(x, 0.3, norm=2.0), np.eye(3)[y]).mean()
        gaps = []
        for rival in range(3):
            v = np.eye(3, dtype=np.float32)[y] - np.eye(3, dtype=np.float32)[rival]
            size = np.linalg.norm(backend.input_gradient(x, v).reshape(len(x), -1), axis=1)
            gaps.append(np.where(y == rival, np.inf, (v * backend.logits(x)).sum(axis=1) - 0.3 * size))
        return np.mean(np.min(gaps, axis=0) > 0)

    classifier = make_classifier(framework)
    before = held(classifier)
    history = EntropicTrainer(classifier, 0.3, measure, norm=2, verbose=False).fit(x, y, batch_size=16, nb_epochs=20, seed=0)
    assert history.settings["norm"] == "2" and history.settings["eps"] == 0.3
    assert before < 0.5 and held(classifier) > 0.9


@pytest.mark.parametrize("measure", ["interval", "channel"])
def test_one_seed_gives_one_result_bit_for_bit(framework, make_classifier, data, measure):
    results = []
    for seed in (3, 3, 4):
        classifier = make_classifier(framework)
        np.random.seed(len(results))  # the global generator has no say
        trainer_of(classifier, measure=measure).fit(*data, batch_size=16, nb_epochs=2, seed=seed)
        results.append(weights(classifier))
    assert_same(results[0], results[1])
    assert any(np.any(a != b) for a, b in zip(results[0], results[2], strict=True))


class Counting(np.random.Generator):
    """Counts the numbers that it is asked for."""

    drawn = 0

    def random(self, size=None, *args):
        self.drawn += int(np.prod(size))
        return super().random(size, *args)


@pytest.mark.parametrize(("measure", "numbers"), [("interval", 0), ("channel", 6 * 73), ("coding", 6 * 73), ("activation", 0)])
def test_noise_is_drawn_where_it_is_read_from_one_stream(classifier, data, measure, numbers):
    x, y = data
    rng = Counting(np.random.PCG64(0))
    batch = trainer_of(classifier, measure)._batch(LabelledBatch(x[:6], y[:6]), rng)
    assert rng.drawn == numbers
    if numbers:  # as the published retrainings drew
        same = np.random.default_rng(0)
        np.testing.assert_array_equal(batch.ball_noise, same.random(x[:6].shape, np.float32) * 2 - 1)
        np.testing.assert_array_equal(batch.class_noise, same.random(6, np.float32))
    else:
        assert batch.ball_noise is None and batch.class_noise is None


def test_an_interrupted_retraining_goes_on_to_the_same_weights(framework, make_classifier, data, tmp_path):
    def run(callbacks=(), resume=None, checkpoint=None):
        classifier = make_classifier(framework)
        trainer = trainer_of(classifier)
        if resume is not None:
            trainer.resume(resume)
        history = trainer.fit(
            *data, batch_size=20, nb_epochs=6, seed=1, validation_data=data, callbacks=callbacks, checkpoint=checkpoint
        )
        return weights(classifier), history

    class Killed(Exception):
        pass

    def kill(epoch):
        if epoch.epoch == 4:
            raise Killed

    whole, history = run()
    with pytest.raises(Killed):
        run([kill], checkpoint=tmp_path / "half.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["half.npz"]
    resumed, again = run(resume=tmp_path / "half.npz")
    assert_same(whole, resumed)
    assert [e.terms for e in history.epochs] == [e.terms for e in again.epochs]
    assert history.best_epoch == again.best_epoch


def test_resume_refuses_other_settings_and_other_networks(framework, make_classifier, data, tmp_path):
    trainer = trainer_of(make_classifier(framework))
    with pytest.raises(RuntimeError, match="nothing to save"):
        trainer.save(tmp_path / "early.npz")
    trainer.fit(*data, nb_epochs=1, seed=0)
    trainer.save(tmp_path / "a.npz")
    with pytest.raises(ValueError, match=r"`beta` must be as in the checkpoint"):
        trainer_of(make_classifier(framework), beta=0.7).resume(tmp_path / "a.npz")
    with pytest.raises(ValueError, match=r"`norm` must be as in the checkpoint .*: 'inf', got '2'"):
        EntropicTrainer(make_classifier(framework), EPS, Interval(), norm=2, verbose=False).resume(tmp_path / "a.npz")
    other = make_classifier(framework, architecture=(Flatten(), Dense(3, None)))
    with pytest.raises(ValueError, match="holds weights that do not fit the network of `classifier`"):
        trainer_of(other).resume(tmp_path / "a.npz")
    resumed = trainer_of(make_classifier(framework))
    resumed.resume(tmp_path / "a.npz")
    with pytest.raises(ValueError, match="`nb_epochs` must be as in"):
        resumed.fit(*data, nb_epochs=2, seed=0)
    np.savez(tmp_path / "other.npz", x=1)
    with pytest.raises(ValueError, match="not a checkpoint"):
        trainer_of(make_classifier(framework)).resume(tmp_path / "other.npz")
    with pytest.raises(FileNotFoundError):
        trainer_of(make_classifier(framework)).resume(tmp_path / "none.npz")


def test_best_epoch_is_the_one_with_the_lowest_validation_loss_at_full_strength(classifier, data):
    # A learning rate that explodes late makes an early epoch the best.
    states = {}
    history = trainer_of(classifier, ramp=0.25).fit(
        *data, batch_size=32, nb_epochs=8, validation_data=data, seed=0,
        scheduler=lambda epoch: 0.01 if epoch < 6 else 0.5,
        callbacks=[lambda epoch: states.update({epoch.epoch: weights(classifier)})],
    )  # fmt: skip
    losses = {e.epoch: e.validation["loss"] for e in history.epochs if (e.eps, e.k) == (EPS, 0.5)}
    assert set(losses) == {2, 3, 4, 5, 6, 7, 8}
    assert history.best_epoch == min(losses, key=losses.get) < 8
    assert_same(weights(classifier), states[history.best_epoch])
    assert [e.learning_rate for e in history.epochs] == pytest.approx([0.01] * 6 + [0.5] * 2)


def test_early_stopping_and_callbacks_end_the_training(framework, make_classifier, data):
    worse = lambda epoch: 0.5 if epoch >= 3 else 0.01  # noqa: E731
    history = trainer_of(make_classifier(framework), ramp=0.1).fit(
        *data, nb_epochs=40, validation_data=data, early_stopping=3, scheduler=worse, seed=0
    )
    assert history.stopped_early and len(history.epochs) == history.best_epoch + 3
    history = trainer_of(make_classifier(framework)).fit(*data, nb_epochs=9, callbacks=[lambda epoch: epoch.epoch == 2], seed=0)
    assert history.stopped_early and len(history.epochs) == 2


def test_labels_inputs_and_the_last_batch_come_as_they_like(framework, make_classifier, points):
    x, y = points(framework, n=33)  # 16, 16 and a single one, which batch statistics could not use
    results = []
    for inputs, labels in ((x, y), (x.astype(np.float64), np.eye(3)[y]), (x, y[:, None].astype(np.uint8))):
        classifier = make_classifier(framework)
        trainer_of(classifier).fit(inputs, labels, batch_size=16, nb_epochs=1, seed=0)
        results.append(weights(classifier))
    assert_same(results[0], results[1])
    assert_same(results[0], results[2])


def test_fit_generator_sees_every_batch(classifier, data):
    from art.data_generators import NumpyDataGenerator

    x, y = data
    generator = NumpyDataGenerator(x, np.eye(3)[y], batch_size=16, drop_remainder=False, shuffle=False)
    history = trainer_of(classifier).fit_generator(generator, nb_epochs=20, validation_data=data, seed=0)
    assert len(history.epochs) == 20 and certify(classifier, x, y, EPS).mean() > 0.5


def test_predict_is_chunked_and_that_of_the_classifier(classifier, data):
    x, _ = data
    np.testing.assert_allclose(trainer_of(classifier).predict(x, batch_size=7), classifier.predict(x), atol=1e-5)


def test_divergence_restores_the_last_finite_weights_and_says_where(classifier, data):
    kept = []

    def poison(epoch):
        kept.append(weights(classifier))
        if epoch.epoch == 2:
            backend = backend_for(classifier)
            backend.load_state({name: array * np.float32(np.inf) for name, array in backend.state().items()})

    with pytest.raises(TrainingDivergedError, match=r"epoch 3, step 1: .*epoch 2.*smaller learning rate"):
        trainer_of(classifier).fit(*data, batch_size=32, nb_epochs=5, seed=0, callbacks=[poison])
    assert_same(weights(classifier), kept[-1])


def bad_inputs(x, y):
    nan, outside = x.copy(), x.copy()
    nan[3, 0] = np.nan
    outside[0, 0] = 1.5
    soft = np.full((len(x), 3), 1 / 3)
    return {
        "empty": (x[:0], y[:0], {}, "`x` must hold at least one example"),
        "rank": (x.reshape(len(x), -1), y, {}, r"`x` must have shape \(n, "),
        "shape": (x[:, :, :5], y, {}, r"`x` must have shape \(n, "),
        "nan": (nan, y, {}, "`x` must be finite, got .* the first at index"),
        "outside": (outside, y, {}, "`x` must lie within `clip_values`"),
        "strings": (x.astype(str), y, {}, "`x` must be an array of real numbers"),
        "length": (x, y[:-1], {}, "`y` must hold one label for each"),
        "range": (x, np.where(y == 2, 3, y), {}, "`y` must hold classes 0 to 2, got 3 at index"),
        "negative": (x, y - 1, {}, "`y` must hold classes 0 to 2, got -1"),
        "soft": (x, soft, {}, "soft labels are not supported"),
        "fraction": (x, y + 0.5, {}, "whole class indices"),
        "batch_size": (x, y, {"batch_size": 0}, "`batch_size` must be at least 1, got 0"),
        "nb_epochs": (x, y, {"nb_epochs": -1}, "`nb_epochs` must be at least 1, got -1"),
        "nb_epochs_kind": (x, y, {"nb_epochs": 1.5}, "`nb_epochs` must be a whole number"),
        "early_stopping": (x, y, {"early_stopping": 2}, "`early_stopping` needs `validation_data`"),
        "validation": (x, y, {"validation_data": (x, y + 1)}, "`validation y` must hold classes"),
        "validation_kind": (x, y, {"validation_data": x}, r"`validation_data` must be a pair"),
        "scheduler": (x, y, {"scheduler": "cosine"}, "`scheduler` must be a callable"),
        "seed": (x, y, {"seed": -1}, "`seed` must be a whole number"),
        "checkpoint": (x, y, {"checkpoint": ""}, "`checkpoint` must be the path of a file, got ''"),
        "checkpoint_zero": (x, y, {"checkpoint": "a\0b"}, r"`checkpoint` must be the path of a file, got 'a\\x00b'"),
        "checkpoint_folder": (x, y, {"checkpoint": "."}, "`checkpoint` must be the path of a file, got '.'"),
        "checkpoint_nowhere": (x, y, {"checkpoint": "no/folder/a.npz"}, "`checkpoint` must be in a folder that exists"),
        "unknown": (x, y, {"epochs": 3}, "unexpected keyword argument 'epochs'"),
    }


def test_a_feature_outside_its_own_range_is_named_beside_one_of_large_numbers():
    clip_values = (np.zeros(2, np.float32), np.array([1, 1e6], np.float32))
    x = np.array([[0.5, 5e5], [1.9, 5e5]], np.float32)
    with pytest.raises(ValueError, match="`x` must lie within `clip_values`"):
        check_inputs(x, input_shape=(2,), clip_values=clip_values)
    rounded = np.array([[np.nextafter(np.float32(1), np.float32(2)), 5e5]], np.float32)
    np.testing.assert_array_equal(check_inputs(rounded, input_shape=(2,), clip_values=clip_values), [[1, 5e5]])


def test_bad_input_is_named_before_any_work(classifier, data):
    before = weights(classifier)
    for name, (x, y, kwargs, message) in bad_inputs(*data).items():
        with pytest.raises((ValueError, TypeError), match=message):
            trainer_of(classifier).fit(x, y, **{"nb_epochs": 1, **kwargs})
            pytest.fail(f"{name} was taken")
    assert_same(weights(classifier), before)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"eps": 0.0}, r"`eps` must be positive and in the units of `clip_values` \(0, 1\), got 0.0"),
        ({"eps": -0.1}, "`eps` must be positive"),
        ({"eps": float("nan")}, "`eps` must be finite"),
        ({"eps": 8}, r"`eps` must not exceed the range 1 of .*did you mean 8/255 = 0.0314"),
        ({"eps": "0.1"}, "`eps` must be a number"),
        ({"norm": 1}, r"`norm` must be 'inf', np\.inf or 2, got 1"),
        ({"norm": "l2"}, r"`norm` must be 'inf', np\.inf or 2, got 'l2'"),
        (
            {"norm": 2, "eps": 9},
            r"`eps` must not exceed 8\.48528, the largest L2 distance between two points within `clip_values`, got 9",
        ),
        (
            {"measure": "entropy"},
            "`measure` must be one of 'interval', 'linear', 'channel', 'coding', 'activation', got 'entropy'",
        ),
        ({"measure": Interval}, r"`measure` must be a measure, not its class: write Interval\(\), got <class"),
        ({"measure": Measure(beta=0.1)}, r"`measure` must be None, one of 'interval', .* got Measure\(beta=0.1\)"),
        ({"eps": 10**400}, "`eps` must be finite"),
        ({"measure": 0.3}, r"`measure` must be None, one of 'interval', .* or one of Interval\(\), .*, got 0.3"),
        ({"measure": Interval(eps_factor=100.0)}, r"`eps_factor` of Interval\(eps_factor=100.0\) does not fit `eps` 0.1"),
        ({"beta": 0.3}, "unexpected keyword argument 'beta'"),
    ],
)
def test_settings_are_checked_when_the_trainer_is_made(classifier, arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        EntropicTrainer(classifier, **{"eps": EPS, **arguments})


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Interval(k=1.5), r"`k` must be a number in \[0, 1\], got 1.5"),
        (lambda: Interval(beta=-1.0), "`beta` must be a number of at least 0, got -1.0"),
        (lambda: Channel(beta="much"), "`beta` must be a number of at least 0, got 'much'"),
        (lambda: Channel(beta=float("inf")), "`beta` must be finite, got inf"),
        (lambda: Coding(k=0.5), "'k'"),
        (lambda: Channel(layers="dense"), "'layers'"),
        (lambda: Coding(relative=True), "'relative'"),
        (lambda: Activation(eps_factor=2.0), "'eps_factor'"),
        (lambda: Interval(layers=[]), r"`layers` must be .* at least one layer's name, got \(\)"),
        (lambda: Interval(layers="conv"), "`layers` must be one of 'all', 'dense', 'logits', or a tuple of .* got 'conv'"),
        (lambda: Interval(layers=("conv", 1)), r"`layers` must be .* a tuple of at least one layer's name, got \('conv', 1\)"),
        (lambda: Interval(relative=1), "`relative` must be True or False, got 1"),
        (lambda: Interval(eps_factor=0.0), "`eps_factor` must be a positive number, got 0.0"),
        (lambda: Interval(read_share=0.0), r"`read_share` must be a number in \(0, 1\], got 0.0"),
        (lambda: Interval(read_share=1.1), r"`read_share` must be a number in \(0, 1\], got 1.1"),
        (lambda: Interval(resolution=0.0), "`resolution` must be a positive number, got 0.0"),
        (lambda: Interval(pure=1.1), r"`pure` must be a share of the ramp in \[0, 1\], got 1.1"),
        (lambda: Interval(schedule=0.3), "`schedule` must be a Schedule, got 0.3"),
        (lambda: Interval(schedule=Schedule(warmup=0.5)), r"`warmup` \+ `ramp` must not exceed 1, got 0.5 \+ 0.6"),
        (lambda: Schedule(ramp=2.0), r"`ramp` must be a share of the retraining in \[0, 1\], got 2.0"),
        (lambda: Schedule(warmup=-0.1), r"`warmup` must be a share of the retraining in \[0, 1\], got -0.1"),
        (lambda: Schedule(decay=1.5), r"`decay` must be a share of the retraining in \[0, 1\], got 1.5"),
    ],
)
def test_a_measure_refuses_what_has_no_meaning_for_it(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_measures_are_values():
    assert Interval(layers=["a", "b"]) == Interval(layers=("a", "b")) and Interval() != Channel()
    assert Interval(beta=np.float32(0.5)).beta == 0.5 and type(Interval(beta=1).beta) is float
    assert repr(Interval(beta=0.3, schedule=Schedule(ramp=0.2))) == "Interval(beta=0.3, schedule=Schedule(ramp=0.2))"
    assert len({Interval(), Interval(beta=0.1), Channel()}) == 2


def test_another_kind_of_estimator_is_refused_by_name():
    model = LogisticRegression().fit(np.eye(3), [0, 1, 2])
    with pytest.raises(TypeError, match="PyTorchClassifier, TensorFlowV2Classifier, KerasClassifier, got ScikitlearnLogistic"):
        EntropicTrainer(SklearnClassifier(model), 0.1)


def test_an_estimator_without_optimizer_or_loss_is_refused(framework, classifier, data):
    loss = "_loss" if framework == "pytorch" else "_loss_object"
    for attribute, word in (("_optimizer", "optimizer"), (loss, "loss")):
        kept = getattr(classifier, attribute)
        setattr(classifier, attribute, None)
        with pytest.raises(ValueError, match=rf"(?i)`classifier` must have a.*{word}"):
            trainer_of(classifier)
        setattr(classifier, attribute, kept)


def test_preprocessing_defences_are_refused_by_name(classifier):
    from art.defences.preprocessor import FeatureSqueezing

    classifier.preprocessing_defences = [FeatureSqueezing((0, 1))]
    classifier._update_preprocessing_operations()
    with pytest.raises(ValueError, match="preprocessing defence FeatureSqueezing"):
        trainer_of(classifier)


def test_a_network_that_returns_probabilities_is_refused(framework, classifier, data, monkeypatch):
    backend = type(backend_for(classifier))
    logits = backend.logits

    def probabilities(self, x, batch_size=256):
        z = np.exp(logits(self, x))
        return z / z.sum(1, keepdims=True)

    for name in ("logits", "predict"):
        monkeypatch.setattr(backend, name, probabilities)
    with pytest.raises(ValueError, match="must return logits, got probabilities"):
        trainer_of(classifier).fit(*data, nb_epochs=1)


def test_nothing_is_left_behind_in_pytorch(make_classifier, points, tmp_path, monkeypatch):
    import torch

    monkeypatch.chdir(tmp_path)
    classifier = make_classifier("pytorch")
    model = classifier.model.eval()
    model[0].train()  # a mode of its own survives
    generator = torch.get_rng_state()
    trainer_of(classifier).fit(*points("pytorch"), nb_epochs=2, seed=0, validation_data=points("pytorch"))
    assert [module.training for module in model.modules()] == [False, True] + [False] * (len(list(model.modules())) - 2)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    torch.testing.assert_close(torch.get_rng_state(), generator)
    assert list(tmp_path.iterdir()) == []


def test_a_pytorch_scheduler_is_stepped_each_epoch(make_classifier, points):
    import torch

    classifier = make_classifier("pytorch", learning_rate=0.01)
    scheduler = torch.optim.lr_scheduler.StepLR(classifier.optimizer, 1, 0.5)
    history = trainer_of(classifier).fit(*points("pytorch"), nb_epochs=3, scheduler=scheduler, seed=0)
    assert [e.learning_rate for e in history.epochs] == pytest.approx([0.01, 0.005, 0.0025])


def test_weights_are_saved_in_the_frameworks_own_safe_format_and_load_back(framework, make_classifier, tmp_path):
    one, two = backend_for(make_classifier(framework, seed=1)), backend_for(make_classifier(framework, seed=2))
    path = tmp_path / f"weights{one.weights_suffix}"
    one.save_weights(path)
    two.load_weights(path)
    assert_same(one.state().values(), two.state().values())


def test_both_frameworks_start_from_the_same_weights(make_classifier, points):
    logits = [backend_for(make_classifier(name)).logits(points(name)[0]) for name in FRAMEWORKS]
    np.testing.assert_allclose(*logits, atol=1e-5)


# --------------------------------------------------------------------------------- networks that change while they train


def with_batch_norm_and_dropout(framework):
    if framework == "pytorch":
        import torch
        from art.estimators.classification import PyTorchClassifier
        from torch import nn

        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(64, 3))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        return PyTorchClassifier(model, nn.CrossEntropyLoss(), (2, 6, 6), 3, optimizer, clip_values=(0.0, 1.0))
    return keras_classifier()


def keras_classifier():
    import keras
    from art.estimators.classification import KerasClassifier

    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            keras.layers.Conv2D(4, 3),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(3),
        ]
    )
    model.compile(keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return KerasClassifier(model, use_logits=True, clip_values=(0.0, 1.0))


@pytest.mark.parametrize("measure", ["interval", "channel"])
def test_batch_norm_and_dropout_train_and_resume_bit_for_bit(framework, data, tmp_path, measure):
    def run(epochs_before_stop=None, resume=False):
        classifier = with_batch_norm_and_dropout(framework)
        trainer = trainer_of(classifier, measure=measure)
        if resume:
            trainer.resume(tmp_path / "half.npz")
        stop = [lambda epoch: epoch.epoch == epochs_before_stop]
        trainer.fit(*data, batch_size=20, nb_epochs=4, seed=1, callbacks=stop, checkpoint=tmp_path / "half.npz")
        return weights(classifier)

    before = weights(with_batch_norm_and_dropout(framework))
    whole = run()
    assert all(np.any(a != b) for a, b in zip(whole, before, strict=True)), "a weight or a running statistic did not move"
    run(epochs_before_stop=2)
    assert_same(run(resume=True), whole)


def test_a_subclassed_keras_model_trains_with_channel_and_is_refused_by_interval(points):
    import keras
    from art.estimators.classification import TensorFlowV2Classifier

    from art_entropic.backends.errors import NoIntervalRuleError

    class Mine(keras.Model):
        def __init__(self):
            super().__init__(name="mine")
            self.hidden, self.out = keras.layers.Dense(16, activation="silu"), keras.layers.Dense(3)

        def call(self, x):
            return self.out(self.hidden(keras.ops.reshape(x, (-1, 72))))

    keras.utils.set_random_seed(0)
    model = Mine()
    x, y = points("tensorflow")
    model(x[:1])
    classifier = TensorFlowV2Classifier(
        model, 3, (6, 6, 2), keras.losses.SparseCategoricalCrossentropy(from_logits=True), keras.optimizers.Adam(0.01),
        clip_values=(0.0, 1.0),
    )  # fmt: skip
    before = weights(classifier)
    with pytest.raises(NoIntervalRuleError, match=r"Mine in layer 'mine'.*measure=\"channel\""):
        trainer_of(classifier).fit(x, y, nb_epochs=1)
    assert_same(weights(classifier), before)
    history = trainer_of(classifier, measure="channel").fit(x, y, batch_size=16, nb_epochs=10, seed=0)
    assert history.terms("accuracy")[-1] > 0.9


RELU = (Conv(3, 3, padding=1), MaxPool(), Flatten(), Dense(8), Dense(3, None))
SILU = (Conv(3, 3, padding=1, activation="silu"), Flatten(), Dense(8, "silu"), Dense(3, None))


@pytest.mark.parametrize(
    "architecture, eps, measure", [(RELU, 0.1, "interval"), (RELU, 0.03, "channel"), (SILU, 0.1, "channel")]
)
def test_the_measure_is_chosen_by_network_and_radius(framework, make_classifier, data, architecture, eps, measure):
    classifier = make_classifier(framework, architecture=architecture)
    history = EntropicTrainer(classifier, eps, verbose=False).fit(*data, nb_epochs=1, seed=0)
    assert history.settings["measure"] == measure and history.settings["k"] == MEASURES[measure]().k
    assert history.settings["eps"] == pytest.approx(eps * MEASURES[measure]().eps_factor)


def test_an_l2_ball_gets_the_first_order_measure(framework, make_classifier, data):
    classifier = make_classifier(framework, architecture=RELU)
    history = EntropicTrainer(classifier, 0.5, norm="2", verbose=False).fit(*data, nb_epochs=1, seed=0)
    assert history.settings["measure"] == "channel" and "each unit spend the whole radius" in history.settings["reason"]


def test_a_network_without_interval_rules_gets_the_first_order_measure(make_classifier, points, monkeypatch):
    classifier = make_classifier("pytorch", architecture=RELU)

    def no_rule(*_):
        raise NoIntervalRuleError("layer", "Softmax")

    monkeypatch.setattr(type(backend_for(classifier)), "intervals", no_rule)
    history = EntropicTrainer(classifier, EPS, verbose=False).fit(*points("pytorch"), nb_epochs=1, seed=0)
    assert history.settings["measure"] == "channel"


def test_a_network_too_deep_for_bounds_in_float32_gets_the_first_order_measure(framework, make_classifier, data):
    # He's weights keep the scale of a value; each layer of 256 units widens a box about tenfold.
    deep = (Flatten(), *(Dense(256) for _ in range(48)), Dense(3, None))
    classifier = make_classifier(framework, architecture=deep)
    before = weights(classifier)
    with pytest.raises(ValueError, match=r"`measure` must not be 'interval' .* overflow float32 in layer '.*: 'channel'"):
        trainer_of(classifier).fit(*data, nb_epochs=1, seed=0)
    assert_same(weights(classifier), before)
    history = EntropicTrainer(classifier, EPS, verbose=False).fit(*data, nb_epochs=1, seed=0)
    assert history.settings["measure"] == "channel"


def test_what_is_asked_for_goes_before_what_the_measure_brings(classifier, data):
    wishes = {"beta": 0.3, "k": 0.2, "resolution": 2.0, "read_share": 0.75}
    asked = Interval(**wishes, eps_factor=1.2, schedule=Schedule(ramp=0.1), layers="logits")
    with pytest.raises(ValueError, match="`layers` must be among the layers of the network"):
        EntropicTrainer(classifier, EPS, Interval(layers=["x"]), verbose=False).fit(*data, nb_epochs=1)
    history = EntropicTrainer(classifier, EPS, asked, verbose=False).fit(*data, nb_epochs=1)
    expected = {**wishes, "measure": "interval", "layers": "logits", "eps": EPS * 1.2, "ramp": 0.1, "pure_phase": 0.05}
    assert expected.items() <= history.settings.items()


def test_the_learning_rate_falls_over_the_last_half_and_comes_back(classifier, data):
    rate = backend_for(classifier).learning_rate
    history = trainer_of(classifier).fit(*data, nb_epochs=4, seed=0)
    assert [epoch.learning_rate for epoch in history.epochs] == pytest.approx([rate, rate, rate, rate / 2])
    assert backend_for(classifier).learning_rate == pytest.approx(rate)
    history = trainer_of(classifier, decay=0.0).fit(*data, nb_epochs=2, seed=0)
    assert [epoch.learning_rate for epoch in history.epochs] == pytest.approx([rate, rate])


def test_a_schedule_of_the_users_own_goes_before_the_decay(classifier, data):
    with pytest.raises(ValueError, match=r"`decay` must be 0 beside .*, got decay=0\.2 and a `scheduler`"):
        trainer_of(classifier, decay=0.2).fit(*data, nb_epochs=1, scheduler=lambda epoch: 0.01)
    history = trainer_of(classifier).fit(*data, nb_epochs=2, scheduler=lambda epoch: 0.01 / (epoch + 1), seed=0)
    assert [epoch.learning_rate for epoch in history.epochs] == pytest.approx([0.01, 0.005])


@pytest.mark.parametrize("measure", ["coding", "activation"])
def test_the_other_measures_train_and_move_what_they_read(classifier, data, measure):
    history = trainer_of(classifier, measure=measure, beta=5.0, ramp=0.0).fit(*data, nb_epochs=5, batch_size=32, seed=0)
    information = history.terms("information")
    assert information[-1] < information[0]
    if measure == "activation":
        history = trainer_of(classifier, measure=measure, beta=-1.0, ramp=0.0).fit(*data, nb_epochs=5, batch_size=32, seed=0)
        assert history.terms("information")[-1] > information[-1]


def test_parameter_groups_keep_their_own_rates(make_classifier, points):
    torch = pytest.importorskip("torch")
    classifier = make_classifier("pytorch", architecture=RELU)
    *backbone, head, bias = classifier.model.parameters()
    groups = [{"params": backbone, "lr": 1e-5}, {"params": [head, bias], "lr": 1e-2}]
    classifier._optimizer = torch.optim.Adam(groups)
    seen = []
    handle = classifier.optimizer.register_step_pre_hook(
        lambda optimizer, *_: seen.append([group["lr"] for group in optimizer.param_groups])
    )
    trainer_of(classifier).fit(*points("pytorch"), nb_epochs=2, batch_size=32, seed=0)
    handle.remove()
    np.testing.assert_allclose(seen, np.outer([1, 1, 1, 0.5], [1e-5, 1e-2]))
    assert [group["lr"] for group in classifier.optimizer.param_groups] == [1e-5, 1e-2]


def test_a_retraining_with_named_layers_is_resumed(framework, make_classifier, data, tmp_path):
    name = backend_for(make_classifier(framework)).layer_names()[0]
    path, ends = tmp_path / "half.npz", []
    for stop in (None, 1):
        classifier = make_classifier(framework)
        trainer = trainer_of(classifier, layers=[name])
        callbacks = [lambda epoch, stop=stop: epoch.epoch == stop]
        trainer.fit(*data, nb_epochs=2, batch_size=32, seed=0, checkpoint=path, callbacks=callbacks)
        if stop:
            classifier = make_classifier(framework)
            trainer = trainer_of(classifier, layers=[name])
            trainer.resume(path)
            trainer.fit(*data, nb_epochs=2, batch_size=32, seed=0)
        ends.append(weights(classifier))
    assert_same(*ends)


@pytest.fixture(params=["operations", "gradients"])
def known_by(request, monkeypatch, framework):
    """Two ways to know a piecewise linear network: the second one where an operation has no rule."""
    if request.param == "gradients":

        def refuse(*_):
            raise NoIntervalRuleError("layer", "operation")

        monkeypatch.setattr(backend_class(framework), "curved_operation", refuse)
    else:
        monkeypatch.setattr(backend_class(framework), "input_gradient", None)  # which differs from call to call on a GPU


def backend_class(framework):
    module = importlib.import_module(f"art_entropic.backends.{FRAMEWORKS[framework].package}.backend")
    return getattr(module, {"pytorch": "TorchBackend", "tensorflow": "TensorFlowBackend"}[framework])


@pytest.mark.usefixtures("known_by")
def test_ties_in_a_constant_background_do_not_hide_that_a_network_is_piecewise_linear(framework, make_classifier, points):
    pooled = (Conv(8, 3, padding=1), MaxPool(), Conv(8, 3, padding=1), Flatten(), Dense(8), Dense(3, None))
    x, _ = points(framework)
    x = np.where(x > 0.5, x, 0.0).astype(np.float32)
    assert piecewise_linear(backend_for(make_classifier(framework, architecture=pooled)), x)
    assert not piecewise_linear(backend_for(make_classifier(framework, architecture=SILU)), x)


@pytest.mark.usefixtures("known_by")
def test_smooth_networks_are_known_far_from_zero_too(framework, make_classifier, points):
    """Where a step of 1e-5 would be lost to the rounding of x."""
    x, _ = points(framework)
    classifier = make_classifier(framework, architecture=(Flatten(), Dense(8, "silu"), Dense(3, None)), clip_values=None)
    backend = backend_for(classifier)
    state = backend.state()
    kernel, bias = list(state)[:2]
    state[bias] = -1000.0 * state[kernel].sum(axis=1 if framework == "pytorch" else 0)
    backend.load_state(state)
    assert not piecewise_linear(backend, x + 1000.0)
