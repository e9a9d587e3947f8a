import random

import numpy as np
import pytest

from art_entropic.backends import FRAMEWORKS, backend_for, framework_module
from art_entropic.defences import DEFENCES

SETTINGS = dict(eps=0.1, nb_epochs=2, batch_size=20, seed=0, learning_rate=0.02)
RUNS = [(framework, name) for framework in FRAMEWORKS for name, row in DEFENCES.items() if not row.unavailable(framework)]


def trained(framework, name, classifier, points, **change):
    x, y = points(framework, n=50)
    return DEFENCES[name].train(classifier, x, y, **{**SETTINGS, "verbose": False, **change})


@pytest.mark.parametrize(("framework", "name"), RUNS)
def test_defence_trains_the_estimator_it_is_given(framework, name, make_classifier, points, capsys):
    classifiers = [make_classifier(framework) for _ in range(2)]
    before = np.random.get_state()[1].tolist(), random.getstate()
    results = [trained(framework, name, classifier, points) for classifier in classifiers]
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


def test_natural_training_learns(framework, make_classifier, points):
    x, y = points(framework, n=50)
    result = trained(framework, "natural", make_classifier(framework), points, nb_epochs=15)
    assert np.mean(np.argmax(result.estimator.predict(x), axis=1) == y) > 0.9


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
