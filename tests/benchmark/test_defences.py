import random

import numpy as np
import pytest

from art_entropic import trainer
from art_entropic.backends.registry import FRAMEWORKS, backend_for, framework_module
from art_entropic.benchmark import course
from art_entropic.benchmark.augmentation import AUGMENTATIONS, Augmentation, flip_and_crop
from art_entropic.benchmark.defences import DEFENCES, Passes
from art_entropic.checkpoint import write_checkpoint
from art_entropic.measures import MEASURES, Channel, Interval

SETTINGS = dict(eps=0.1, nb_epochs=2, batch_size=20, seed=0, learning_rate=0.02)
RUNS = [(framework, name) for framework in FRAMEWORKS for name, row in DEFENCES.items() if not row.unavailable(framework)]


def trained(framework, name, classifier, points, **change):
    x, y = points(framework, n=50)
    return DEFENCES[name].train(classifier, x, y, **{**SETTINGS, "verbose": False, **change})


@pytest.mark.parametrize(("framework", "name"), RUNS)
def test_defence_trains_the_estimator_it_is_given(framework, name, make_classifier, points, capsys):
    classifiers = [make_classifier(framework) for _ in range(2)]
    before = np.random.get_state()[1].tolist(), random.getstate()
    told = []
    results = [trained(framework, name, classifier, points, on_epoch=told.append) for classifier in classifiers]
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before
    assert capsys.readouterr().err == ""
    start = backend_for(make_classifier(framework)).state()
    first, second = (backend_for(result.estimator).state() for result in results)
    assert any(not np.array_equal(first[key], start[key]) for key in start)
    for key in first:
        np.testing.assert_array_equal(first[key], second[key], err_msg=f"{key} differs between two runs with one seed")
        assert np.isfinite(first[key]).all()
    np.testing.assert_allclose(backend_for(results[0].estimator).learning_rate, 0.02, rtol=1e-6)
    assert len(results[0].history) == (2 if DEFENCES[name].ours else 0)
    assert all(isinstance(note, str) for note in results[0].notes)
    assert told == 2 * ([0, 1, 2] if DEFENCES[name].ours else [0, 1])
    wanted = (DEFENCES[name].passes or Passes(0, 0)).times(2 * 3)  # 2 epochs of 50 points in batches of 20
    if DEFENCES[name].ours:
        row = MEASURES[results[0].settings["trainer.measure"]]()
        wanted = tuple(6 * (1 + row.read_share * (number - 1)) for number in row.passes)
    assert results[0].passes == wanted
    assert bool(results[0].settings) == DEFENCES[name].ours
    assert all(key.startswith("trainer.") for key in results[0].settings)


def test_natural_training_learns(framework, make_classifier, points):
    x, y = points(framework, n=50)
    result = trained(framework, "natural", make_classifier(framework), points, nb_epochs=15)
    assert np.mean(np.argmax(result.estimator.predict(x), axis=1) == y) > 0.9


def counted(network, train):
    """Forward and backward passes of a PyTorch module while `train` runs."""
    counts = {"forward": 0, "backward": 0}

    def count_backward(gradient):
        counts["backward"] += 1

    def count_forward(module, inputs, output):
        counts["forward"] += 1
        if output.requires_grad:
            output.register_hook(count_backward)

    last = list(network.modules())[-1]
    handle = last.register_forward_hook(count_forward)
    train()
    handle.remove()
    return Passes(**counts)


@pytest.mark.parametrize("name", [name for name, row in DEFENCES.items() if row.passes is not None])
def test_passes_of_a_batch_are_those_that_art_runs(name, make_classifier, points):
    torch = pytest.importorskip("torch")
    classifier = make_classifier("pytorch")
    assert isinstance(list(classifier.model.modules())[-1], torch.nn.Linear)
    found = counted(classifier.model, lambda: trained("pytorch", name, classifier, points))
    assert found == DEFENCES[name].passes.times(2 * 3)


def test_uniform_noise_trains_on_points_of_the_ball_drawn_anew_each_epoch(framework, make_classifier, points, monkeypatch):
    seen = []
    classifier = make_classifier(framework)
    twin = framework_module(framework).for_art_trainers(classifier)
    monkeypatch.setattr(type(twin), "fit", lambda self, x, y, **_: seen.append(x.copy()))
    trained(framework, "uniform_noise", classifier, points, eps=0.3)
    x, _ = points(framework, n=50)
    assert len(seen) == 2 and not np.array_equal(*seen)
    for noisy in seen:
        assert noisy.dtype == np.float32 and noisy.min() >= 0 and noisy.max() <= 1
        np.testing.assert_array_less(np.abs(noisy - x), 0.3 + 1e-6)
        np.testing.assert_allclose(np.mean(noisy - x), 0.0, atol=0.03)
        assert np.abs(noisy - x).max() > 0.29


AUGMENTED = [run for run in RUNS if run[1] in ("natural", "uniform_noise", "entropic", "madry_pgd", "fbf", "trades")]


@pytest.mark.parametrize(("framework", "name"), AUGMENTED)
def test_every_trainer_sees_the_same_points_anew_in_each_epoch(framework, name, make_classifier, points, monkeypatch):
    seen = []

    def grey(x, rng):
        seen.append((x.copy(), rng.random()))
        return np.full_like(x, 0.5)

    monkeypatch.setitem(AUGMENTATIONS, "flip_crop", Augmentation("grey", grey))
    result = trained(framework, name, make_classifier(framework), points, augmentation="flip_crop", eps=1e-6)
    x, _ = points(framework, n=50)
    images = np.moveaxis(x, 1, -1) if FRAMEWORKS[framework].channels_first else x
    for (given, _), _ in zip(seen, range(2), strict=True):
        np.testing.assert_array_equal(given, images)
    np.testing.assert_allclose(
        [drawn for _, drawn in seen], [np.random.default_rng([0, epoch, 3]).random() for epoch in (0, 1)]
    )
    start, state = backend_for(make_classifier(framework)).state(), backend_for(result.estimator).state()
    assert any(not np.array_equal(state[key], start[key]) for key in start)


def test_cropped_images_are_windows_of_the_mirrored_or_plain_one():
    images = np.random.default_rng(0).random((40, 5, 6, 2)).astype(np.float32)
    found = flip_and_crop(images, np.random.default_rng(1))
    assert found.shape == images.shape and found.dtype == np.float32
    sides = set()
    for image, crop in zip(images, found, strict=True):
        matches = [
            (mirrored, down, right)
            for mirrored in (False, True)
            for down in range(9)
            for right in range(9)
            if np.array_equal(
                np.pad(image[:, ::-1] if mirrored else image, ((4, 4), (4, 4), (0, 0)))[down : down + 5, right : right + 6],
                crop,
            )
        ]
        assert matches
        sides.add(matches[0][0])
    assert sides == {False, True}


@pytest.mark.parametrize(("framework", "name"), [run for run in AUGMENTED if run[1] in ("natural", "madry_pgd", "fbf")])
def test_the_best_epoch_is_kept_where_it_is_asked_for(framework, name, make_classifier, points, monkeypatch):
    states, accuracies = [], iter([0.9, 0.9, 0.2, 0.3, 0.4, 0.5, 0.4, 0.4])  # robust and clean, by epoch
    classifier = make_classifier(framework)

    def accuracy(self, x):
        states.append(backend_for(classifier).state())
        return next(accuracies)

    monkeypatch.setattr(course._Epochs, "_accuracy", accuracy)
    held = points(framework, n=10)
    result = trained(framework, name, classifier, points, nb_epochs=4, keep="best", validation_data=held)
    # The first is the best, but its radius has not grown to the full one, which natural training does not wait for.
    best = 1 if name in ("natural", "uniform_noise") else 3
    assert f"epoch {best} was chosen on 10 held-out points" in result.notes[-1]
    for key, array in backend_for(classifier).state().items():
        np.testing.assert_array_equal(array, states[2 * best - 1][key])
    assert [epoch.validation["robust_accuracy"] for epoch in result.history] == [0.9, 0.2, 0.4, 0.4]


@pytest.mark.parametrize("name", ["entropic", "madry_pgd"])
def test_a_training_goes_on_where_it_was_interrupted(framework, name, make_classifier, points, monkeypatch, tmp_path):
    asked = dict(nb_epochs=3, keep="best", augmentation="flip_crop", validation_data=points(framework, n=10))
    whole = trained(framework, name, make_classifier(framework), points, **asked)
    asked["checkpoint"] = tmp_path / "checkpoint.npz"

    class KilledError(Exception):
        """As if the process had ended there."""

    def killed(path, retraining):
        write_checkpoint(path, retraining)
        if retraining.last.epoch == 2:
            raise KilledError

    for module in (course, trainer):
        monkeypatch.setattr(module, "write_checkpoint", killed)
    with pytest.raises(KilledError):
        trained(framework, name, make_classifier(framework), points, **asked)
    monkeypatch.undo()
    told = []
    result = trained(framework, name, make_classifier(framework), points, on_epoch=told.append, **asked)
    assert told[0] == 2
    assert [epoch.validation for epoch in result.history] == [epoch.validation for epoch in whole.history]
    assert result.earlier > 0 and result.notes == whole.notes
    for key, array in backend_for(whole.estimator).state().items():
        np.testing.assert_array_equal(backend_for(result.estimator).state()[key], array, err_msg=key)


def test_the_best_epoch_needs_held_out_points(make_classifier, points):
    with pytest.raises(ValueError, match="`validation_data` must be given to keep the best epoch, got None"):
        trained("pytorch", "fbf", make_classifier("pytorch"), points, keep="best")


def test_a_measure_reaches_the_trainer_and_its_settings_come_back(framework, make_classifier, points):
    result = trained(framework, "entropic_interval", make_classifier(framework), points, measure=Interval(beta=0.25, k=0.0))
    wanted = {"trainer.measure": "interval", "trainer.beta": 0.25, "trainer.k": 0.0, "trainer.eps": 0.1}
    assert wanted.items() <= result.settings.items()
    assert [epoch.k for epoch in result.history] == [0.0, 0.0]


def test_the_pure_form_has_no_worst_case_term(make_classifier, points):
    result = trained("pytorch", "entropic_pure", make_classifier("pytorch"), points)
    wanted = {"trainer.measure": "interval", "trainer.beta": 1.0, "trainer.k": 0.0}
    assert wanted.items() <= result.settings.items()


def test_bad_measures_are_refused_before_work_starts(make_classifier, points):
    class Mine(Interval, frozen=True, kw_only=True):
        """One that a user wrote, with the name of another."""

    assert Mine().name == "interval"
    with pytest.raises(ValueError, match="`measure` must be of a class in MEASURES"):
        DEFENCES["entropic"].check_measure(make_classifier("pytorch"), 0.1, Mine())
    row = DEFENCES["entropic_interval"]
    for measure, message in [
        (Channel(), r"`measure` must be of type 'interval' for Entropic, interval, got Channel\(\)"),
        (Interval(layers=["nowhere"]), "`layers` must be among the layers of the network, .* got 'nowhere'"),
        (Interval(eps_factor=50.0), "`eps_factor` of .* does not fit `eps` 0.1"),
    ]:
        with pytest.raises(ValueError, match=message):
            row.check_measure(make_classifier("pytorch"), 0.1, measure)
    with pytest.raises(ValueError, match="`measure` must be None for FBF"):
        trained("pytorch", "fbf", make_classifier("pytorch"), points, measure=Interval())
    row.check_measure(make_classifier("pytorch"), 0.1, Interval(beta=0.0))


def test_a_comparison_without_names_has_one_entropic_row():
    assert [name for name, row in DEFENCES.items() if row.default] == ["natural", "entropic", "madry_pgd", "fbf", "trades"]


@pytest.mark.parametrize("name", ["fbf", "trades"])
def test_a_defence_that_art_lacks_is_refused_by_name(name, make_classifier, points):
    assert DEFENCES[name].unavailable("pytorch") is None
    with pytest.raises(ValueError, match=r"ART 1\.20\.1 has no .* for TensorFlow"):
        trained("tensorflow", name, make_classifier("tensorflow"), points)


@pytest.mark.parametrize("name", ["fbf", "madry_pgd", "trades"])
def test_art_trainers_train_in_training_mode(name, points):
    """A BatchNorm whose running mean moves proves it; what the module was set to comes back afterwards."""
    torch = pytest.importorskip("torch")
    from art.estimators.classification import PyTorchClassifier

    norm = torch.nn.BatchNorm2d(2)
    model = torch.nn.Sequential(norm, torch.nn.Flatten(), torch.nn.Linear(72, 3))
    model.eval()
    classifier = PyTorchClassifier(
        model,
        torch.nn.CrossEntropyLoss(),
        (2, 6, 6),
        3,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        clip_values=(0.0, 1.0),
    )
    x, y = points("pytorch", n=50)
    DEFENCES[name].train(classifier, x.astype(np.float64), y, **{**SETTINGS, "verbose": False})
    assert norm.running_mean.abs().max() > 0.05
    assert not any(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_tensorflow_traces_the_training_step_once(make_classifier, points):
    twin = framework_module("tensorflow").for_art_trainers(make_classifier("tensorflow"))
    x, y = points("tensorflow", n=50)
    for size in (10, 20, 30, 50):
        twin.fit(x[:size], np.eye(3, dtype=np.float32)[y[:size]], batch_size=size, nb_epochs=1)
    assert twin.train_step.experimental_get_tracing_count() <= 2  # once for one size, once for all


def test_bad_input_is_refused_before_work_starts(framework, make_classifier, points):
    for change, message in [
        (dict(eps=-1), "`eps` must be positive"),
        (dict(nb_epochs=0), "`nb_epochs` must be at least 1"),
        (dict(batch_size=0), "`batch_size` must be at least 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            trained(framework, "madry_pgd", make_classifier(framework), points, **change)


@pytest.mark.parametrize(("framework", "name"), [run for run in RUNS if run[1] == "entropic" or not DEFENCES[run[1]].ours])
def test_every_trainer_takes_its_steps_at_the_shared_falling_rate(framework, name, make_classifier, points, monkeypatch):
    """Where the factor is 0 nothing moves, whichever trainer takes the step."""
    shares = []

    def factor(progress, decay):
        shares.append(progress)
        return 0.0

    monkeypatch.setattr("art_entropic.schedule.decayed", factor)
    start = backend_for(make_classifier(framework)).state()
    result = trained(framework, name, make_classifier(framework), points)
    for key, array in backend_for(result.estimator).state().items():
        np.testing.assert_array_equal(array, start[key], err_msg=f"{key} moved at a learning rate of 0")
    steps = sorted(set(shares))
    np.testing.assert_allclose(steps, np.arange(6) / 6)


@pytest.mark.parametrize(("framework", "name"), [run for run in RUNS if run[1] in ("madry_pgd", "trades")])
def test_the_radius_of_pgd_trainers_grows_over_the_first_half(framework, name, make_classifier, points, monkeypatch):
    from art.attacks.evasion import ProjectedGradientDescent as PGD

    radii, generate = [], PGD.generate

    def watched(self, *arguments, **keywords):
        radii.append((self._attack.eps, self._attack.eps_step))
        return generate(self, *arguments, **keywords)

    monkeypatch.setattr(PGD, "generate", watched)
    trained(framework, name, make_classifier(framework), points)
    expected = 0.1 * np.array([0.01, 1 / 3, 2 / 3, 1, 1, 1])
    np.testing.assert_allclose(radii, np.stack([expected, expected / 4], axis=1))


@pytest.mark.parametrize(("framework", "name"), [run for run in RUNS if run[1] in ("madry_pgd", "trades", "uniform_noise")])
def test_rivals_train_on_points_of_the_l2_ball_that_leave_no_smaller_one(framework, name, make_classifier, points, monkeypatch):
    """Steps of eps/4 reach its surface, which is inside the Linf ball of the radius: there the far corner is 8.5 eps away."""
    from art.attacks.evasion import ProjectedGradientDescent as PGD

    classifier, distances, generate = make_classifier(framework, clip_values=None), [], PGD.generate

    def far(x, x_adv):
        distances.extend(np.linalg.norm((x_adv - x).reshape(len(x), -1), axis=1))

    def watched(self, x, *arguments, **keywords):
        x_adv = generate(self, x, *arguments, **keywords)
        far(x, x_adv)
        return x_adv

    def fitted(self, noisy, *arguments, **keywords):
        far(points(framework, n=50)[0], noisy)

    if name == "uniform_noise":
        monkeypatch.setattr(type(classifier), "fit", fitted)
    monkeypatch.setattr(PGD, "generate", watched)
    trained(framework, name, classifier, points, eps=0.5, norm=2, nb_epochs=3)
    assert 0.48 < max(distances) <= 0.5 + 1e-5


def test_an_l2_ball_is_refused_by_a_defence_for_linf_alone(make_classifier, points):
    with pytest.raises(ValueError, match=r"`norm` must be one that FBF \(ART\) can be trained for, only Linf, got 2"):
        trained("pytorch", "fbf", make_classifier("pytorch"), points, norm=2)


def test_the_radius_of_fbf_grows_over_the_first_half(make_classifier, points, monkeypatch):
    from art.defences.trainer import AdversarialTrainerFBFPyTorch as FBF

    radii, process = [], FBF._batch_process

    def watched(self, *arguments):
        radii.append(self._eps)
        return process(self, *arguments)

    monkeypatch.setattr(FBF, "_batch_process", watched)
    trained("pytorch", "fbf", make_classifier("pytorch"), points)
    np.testing.assert_allclose(radii, 0.1 * np.array([0.01, 1 / 3, 2 / 3, 1, 1, 1]))
