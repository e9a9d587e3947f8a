"""Whatever the public functions are given: they work, or they name the argument and leave the classifier as it was."""

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from art_entropic import BenchmarkPlan, EntropicTrainer, compare, evaluate, information_profile
from art_entropic.backends.errors import NoIntervalRuleError
from art_entropic.backends.registry import backend_for
from art_entropic.benchmark.plan import resolved
from art_entropic.fields import field_specs
from art_entropic.measures import MEASURES, Schedule

ARRAYS = st.sampled_from([np.zeros(0), np.zeros((2, 2)), np.array("a"), np.array([np.nan]), np.zeros((8, 2, 6, 6))])
JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.floats(-2, 2),
    st.sampled_from(
        [float("nan"), float("inf"), -float("inf"), 1e-300, 1e300, np.float64(0.1), np.int64(2), np.bool_(True), 1j]
    ),
    st.text(max_size=6),
    st.binary(max_size=3),
    st.lists(st.integers(-1, 2) | st.text(max_size=3), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(-1, 2), max_size=2),
    st.just(object()),
    ARRAYS,
)


def junk_for(*names):
    """Junk for one or two of the arguments, nothing for the others."""
    return st.lists(st.sampled_from(names), min_size=1, max_size=2, unique=True).flatmap(
        lambda chosen: st.fixed_dictionaries({name: JUNK for name in chosen})
    )


@pytest.fixture(scope="module")
def small():
    """A tiny network, some points and labels; module-wide, since a property runs it many times."""
    from art_entropic.backends.architecture import Dense, Flatten
    from art_entropic.backends.registry import framework_module

    classifier = framework_module("pytorch").build_classifier(
        (Flatten(), Dense(4), Dense(3, None)), input_shape=(6, 6, 2), nb_classes=3, clip_values=(0.0, 1.0), learning_rate=1e-2,
        seed=0,
    )  # fmt: skip
    x = np.random.default_rng(0).random((8, 2, 6, 6), np.float32)
    return classifier, x, np.arange(8) % 3


def works_or_names(act, given_, *, also=()):
    """An error must be of a kind that a caller expects and name an argument; anything else is a fault of ours."""
    try:
        return act()
    except (TypeError, ValueError, NoIntervalRuleError, *also) as error:
        named = "`" in str(error) or any(name in str(error) for name in given_)
        assert named, f"{given_} -> {type(error).__name__}: {error}"
        return None


@settings(max_examples=80)
@given(junk_for("eps", "measure", "verbose"))
def test_settings_of_a_retraining(small, given_):
    classifier = small[0]
    before = backend_for(classifier).state()
    trainer = works_or_names(lambda: EntropicTrainer(classifier, **{"eps": 0.1, "verbose": False, **given_}), given_)
    assert trainer is None or trainer.get_classifier() is classifier
    for name, array in backend_for(classifier).state().items():
        np.testing.assert_array_equal(array, before[name])


@settings(max_examples=100)
@given(
    junk_for(
        "x", "y", "batch_size", "nb_epochs", "validation_data", "seed", "scheduler", "callbacks", "early_stopping", "checkpoint"
    )
)
def test_arguments_of_fit(small, tmp_path_factory, given_):
    classifier, x, y = small
    os.chdir(tmp_path_factory.mktemp("here"))  # a name of a checkpoint is a file
    before = backend_for(classifier).state()
    trainer = EntropicTrainer(classifier, 0.1, verbose=False)
    arguments = {"x": x, "y": y, "nb_epochs": 1, "seed": 0, **given_}
    history = works_or_names(lambda: trainer.fit(**arguments), given_, also=(OSError,))
    if history is None and trainer.history is None:
        for name, array in backend_for(classifier).state().items():
            np.testing.assert_array_equal(array, before[name])


@settings(max_examples=60)
@given(junk_for(
    "x", "y", "eps", "norm", "battery", "seeds", "checks", "cascade", "measure", "transfer_from", "folder", "verbose",
))  # fmt: skip
def test_arguments_of_an_evaluation(small, tmp_path_factory, given_):
    classifier, x, y = small
    os.chdir(tmp_path_factory.mktemp("here"))
    arguments = {"x": x[:3], "y": y[:3], "eps": 0.1, "battery": "quick", "checks": False, "verbose": False, **given_}
    result = works_or_names(lambda: evaluate(classifier, **arguments), given_, also=(OSError,))
    assert result is None or 0 <= result.robust.value <= result.clean.value <= 1


@settings(max_examples=60)
@given(junk_for("x", "y", "eps", "measures", "layers", "resolution", "copies", "batch_size", "seed", "verbose"))
def test_arguments_of_an_analysis(small, given_):
    classifier, x, y = small
    arguments = {"x": x, "y": y, "eps": 0.1, "copies": 2, "verbose": False, **given_}
    profile = works_or_names(lambda: information_profile({"one": classifier}, **arguments), given_)
    assert profile is None or (profile.models == ("one",) and profile.n >= 2 and profile.rows)


@settings(max_examples=150)
@given(junk_for(*(name for name in field_specs(BenchmarkPlan) if name not in ("source", "title"))))
def test_plans(given_):
    found = works_or_names(lambda: resolved(BenchmarkPlan(**given_)), given_)
    assert found is None or (found.frameworks and found.seeds and found.n_examples >= 1 and found.eps > 0)


@pytest.mark.parametrize("measure", MEASURES.values())
@given(data=st.data(), progress=st.floats(0, 1))
def test_measures(measure, data, progress):
    given_ = data.draw(junk_for(*field_specs(measure)))
    made = works_or_names(lambda: measure(**given_), given_)
    if made is not None:
        controls = made.controls(0.1).at(progress)
        assert 0 <= controls.eps <= 0.1 * max(1, getattr(made, "eps_factor", 1)) and 0 <= controls.k <= 1


@given(junk_for(*field_specs(Schedule)))
def test_schedules(given_):
    schedule = works_or_names(lambda: Schedule(**given_), given_)
    assert schedule is None or 0 <= schedule.warmup <= 1


@given(JUNK)
def test_comparisons(results):
    assert works_or_names(lambda: compare(results), ["results"]) is None  # nothing of this is an evaluation
