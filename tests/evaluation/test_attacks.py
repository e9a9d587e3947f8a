import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from art_entropic._validate import norm_of
from art_entropic.backends.architecture import Conv, Dense, Flatten, MaxPool
from art_entropic.backends.numpy import ops as numpy_ops
from art_entropic.backends.registry import FRAMEWORKS, backend_for, framework_module
from art_entropic.evaluation.attacked import Trail
from art_entropic.evaluation.attacks import ATTACKS, BATTERIES, ENTROPIC_WEIGHTS, Attack, CannotRunError
from art_entropic.evaluation.attempt import Attempt
from art_entropic.evaluation.objectives import LOSSES, OfLogits
from art_entropic.evaluation.target import Ball, Target, within_ball
from art_entropic.measures import MEASURES

LINEAR = (Flatten(), Dense(5, None))


def linear(framework):
    """A linear classifier with five classes on inputs (6, 6, 2), and its kernel (72, 5) on inputs flattened as (h, w, c)."""
    classifier = framework_module(framework).build_classifier(
        LINEAR, input_shape=(6, 6, 2), nb_classes=5, clip_values=(-9.0, 9.0), learning_rate=0.1, seed=3
    )
    return classifier


def images(framework, n):
    x = np.random.default_rng(1).uniform(-1, 1, (n, 6, 6, 2)).astype(np.float32)
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2)) if FRAMEWORKS[framework].channels_first else x


def lowest_margins(classifier, x, y, ball):
    """min over the ball of z_y - max z_i of a linear model: the margin to i less eps times the dual norm of w_y - w_i."""
    zero = np.zeros_like(x[:1])
    unit = np.eye(x[0].size, dtype=np.float32).reshape(-1, *x.shape[1:])
    backend = backend_for(classifier)
    kernel = backend.logits(unit) - backend.logits(zero)
    z = backend.logits(x)
    dual = {np.inf: 1, 2.0: 2, 1.0: np.inf}[ball.norm]
    reach = ball.eps * np.linalg.norm(kernel[:, y].T[:, None] - kernel.T[None], ord=dual, axis=2)
    margins = z[np.arange(len(y)), y][:, None] - z - reach
    margins[np.arange(len(y)), y] = np.inf
    return margins.min(axis=1)


EVERYWHERE = [(name, norm) for name in ATTACKS for norm in (np.inf, 2.0, 1.0)]
NOWHERE = {
    *(("autoattack", norm) for norm in (np.inf, 2.0, 1.0)),  # inputs are not in [0, 1]; tests of its own below
    *((name, 1.0) for name in ("apgd_ce", "apgd_t", "apgd_long", "square", "entropic", "hop_skip_jump")),
    ("square", 2.0),  # its tiles would have one pixel
    ("minimum_norm", np.inf),
    ("minimum_norm", 1.0),
}


@pytest.mark.parametrize(("name", "norm"), EVERYWHERE)
def test_attack_breaks_what_can_be_broken_and_nothing_else(framework, name, norm):
    classifier = linear(framework)
    target = Target.of(classifier, sources={"twin": linear(framework)})
    n = 60 if ATTACKS[name].max_points is None else 20
    x = images(framework, n)
    y = target.predict(x)
    ball = Ball({np.inf: 0.05, 2.0: 0.4, 1.0: 1.0}[norm], norm)
    lowest = lowest_margins(classifier, x, y, ball)
    assert n / 6 < (lowest < 0).sum() < 5 * n / 6
    if (name, norm) in NOWHERE:
        with pytest.raises(CannotRunError, match="got"):
            Attempt(name, target, x, y, ball, seed=0).run()
        return
    run = Attempt(name, target, x, y, ball, seed=0).run()
    assert not run.broken[lowest > 1e-4].any()
    np.testing.assert_array_equal(target.predict(run.x_adv) != y, run.broken)
    np.testing.assert_array_equal(run.x_adv[~run.broken], x[~run.broken])
    assert within_ball(x, run.x_adv, ball, classifier.clip_values).all()
    assert (run.distance[run.broken] <= ball.eps * 1.0001).all()
    # Aimed at every rival in turn, the attack finds all there is; the others may climb towards a rival that stays out of reach.
    share = {"apgd_t": 1.0, "square": 0.5, "hop_skip_jump": 0.5, "minimum_norm": 0.8}.get(name, 0.85)
    assert run.broken[lowest < -0.02].mean() >= share


def test_both_frameworks_climb_the_same_losses(rng):
    y = np.eye(5, dtype=np.float32)[[0, 1, 2, 3]]
    y[np.arange(4), [4, 3, 0, 1]] = 0.5
    x = rng.uniform(-1, 1, (4, 6, 6, 2)).astype(np.float32)
    z = backend_for(linear("tensorflow")).logits(x).astype(np.float64)
    true, rival = z[np.arange(4), [0, 1, 2, 3]], z[np.arange(4), [4, 3, 0, 1]]
    wrong = np.where(y == 1, -np.inf, z).max(axis=1)
    top = np.sort(z, axis=1)[:, ::-1]
    expected = {
        "cross_entropy": np.log(np.exp(z).sum(axis=1)) - true,
        "margin": wrong - true,
        "margin_to_rival": rival - true,
        "dlr_to_rival": (rival - true) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2),
    }
    assert set(expected) == set(LOSSES)
    for kind, values in expected.items():
        np.testing.assert_allclose(LOSSES[kind](numpy_ops, z, y), values, rtol=1e-9)
        gradients = []
        for framework in FRAMEWORKS:
            twin = Target.of(linear(framework)).twin(kind, OfLogits(LOSSES[kind]))
            first = FRAMEWORKS[framework].channels_first
            inputs = np.ascontiguousarray(x.transpose(0, 3, 1, 2)) if first else x
            np.testing.assert_allclose(twin.compute_loss(inputs, y, reduction="none"), values, rtol=1e-4, atol=1e-5)
            gradient = twin.loss_gradient(inputs, y)
            gradients.append(np.moveaxis(gradient, 1, -1) if first else gradient)
            np.testing.assert_allclose(twin.predict(inputs), z, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(*gradients, rtol=1e-4, atol=1e-6)


class Passing:
    """Walks over the boundary and back again."""

    def __init__(self, twin, ball, batch_size):
        self.twin, self.ball = twin, ball

    def generate(self, x, y):
        best = x + self.ball.eps * np.sign(self.twin.loss_gradient(x, y))
        self.twin.loss_gradient(best, y)
        return x


def test_an_adversarial_example_on_the_way_counts(framework, monkeypatch):
    monkeypatch.setitem(ATTACKS, "passing", Attack("Passing", Passing, ATTACKS["pgd_margin"].rounds))
    target = Target.of(linear(framework))
    x = images(framework, 60)
    y, ball = target.predict(x), Ball(0.05, np.inf)
    run = Attempt("passing", target, x, y, ball, seed=0).run()
    broken, x_adv = run.broken, run.x_adv
    # One step along the sign is the best there is against the strongest rival of a linear network.
    lowest = lowest_margins(target.classifier, x, y, ball)
    assert broken[lowest < -0.5].all() and broken.any() and not broken[lowest > 1e-4].any()
    np.testing.assert_array_equal(target.predict(x_adv) != y, broken)


def test_the_network_is_asked_nothing_twice_and_nothing_about_fallen_points(framework):
    target = Target.of(linear(framework))
    x = images(framework, 10)
    y = target.predict(x)
    labels = np.eye(5, dtype=np.float32)[y]
    twin = target.twin("margin", OfLogits(LOSSES["margin"]))
    path = Trail(x, y, lambda index, candidates: index < 4)
    with twin.following(path):
        values = twin.compute_loss(x, labels)
        gradient = twin.loss_gradient(x, labels)
        assert twin.forward_passes == 10
        moved = x.copy()
        moved[[0, 5]] += np.float32(9) * np.sign(gradient[[0, 5]])  # both look broken, one is believed
        later = twin.loss_gradient(moved, labels)
        assert twin.forward_passes == 12
        np.testing.assert_array_equal(path.tally.broken, np.arange(10) == 0)
        np.testing.assert_array_equal(path.tally.x_adv[0], moved[0])
        np.testing.assert_array_equal(later[0], 0)
        np.testing.assert_array_equal(later[[1, 2, 3]], gradient[[1, 2, 3]])
        assert twin.compute_loss(moved, labels)[0] == 1
        twin.loss_gradient(x, labels)  # point 0 is done with, 5 has gone back
        assert twin.forward_passes == 13
    np.testing.assert_allclose(values, np.sort(target.logits(x), axis=1)[:, -2] - target.logits(x).max(axis=1), rtol=1e-5)
    before = twin.forward_passes
    for batch in (x, x[3:], np.concatenate([x[:2], moved[:1]])):
        np.testing.assert_allclose(twin.predict(batch), target.logits(batch), rtol=1e-4, atol=1e-5)
    assert twin.forward_passes == before + 11
    assert twin.predict(x[:0]).shape == (0, 5)


def test_a_network_that_answers_at_random_is_asked_each_time(framework):
    target = Target(**{**vars(Target.of(linear(framework))), "is_deterministic": False})
    x = images(framework, 3)
    twin = target.twin("margin", OfLogits(LOSSES["margin"]))
    twin.predict(x), twin.predict(x)
    assert twin.forward_passes == 6


def test_a_keras_classifier_with_preprocessing_is_attacked_in_raw_units(make_classifier, points):
    pytest.importorskip("tensorflow")
    from art.estimators.classification import KerasClassifier

    model = make_classifier("tensorflow").model
    model.compile(optimizer="sgd", loss="mse")
    classifier = KerasClassifier(model, use_logits=True, clip_values=(0.0, 1.0), preprocessing=(0.5, 0.25))
    target = Target.of(classifier)
    x, _ = points("tensorflow", n=20)
    y = target.predict(x)
    np.testing.assert_array_equal(y, np.argmax(model((x - 0.5) / 0.25, training=False), axis=1))
    twin, labels = target.twin("cross_entropy", OfLogits(LOSSES["cross_entropy"])), np.eye(3, dtype=np.float32)[y]
    gradient = twin.loss_gradient(x, labels)
    step = np.float32(1e-3) * np.sign(gradient)
    change = twin.compute_loss(x + step, labels).sum() - twin.compute_loss(x - step, labels).sum()
    np.testing.assert_allclose(np.sum(2 * step * gradient), change, rtol=0.02)
    run = Attempt("apgd_ce", target, x, y, Ball(0.9, np.inf), seed=0).run()
    broken, x_adv = run.broken, run.x_adv
    assert broken.any() and np.abs(x_adv - x).max() > 0.25


def test_dlr_falls_back_to_the_margin_below_four_classes(framework, make_classifier, points):
    assert "needs 4 classes" in ATTACKS["apgd_t"].title_for(3)
    assert ATTACKS["apgd_t"].title_for(4) == "APGD-T on DLR"
    target = Target.of(make_classifier(framework))
    x, _ = points(framework, n=6)
    broken = Attempt("apgd_t", target, x, target.predict(x), Ball(0.9, np.inf), seed=0).run().broken
    assert broken.any()


@pytest.mark.parametrize(
    ("change", "norm", "counts"),
    [
        (0.1, np.inf, True),
        (0.1001, np.inf, False),
        (0.1 / np.sqrt(8), 2.0, True),
        (0.1, 2.0, False),
        (np.nan, np.inf, False),
        (np.inf, np.inf, False),
    ],
)
def test_only_what_is_in_the_ball_counts(change, norm, counts):
    x = np.full((1, 2, 2, 2), 0.5, np.float32)
    assert within_ball(x, x + np.float32(change), Ball(0.1, norm), (0.0, 1.0)) == [counts]


@pytest.mark.parametrize("norm", [np.inf, 2.0, 1.0])
@pytest.mark.parametrize("clip_values", [(np.zeros(2, np.float32), np.array([1, 1e6], np.float32)), (0.0, 1e6), None])
def test_one_feature_of_large_numbers_hides_no_perturbation_of_another(norm, clip_values):
    x = np.array([[0.5, 5e5]], np.float32)
    moves = {0.0101: False, 0.01: True, -0.0099: True, 0.4: False, -0.9: False}
    for move, counts in moves.items():
        assert within_ball(x, x + np.array([move, 0], np.float32), Ball(0.01, norm), clip_values) == [counts], move
    nearest = np.nextafter(x, np.float32(np.inf))  # no step of eps can be made there
    assert within_ball(x, np.stack([x[:, 0], nearest[:, 1]], axis=1), Ball(0.01, norm), clip_values) == [True]


@given(
    st.sampled_from([1e-3, 1.0, 255.0, 1e4]), st.sampled_from([2 / 255, 0.1, 0.5]), st.sampled_from([np.inf, 2.0]),
    st.integers(1, 800), st.integers(0, 10**6),
)  # fmt: skip
def test_float32_steps_of_the_whole_radius_count_and_those_beyond_do_not(scale, eps, norm, features, seed):
    rng = np.random.default_rng(seed)
    x = (scale * rng.random((3, features))).astype(np.float32)
    direction = rng.normal(size=x.shape)
    step = np.sign(direction) if norm == np.inf else direction / np.linalg.norm(direction, axis=1, keepdims=True)
    ball, radius = Ball(scale * eps, norm), np.float32(scale * eps)
    assert within_ball(x, x + radius * step.astype(np.float32), ball, None).all()
    inside = np.clip(x + radius * step.astype(np.float32), 0, np.float32(scale))
    assert within_ball(x, inside, ball, (0.0, scale)).all()
    assert not within_ball(x, x + np.float32(1.002) * radius * step.astype(np.float32), ball, None).any()


def test_what_leaves_the_clip_range_does_not_count():
    x = np.array([[0.95], [0.05]], np.float32)
    np.testing.assert_array_equal(within_ball(x, x + np.float32(0.06), Ball(0.1, np.inf), (0.0, 1.0)), [False, True])
    np.testing.assert_array_equal(within_ball(x, x + np.float32(0.06), Ball(0.1, np.inf), None), [True, True])


@pytest.mark.parametrize("offset", [0.5, np.nan])
def test_an_attack_that_cheats_breaks_nothing(framework, make_classifier, points, monkeypatch, offset):
    class Cheat:
        def generate(self, x, y):
            return 1 - x + offset

    monkeypatch.setitem(ATTACKS, "cheat", Attack("Cheat", lambda *_: Cheat(), ATTACKS["square"].rounds))
    target = Target.of(make_classifier(framework))
    x, _ = points(framework, n=9)
    run = Attempt("cheat", target, x, target.predict(x), Ball(0.1, np.inf), seed=0).run()
    broken, x_adv = run.broken, run.x_adv
    assert not broken.any()
    np.testing.assert_array_equal(x_adv, x)


def test_attacks_are_repeatable_and_leave_the_generators_alone(framework, make_classifier, points):
    target = Target.of(make_classifier(framework))
    x, _ = points(framework, n=12)
    y = target.predict(x)
    before = np.random.get_state()[1].tolist(), random.getstate()
    runs = [Attempt("pgd_ce", target, x, y, Ball(0.2, np.inf), seed=seed).run().x_adv for seed in (0, 0, 1)]
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before
    np.testing.assert_array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])


def test_attacks_on_a_keras_network_that_draws_are_repeatable():
    import keras
    from art.estimators.classification import TensorFlowV2Classifier

    class Noise(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.draws = keras.random.SeedGenerator(5)

        def call(self, x):
            return x + 0.5 * keras.random.normal(keras.ops.shape(x), seed=self.draws)

    layers = [keras.layers.Input((6, 6, 2)), Noise(), *linear("tensorflow").model.layers]
    classifier = TensorFlowV2Classifier(keras.Sequential(layers), 5, (6, 6, 2), clip_values=(-9.0, 9.0))
    target = replace(Target.of(classifier), is_deterministic=False)
    x = images("tensorflow", 8)
    y = linear("tensorflow").predict(x).argmax(axis=1)
    first, second, other = (Attempt("pgd_ce", target, x, y, Ball(0.1, np.inf), seed=seed).run().x_adv for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)


def test_attacks_leave_a_pytorch_module_as_it_was(make_classifier, points):
    torch = pytest.importorskip("torch")
    classifier = make_classifier("pytorch")
    modules = list(classifier.model.modules())
    parameters = list(classifier.model.parameters())
    for number, module in enumerate(modules):
        module.training = number % 2 == 0
    parameters[0].requires_grad_(False)
    parameters[1].grad = torch.ones_like(parameters[1])
    state = torch.get_rng_state()
    x, _ = points("pytorch", n=6)
    target = Target.of(classifier)
    for name in BATTERIES["quick"]:
        Attempt(name, target, x, target.predict(x), Ball(0.1, np.inf), seed=0).run()
    assert [module.training for module in modules] == [number % 2 == 0 for number in range(len(modules))]
    assert [parameter.requires_grad for parameter in parameters] == [False] + [True] * (len(parameters) - 1)
    assert [parameter.grad is None for parameter in parameters] == [True, False] + [True] * (len(parameters) - 2)
    assert not any(module._forward_hooks or module._backward_hooks for module in modules)
    assert torch.equal(torch.get_rng_state(), state)


def test_square_says_that_small_images_have_no_tiles_in_l2(framework):
    target = Target.of(linear(framework))
    x = images(framework, 2)
    with pytest.raises(CannotRunError, match="10 pixels a side for Square in L2, got \\(6, 6\\)"):
        Attempt("square", target, x, target.predict(x), Ball(0.4, 2.0), seed=0).run()


@pytest.mark.parametrize(("norm", "expected"), [("inf", np.inf), (np.inf, np.inf), (2, 2.0), ("2", 2.0), (1, 1.0)])
def test_norms_have_names_and_numbers(norm, expected):
    assert norm_of(norm) == expected


@pytest.mark.parametrize("norm", [3, "l2", None, np.nan, True])
def test_other_norms_are_refused(norm):
    with pytest.raises(ValueError, match=r"`norm` must be 'inf', np\.inf, 2 or 1, got"):
        norm_of(norm)


def test_a_costly_attack_stops_after_its_number_of_points(framework, monkeypatch):
    monkeypatch.setitem(ATTACKS, "brief", replace(ATTACKS["pgd_margin"], max_points=7))
    target = Target.of(linear(framework))
    x = images(framework, 20)
    run = Attempt("brief", target, x, target.predict(x), Ball(1.0, np.inf), seed=0).run()
    np.testing.assert_array_equal(run.broken, np.arange(20) < 7)
    np.testing.assert_array_equal(run.queries > 0, np.arange(20) < 7)
    np.testing.assert_array_equal(np.isfinite(run.distance), np.arange(20) < 7)


def test_batteries_name_attacks():
    assert {name for names in BATTERIES.values() for name in names} <= set(ATTACKS)


SMALL = (Conv(3, 3, padding=1, batch_norm=True), MaxPool(2), Flatten(), Dense(6), Dense(5, None))


def on_unit_range(framework, architecture=SMALL):
    return framework_module(framework).build_classifier(
        architecture, input_shape=(6, 6, 2), nb_classes=5, clip_values=(0.0, 1.0), learning_rate=0.1, seed=3
    )


def test_the_reference_battery_finds_what_there_is():
    pytest.importorskip("torchattacks")
    target = Target.of(on_unit_range("pytorch", LINEAR))
    x = (images("pytorch", 60) + 1) / 2
    y, ball = target.predict(x), Ball(0.02, np.inf)
    lowest = lowest_margins(target.classifier, x, y, ball)
    run = Attempt("autoattack", target, x, y, ball, seed=0).run()
    assert 5 < (lowest < -0.02).sum() < 55
    assert not run.broken[lowest > 1e-4].any()
    # The ball is cut at the range of the data, which the closed form does not know.
    assert run.broken[lowest < -0.1].mean() > 0.9
    assert within_ball(x, run.x_adv, ball, (0.0, 1.0)).all()


def test_the_reference_attacks_what_is_deployed_and_leaves_it_alone():
    pytest.importorskip("torchattacks")
    x = (images("pytorch", 20) + 1) / 2
    found = []
    for training in (False, True):
        target = Target.of(on_unit_range("pytorch"))
        target.classifier.model.train(training)
        state = target.backend.state()
        y = target.predict(x)
        found.append(Attempt("autoattack", target, x, y, Ball(0.2, np.inf), seed=0).run().broken)
        for name, array in target.backend.state().items():
            np.testing.assert_array_equal(array, state[name])
        assert target.classifier.model.training == training
    np.testing.assert_array_equal(*found)
    assert found[0].any()


def test_what_was_found_before_a_round_failed_still_counts(framework, monkeypatch):
    class Second:
        calls = 0

        def __init__(self, *_):
            Second.calls += 1
            self.fails = Second.calls == 2

        def generate(self, x, y):
            if self.fails:
                raise ArithmeticError("out of memory")
            return np.clip(x + 1, -9, 9)

    monkeypatch.setitem(ATTACKS, "second", Attack("Second", Second, ATTACKS["pgd_restarts"].rounds))
    target = Target.of(linear(framework))
    x = images(framework, 20)
    run = Attempt("second", target, x, target.predict(x), Ball(2.0, np.inf), seed=0).run()
    assert run.broken.any() and run.errors == ["round 2: ArithmeticError: out of memory"]


def test_the_distance_is_that_of_the_nearest_example_shown(framework, monkeypatch):
    class Nearer:
        def __init__(self, twin, ball, batch_size):
            self.twin = twin

        def generate(self, x, y):
            far = x + np.float32(2) * np.sign(self.twin.loss_gradient(x, y))
            self.twin.predict(far)
            return x + (far - x) * np.float32(0.5)

    monkeypatch.setitem(ATTACKS, "nearer", Attack("Nearer", Nearer, ATTACKS["pgd_margin"].rounds))
    target = Target.of(linear(framework))
    x = images(framework, 20)
    run = Attempt("nearer", target, x, target.predict(x), Ball(3.0, np.inf), seed=0).run()
    assert run.broken.all()
    np.testing.assert_allclose(run.distance, 1.0, rtol=1e-5)


def test_faint_gradients_climb_in_l2_and_nan_ones_stand_still(framework):
    target = Target.of(linear(framework))
    x = images(framework, 6)
    y = target.predict(x)
    path = Trail(x, y, lambda index, candidates: np.zeros(len(index), bool))
    gradient = np.zeros_like(x)
    gradient[0], gradient[1].flat[:2], gradient[2].flat[0] = 1e-20, (np.nan, 3e-9), -4.0
    path.learn(np.arange(6), x, np.eye(5)[y], np.zeros(6, np.float32), gradient)
    values, known = path.known()
    np.testing.assert_array_equal(np.abs(known).reshape(6, -1).max(axis=1), [1, 1, 1, 0, 0, 0])
    assert np.isfinite(known).all() and known[2].min() == -1
    assert (values > 0).all()  # ART's APGD takes a batch of zeros for done
    np.testing.assert_array_equal(path.tally.not_finite, [0, 1, 0, 0, 0, 0])


def test_the_reference_battery_says_what_it_cannot_attack(make_classifier):
    pytest.importorskip("torchattacks")
    for classifier, norm, reason in [
        (on_unit_range("tensorflow"), np.inf, "got one of tensorflow; `to_pytorch`"),
        (on_unit_range("pytorch"), 1.0, "norms inf and 2, got 1"),
        (make_classifier("pytorch"), np.inf, "needs at least 4 classes for its DLR loss, got 3"),
        (linear("pytorch"), np.inf, r"needs inputs in \[0, 1\], got `clip_values`"),
    ]:
        target = Target.of(classifier)
        x = np.zeros((2, *classifier.input_shape), np.float32)
        with pytest.raises(CannotRunError, match=reason):
            Attempt("autoattack", target, x, target.predict(x), Ball(0.1, norm), seed=0).run()


@pytest.mark.parametrize("measure", ["interval", "channel"])
def test_the_information_is_climbed_by_its_gradient(framework, measure):
    """A step along the gradient changes the objective as the gradient says, in double the precision of a guess."""
    target = Target.of(linear_behind_silu(framework), measure=MEASURES[measure]())
    x = images(framework, 8)
    labels = np.eye(5, dtype=np.float32)[target.predict(x)]
    ((name, objective, *_), *others) = ATTACKS["entropic"].rounds(target, Ball(0.05, np.inf))
    assert len(others) + 1 == len(ENTROPIC_WEIGHTS) and measure in name
    twin = target.twin(name, objective)
    gradient = twin.loss_gradient(x, labels)
    step = np.float32(2e-3) * np.sign(gradient)
    change = twin.compute_loss(x + step, labels) - twin.compute_loss(x - step, labels)
    np.testing.assert_allclose(change, np.sum(2 * step * gradient, axis=(1, 2, 3)), rtol=0.1, atol=1e-3)
    plain = target.twin("margin", OfLogits(LOSSES["margin"]))
    information = (twin.compute_loss(x, labels) - plain.compute_loss(x, labels)) / ENTROPIC_WEIGHTS[0]
    assert (information > 0).all()


def linear_behind_silu(framework):
    return framework_module(framework).build_classifier(
        (Conv(4, 3, padding=1, activation="silu"), Flatten(), Dense(5, None)),
        input_shape=(6, 6, 2), nb_classes=5, clip_values=(-9.0, 9.0), learning_rate=0.1, seed=3,
    )  # fmt: skip


def test_features_move_away_from_the_clean_point(framework):
    target = Target.of(linear_behind_silu(framework))
    x = images(framework, 8)
    y = target.predict(x)
    labels = np.eye(5, dtype=np.float32)[y]
    rounds = ATTACKS["features"].rounds(target, Ball(0.05, np.inf))
    assert [one.name for one in rounds] == [f"features {name}" for name in target.backend.layer_names()]
    twin = target.twin(rounds[0].name, rounds[0].objective)
    path = Trail(x, y, lambda index, candidates: np.zeros(len(index), bool), x.reshape(8, -1))
    moved = x + np.float32(0.3)
    with twin.following(path):
        value = twin.compute_loss(moved, labels)
    here, there = (target.backend.activations(points)[target.backend.layer_names()[0]].reshape(8, -1) for points in (x, moved))
    shift = np.linalg.norm(there - here, axis=1) / np.linalg.norm(here, axis=1)
    z = target.logits(moved)
    wrong = np.where(labels == 1, -np.inf, z).max(axis=1)
    np.testing.assert_allclose(value, wrong - z[np.arange(8), y] + shift, rtol=1e-4, atol=1e-5)
