import re
import typing
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from art_entropic.backends.architecture import Dense, Flatten
from art_entropic.backends.errors import NoIntervalRuleError
from art_entropic.backends.registry import FRAMEWORKS, framework_module
from art_entropic.certificates import Certificates
from art_entropic.evaluation.attacks import ATTACKS, BATTERIES, PROOF_ATTACK, Attack
from art_entropic.evaluation.checks import CHECKS
from art_entropic.evaluation.curve import security_curve
from art_entropic.evaluation.evaluate import evaluate
from art_entropic.evaluation.gallery import attacked_examples
from art_entropic.evaluation.joining import join_findings
from art_entropic.evaluation.target import Target
from art_entropic.records import (
    AttackedExample,
    AttackOutcome,
    CurvePoint,
    EvaluationRecord,
    Findings,
    PointsRecord,
    pack,
    unpack,
)
from art_entropic.statistics import accuracy

QUIET = dict(checks=False, verbose=False)


class Shift:
    """Adds `step` to every pixel of the first `reach` points it is given."""

    def __init__(self, step, reach):
        self.step, self.reach = step, reach

    def generate(self, x, y):
        result = x.copy()
        result[: self.reach] += self.step
        return result


class Failing:
    def generate(self, x, y):
        raise ArithmeticError("no gradient today")


@pytest.fixture
def battery(monkeypatch):
    """Makes a battery called "planted" of the attacks given."""

    def make(*attacks):
        for number, attack in enumerate(attacks):
            monkeypatch.setitem(
                ATTACKS, f"planted{number}", Attack(f"P{number}", lambda *_, attack=attack: attack, ATTACKS["square"].rounds)
            )
        monkeypatch.setitem(BATTERIES, "planted", tuple(f"planted{number}" for number in range(len(attacks))))

    return make


def proving(decide):
    """In place of `certificates`: the points that `decide(x, eps)` calls proved."""

    def certificates(classifier, x, y, eps, norm, method="best"):
        proved = decide(x, eps)
        return Certificates(proved, {"ibp": proved}, {})

    return certificates


@pytest.fixture
def bright(monkeypatch):
    """A target that calls a point 1 where its first pixel is above one half, else 0."""

    def predict(self, x):
        return (x.reshape(len(x), -1)[:, 0] > 0.5).astype(np.int64)

    monkeypatch.setattr("art_entropic.evaluation.target.Target.predict", predict)
    monkeypatch.setattr("art_entropic.evaluation.case.certificates", proving(lambda x, eps: np.zeros(len(x), bool)))


def flat(framework, values):
    shape = (2, 6, 6) if FRAMEWORKS[framework].channels_first else (6, 6, 2)
    return np.broadcast_to(np.float32(values)[:, None, None, None], (len(values), *shape)).copy()


def test_robust_means_survived_every_attack(framework, make_classifier, bright, battery):
    battery(Shift(0.1, 1), Failing(), Shift(0.1, 2))
    x = flat(framework, [0.45, 0.1, 0.45, 0.45, 0.45, 0.9])
    y = np.array([0, 0, 0, 0, 0, 0])  # the last one is wrong from the start
    classifier = make_classifier(framework)
    lines = []
    result = evaluate(classifier, x, y, eps=0.2, battery="planted", progress=lines.append, **QUIET)
    np.testing.assert_array_equal(result.clean_correct, [1, 1, 1, 1, 1, 0])
    assert lines == ["attack 1 of 3: P0 at 0.2", "attack 2 of 3: P1 at 0.2", "attack 3 of 3: P2 at 0.2"]
    np.testing.assert_array_equal(result.broken_by["planted0"], [1, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(result.broken_by["planted2"], [0, 0, 1, 0, 0, 0])  # of the two it was given one fell
    np.testing.assert_array_equal(result.survived, [0, 1, 0, 1, 1, 0])
    assert (result.clean.correct, result.robust.correct, result.robust.n) == (5, 3, 6)
    told = [(outcome.attack, outcome.attacked, outcome.broken, outcome.error) for outcome in result.attacks]
    assert told == [("P0", 5, 1, None), ("P1", 4, 0, "round 1: ArithmeticError: no gradient today"), ("P2", 4, 1, None)]
    (example,) = attacked_examples(classifier, x, y, result, 3)
    assert (example.index, example.label, example.clean_prediction, example.attacked_prediction) == (0, 0, 0, 1)
    assert example.shape == (6, 6, 2)
    np.testing.assert_allclose(example.attacked, 0.55, rtol=1e-6)


def test_checks_are_counted_by_themselves(framework, make_classifier, bright, battery):
    battery(Shift(0.1, 1), Shift(0.1, 2))
    lines = []
    x = flat(framework, [0.45, 0.1])
    evaluate(make_classifier(framework), x, [0, 0], eps=0.2, battery="planted", verbose=False, progress=lines.append)
    numbers = [line.partition(":")[0] for line in lines]
    assert numbers == [
        "attack 1 of 2",
        "attack 2 of 2",
        *(f"check {number} of {len(CHECKS)}" for number in range(1, 1 + len(CHECKS))),
    ]


def test_a_battery_that_cannot_run_has_no_result(framework, make_classifier, bright, battery):
    battery(Failing(), Failing())
    with pytest.raises(RuntimeError, match=r"no attack of the battery 'planted' could run.*no gradient today"):
        evaluate(make_classifier(framework), flat(framework, [0.1]), [0], eps=0.2, battery="planted", **QUIET)


def test_a_broken_certificate_is_a_contradiction(framework, make_classifier, bright, battery, monkeypatch):
    battery(Shift(0.1, 1))
    monkeypatch.setattr("art_entropic.evaluation.case.certificates", proving(lambda x, eps: np.ones(len(x), bool)))
    with pytest.raises(RuntimeError, match=r"1 points are certified and yet broken by the battery 'planted'.*index 1"):
        evaluate(
            make_classifier(framework),
            flat(framework, [0.9, 0.45]),
            [0, 0],
            eps=0.2,
            battery="planted",
            checks=False,
            verbose=False,
        )


def test_certified_points_meet_the_first_attack_that_runs_and_no_other(
    framework, make_classifier, bright, battery, monkeypatch
):
    battery(Failing(), Shift(0.0, 4), Shift(0.1, 4))
    certified = np.array([True, True, False, False])
    monkeypatch.setattr("art_entropic.evaluation.case.certificates", proving(lambda x, eps: certified))
    x = flat(framework, [0.1, 0.2, 0.45, 0.2])
    result = evaluate(make_classifier(framework), x, [0] * 4, eps=0.2, battery="planted", **QUIET)
    assert [(outcome.attacked, outcome.broken) for outcome in result.attacks] == [(4, 0), (4, 0), (2, 1)]
    np.testing.assert_array_equal(result.survived, [1, 1, 0, 1])


def test_a_costly_attack_leaves_the_trial_of_certificates_to_a_cheap_one(
    framework, make_classifier, bright, battery, monkeypatch
):
    battery(Shift(0.1, 4))
    monkeypatch.setitem(ATTACKS, "planted0", replace(ATTACKS["planted0"], spares_certified=True))
    monkeypatch.setattr(
        "art_entropic.evaluation.case.certificates", proving(lambda x, eps: np.array([True, True, False, False]))
    )

    def judged(step):
        cheap = Attack("cheap", lambda *_: Shift(step, 4), ATTACKS["square"].rounds)
        monkeypatch.setitem(ATTACKS, PROOF_ATTACK, cheap)
        return evaluate(
            make_classifier(framework), flat(framework, [0.45, 0.2, 0.45, 0.2]), [0] * 4, eps=0.2, battery="planted", **QUIET
        )

    result = judged(0.0)
    assert [(outcome.attacked, outcome.broken) for outcome in result.attacks] == [(2, 1)]
    np.testing.assert_array_equal(result.survived, [1, 1, 0, 1])
    with pytest.raises(RuntimeError, match=r"1 points are certified and yet broken by the battery 'planted'.*index 0"):
        judged(0.1)


def test_no_interval_rule_means_no_certificate(framework, make_classifier, bright, battery, monkeypatch):
    def certify(*_):
        raise NoIntervalRuleError("top", "Wavelet")

    battery(Shift(0.1, 1))
    monkeypatch.setattr("art_entropic.evaluation.case.certificates", certify)
    result = evaluate(make_classifier(framework), flat(framework, [0.1]), [0], eps=0.2, battery="planted", **QUIET)
    assert result.certified is None and result.certified_points is None
    assert "Wavelet in layer 'top'" in result.certified_reason


def test_real_evaluation_is_coherent_and_repeatable(framework, make_classifier, points):
    classifier = make_classifier(framework)
    x, _ = points(framework, n=40)
    y = np.argmax(classifier.predict(x), axis=1)
    y[:4] = (y[:4] + 1) % 3
    result, again = (evaluate(classifier, x, np.eye(3)[y], eps=0.2, battery="quick", **QUIET) for _ in range(2))
    np.testing.assert_array_equal(result.survived, again.survived)
    assert result.clean.correct == 36
    assert np.all(result.certified_points <= result.survived) and result.robust.correct < 36
    curve, same = (security_curve(classifier, x, np.eye(3)[y], (0.4, 0.0, 0.1, 0.2), verbose=False) for _ in range(2))
    assert [point.eps for point in curve] == [0.0, 0.1, 0.2, 0.4] and curve == same == result.with_curve(curve).curve
    shares = [point.robust.correct for point in curve]
    assert shares[0] == 36 and shares == sorted(shares, reverse=True)
    np.testing.assert_array_equal(result.survived, ~np.any(list(result.broken_by.values()), axis=0) & result.clean_correct)
    bits = result.points
    for text, expected in [
        (bits.clean, result.clean_correct),
        (bits.robust, result.survived),
        (bits.certified, result.certified_points),
        (bits.broken_by["pgd_margin"], result.broken_by["pgd_margin"]),
    ]:
        np.testing.assert_array_equal(unpack(text, 40), expected)
    assert 36 + 20 <= result.attacks[0].queries <= 36 * 22  # at least one point stood to the end
    examples = attacked_examples(classifier, x, y, result, 3)
    assert examples
    for example in examples:
        image = np.array(example.attacked).reshape(example.shape)
        clean = np.moveaxis(x, 1, -1) if FRAMEWORKS[framework].channels_first else x
        assert np.abs(image - clean[example.index]).max() <= 0.2 + 1e-6
    assert "upper bound" in str(result)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(eps=0), "`eps` must be positive"),
        (dict(eps=8), "did you mean 8/255"),
        (dict(norm=3), "`norm` must be"),
        (dict(norm=2, eps=99.0), "`eps` must not exceed 8.48528, the largest L2 distance"),
        (dict(measure="gossip"), "`measure` must be one of"),
        (dict(battery="huge"), "`battery` must be one of 'quick', 'standard', 'reference', 'full'"),
        (dict(seeds=-1), "`seeds` must be a whole number"),
        (dict(seeds=()), "`seeds` must hold at least one seed"),
        (dict(progress="yes"), "`progress` must be callable, got .yes. of type str"),
        (dict(transfer_from=3), "`transfer_from` must map names to classifiers, got int"),
        (dict(x=np.zeros((2, 3))), "`x` must have shape"),
        (dict(y=[0, 7]), "`y` must hold classes 0 to 2"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_bad_input_is_refused_by_name(framework, make_classifier, change, message):
    arguments = dict(x=flat(framework, [0.1, 0.2]), y=[0, 1], eps=0.1, **QUIET) | change
    with pytest.raises((ValueError, TypeError), match=message):
        evaluate(make_classifier(framework), **arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(eps_values=(-0.1,)), "`eps_values` must not be negative"),
        (dict(eps_values=0.1), "`eps_values` must be a sequence of radii, got 0.1"),
        (dict(eps_values=(0.1, 8)), "did you mean 8/255"),
        (dict(norm=3), "`norm` must be"),
        (dict(battery="huge"), "`battery` must be one of 'quick', 'standard', 'reference', 'full'"),
        (dict(seed=-1), "`seed` must be a whole number"),
        (dict(y=[0, 7]), "`y` must hold classes 0 to 2"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_a_curve_of_nothing_is_refused_by_name(framework, make_classifier, change, message):
    arguments = dict(x=flat(framework, [0.1, 0.2]), y=[0, 1], eps_values=(0.1,), verbose=False) | change
    with pytest.raises((ValueError, TypeError), match=message):
        security_curve(make_classifier(framework), **arguments)


def test_a_curve_holds_its_attacks_to_the_certificates_of_each_radius(framework, make_classifier, bright, battery, monkeypatch):
    battery(Shift(0.1, 1))
    classifier, x = make_classifier(framework), flat(framework, [0.45, 0.1])
    monkeypatch.setattr("art_entropic.evaluation.case.certificates", proving(lambda x, eps: np.full(len(x), eps < 0.15)))
    with pytest.raises(RuntimeError, match=r"1 points are certified and yet broken by the curve at eps 0\.12.*index 0"):
        security_curve(classifier, x, [0, 0], (0.12, 0.2), battery="planted", verbose=False)
    curve = security_curve(classifier, x, [0, 0], (0.0, 0.05, 0.2), battery="planted", verbose=False)
    assert [(point.eps, point.robust.correct) for point in curve] == [(0.0, 2), (0.05, 2), (0.2, 1)]
    battery(Failing())
    with pytest.raises(RuntimeError, match=r"no attack of the curve could run at eps 0\.2: round 1: ArithmeticError"):
        security_curve(classifier, x, [0, 0], (0.2,), battery="planted", verbose=False)


@pytest.mark.parametrize("norm", [1, 2])
def test_a_ball_may_reach_beyond_the_range_of_one_feature(framework, make_classifier, points, norm):
    classifier = make_classifier(framework)
    x, _ = points(framework, n=8)
    y = np.argmax(classifier.predict(x), axis=1)
    result = evaluate(classifier, x, y, eps=2.0, norm=norm, battery="quick", **QUIET)
    (point,) = security_curve(classifier, x, y, (2.0,), norm, verbose=False)
    assert not result.certified_points.any() and point.robust.correct <= 8
    assert result.certified is None and "no point is proved by ibp" in result.certified_reason


def test_examples_are_of_the_points_that_were_attacked(framework, make_classifier, bright, battery):
    battery(Shift(0.1, 2))
    classifier, x = make_classifier(framework), flat(framework, [0.45, 0.45, 0.1])
    result = evaluate(classifier, x, [0] * 3, eps=0.2, battery="planted", **QUIET)
    assert [one.index for one in attacked_examples(classifier, x, [0] * 3, result)] == [0]  # one of a class
    assert attacked_examples(classifier, x, [0] * 3, result, 0) == []
    for wrong in (dict(x=x[::-1]), dict(y=[0, 0, 1])):
        with pytest.raises(ValueError, match="`x` and `y` must be the points that `result` was evaluated on"):
            attacked_examples(classifier, **(dict(x=x, y=[0] * 3) | wrong), result=result)
    with pytest.raises(ValueError, match="`number` must be a whole number"):
        attacked_examples(classifier, x, [0] * 3, result, 2.5)


def test_probabilities_are_refused(framework, make_classifier, monkeypatch):
    classifier = make_classifier(framework)
    backend = type(Target.of(classifier).backend)
    for name in ("logits", "predict"):
        monkeypatch.setattr(backend, name, lambda self, x, batch_size=256: np.full((len(x), 3), 1 / 3, np.float32))
    with pytest.raises(ValueError, match="must return logits, got probabilities"):
        evaluate(classifier, flat(framework, [0.1, 0.2]), [0, 1], eps=0.1, **QUIET)


@pytest.mark.parametrize("n", [1, 7, 8, 9, 64])
def test_bits_come_back(n, rng):
    points = rng.random(n) < 0.5
    np.testing.assert_array_equal(unpack(pack(points), n), points)
    assert pack(np.array([True, False, False])) == "gA=="


@pytest.mark.parametrize(("text", "n"), [("gA==", 9), ("gA==", 17), ("gQ==", 3), ("no bits", 3)])
def test_bits_of_another_number_of_points_are_refused(text, n):
    with pytest.raises(ValueError, match="`text` must"):
        unpack(text, n)


def test_all_on_all_has_the_same_worst_case(framework, make_classifier, points):
    classifier = make_classifier(framework)
    x, _ = points(framework, n=30)
    y = np.argmax(classifier.predict(x), axis=1)
    cascade, whole = (
        evaluate(classifier, x, y, eps=0.03, battery="quick", cascade=cascade, **QUIET) for cascade in (True, False)
    )
    # Random starts are drawn for the points at hand, so a point at the edge may differ.
    assert np.sum(whole.survived != cascade.survived) <= 2
    assert [one.attacked for one in whole.attacks] == [30, 30]
    assert cascade.attacks[1].attacked == 30 - cascade.attacks[0].broken - cascade.certified_points.sum() < 30
    frame = whole.to_frame()
    assert len(frame) == 2 * 30 and frame[frame.success].distance.max() <= 0.03 * 1.0001
    np.testing.assert_array_equal(frame[frame.attack == "pgd_margin"].success, whole.broken_by["pgd_margin"])
    np.testing.assert_allclose(frame.seconds.sum(), sum(one.seconds for one in whole.attacks), rtol=1e-6)


def test_a_second_seed_attacks_what_the_first_left(framework, make_classifier, bright, battery):
    battery(Shift(0.1, 1))
    x = flat(framework, [0.45, 0.45, 0.45, 0.2])
    result = evaluate(make_classifier(framework), x, [0] * 4, eps=0.2, battery="planted", seeds=(0, 3), **QUIET)
    assert result.seeds == (0, 3)
    assert [(one.attacked, one.broken) for one in result.attacks] == [(4, 1), (3, 1)]
    np.testing.assert_array_equal(result.broken_by["planted0"], [1, 1, 0, 0])
    assert len(result.to_frame()) == 4


def test_a_failed_attack_is_no_robustness(framework, make_classifier, bright, battery):
    battery(Shift(0.1, 1), Failing())
    result = evaluate(make_classifier(framework), flat(framework, [0.2] * 60), [0] * 60, eps=0.2, battery="planted", **QUIET)
    assert result.verdict == "suspicious: did not run: P1"


def test_what_a_battery_returned_out_of_bounds_is_told(framework, make_classifier, battery):
    battery(Shift(0.3, 60))
    classifier = make_classifier(framework)
    x = flat(framework, np.linspace(0.1, 0.6, 60))
    y = np.argmax(classifier.predict(x), axis=1)
    result = evaluate(classifier, x, y, eps=0.1, battery="planted", verbose=False)
    (bounds,) = (check for check in result.checks if check.check == "bounds")
    assert bounds.status == "fail" and bounds.value > 0
    assert result.runs["planted0"].out_of_bounds.all() and not result.runs["planted0"].broken.any()


def test_another_preprocessing_is_another_evaluation(make_classifier, points, tmp_path):
    from art.estimators.classification import PyTorchClassifier

    inner = make_classifier("pytorch")
    x, _ = points("pytorch", n=20)
    y = np.argmax(inner.predict(x), axis=1)
    evaluate(inner, x, y, eps=0.1, battery="quick", folder=tmp_path, **QUIET)
    kept = set(tmp_path.iterdir())
    other = PyTorchClassifier(
        inner.model, inner.loss, (2, 6, 6), 3, channels_first=True, clip_values=(0.0, 1.0), preprocessing=(0.0, 2.0)
    )
    evaluate(other, x, y, eps=0.1, battery="quick", folder=tmp_path, **QUIET)
    assert kept and kept < set(tmp_path.iterdir())
    evaluate(inner, x, y, eps=0.1, battery="quick", folder=tmp_path, **QUIET)
    assert len(set(tmp_path.iterdir())) == 2 * len(kept)


def test_another_backward_pass_is_another_evaluation(make_classifier, points, tmp_path, capsys):
    """The weights are the same, and the answers on the data: they lie on the grid that a quantiser rounds to."""
    torch = pytest.importorskip("torch")
    classifier = make_classifier("pytorch")

    class Quantised(torch.nn.Module):
        straight_through = False

        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, x):
            rounded = (16 * x).round() / 16
            return self.network(x + (rounded - x).detach() if self.straight_through else rounded + 0 * x)

    classifier._model._model = Quantised(classifier.model)
    x = np.round(16 * points("pytorch", n=40)[0]) / 16
    y = np.argmax(classifier.predict(x), axis=1)

    def robust(folder=tmp_path):
        result = evaluate(classifier, x, y, eps=0.3, battery="quick", folder=folder, checks=False)
        return result.robust.value, capsys.readouterr().err

    masked = robust()[0]
    again, said = robust()
    assert again == masked and f"2 of the attacks had been finished before, in {tmp_path}" in said
    classifier.model.straight_through = True
    found, said = robust()
    assert found == robust(None)[0] < masked
    assert "other logits or gradients beside the data: its attack is run again" in said and "finished before" not in said
    assert "finished before" in robust()[1]


def test_ranges_of_many_features_are_told_apart(make_classifier, tmp_path):
    """NumPy shortens the text of an array of more than 1,000 numbers."""
    x = np.full((4, 1200), 0.5, np.float32)
    high = np.ones(1200, np.float32)
    for middle in (1.0, 0.9):
        high[600] = middle
        wide = framework_module("pytorch").build_classifier(
            (Dense(3, None),),
            input_shape=(1200,),
            nb_classes=3,
            clip_values=(np.zeros(1200, np.float32), high),
            learning_rate=0.1,
            seed=0,
        )
        y = np.argmax(wide.predict(x), axis=1)
        before = set(tmp_path.iterdir())
        evaluate(wide, x, y, eps=0.1, battery="quick", folder=tmp_path, **QUIET)
        assert before < set(tmp_path.iterdir())


def test_what_an_attack_found_outlives_a_full_disk(framework, make_classifier, points, tmp_path, capsys, monkeypatch):
    classifier = make_classifier(framework)
    x, _ = points(framework, n=20)
    y = np.argmax(classifier.predict(x), axis=1)
    expected = evaluate(classifier, x, y, eps=0.02, battery="quick", **QUIET)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("art_entropic.evaluation.kept.np.savez", full)
    found = evaluate(classifier, x, y, eps=0.02, battery="quick", folder=tmp_path, **QUIET)
    assert found.points == expected.points and [one.error for one in found.attacks] == [None, None]
    assert capsys.readouterr().err.count("could not be written ([Errno 28] No space left on device): its attack counts") == 2
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_none_is_named_before_any_attack(framework, make_classifier, points, tmp_path, battery):
    battery(Failing())
    file = tmp_path / "file"
    file.write_text("")
    classifier = make_classifier(framework)
    for folder in (file, file / "below", "nu\0ll"):
        with pytest.raises(ValueError, match="`folder` must be a folder that can be written, got "):
            evaluate(classifier, *points(framework, n=4), eps=0.1, battery="planted", folder=folder, **QUIET)
    with pytest.raises(ValueError, match="`eps` must not exceed"):
        evaluate(classifier, *points(framework, n=4), eps=8, folder=tmp_path / "new", **QUIET)
    assert list(tmp_path.iterdir()) == [file]


def test_a_tensor_that_wants_a_gradient_is_named(make_classifier, points):
    torch = pytest.importorskip("torch")
    x, y = points("pytorch", n=4)
    with pytest.raises(
        TypeError, match=r"`x` must be an array, got Tensor that NumPy cannot read: RuntimeError: Can't call numpy"
    ):
        evaluate(make_classifier("pytorch"), torch.tensor(x, requires_grad=True), y, eps=0.1, **QUIET)


def test_what_cannot_run_is_told_in_the_headline(framework, make_classifier, points):
    classifier = make_classifier(framework)
    x, _ = points(framework, n=10)
    y = np.argmax(classifier.predict(x), axis=1)
    result = evaluate(classifier, x, y, eps=0.3, norm=2, battery="standard", **QUIET)
    assert "not run   Square: images must have 10 pixels a side" in str(result)
    with pytest.raises(ValueError, match=r"`transfer_from` must share the input shape and classes of .* for 'other'"):
        other = framework_module("pytorch").build_classifier(
            (Flatten(), Dense(4, None)), input_shape=(6, 6, 2), nb_classes=4, clip_values=(0.0, 1.0), learning_rate=0.1, seed=0
        )
        evaluate(classifier, x, y, eps=0.3, transfer_from={"other": other}, **QUIET)


# ---------------------------------------------------------------------------------------------------------------- shards

N_GALLERY = 2


@st.composite
def points_with_a_fate(draw):
    """Points by themselves: class, right without an attack, certified, fallen to an attack or to the curve, distance found."""
    n = draw(st.integers(1, 20))

    def of_each(one):
        return np.array(draw(st.lists(one, min_size=n, max_size=n)))

    label, clean, fell, certified = (of_each(st.integers(0, top)) for top in (3, 1, 2, 1))
    distance = of_each(st.one_of(st.just(np.nan), st.floats(0, 1e9))).astype(float)
    return label, clean == 1, np.where(clean == 1, fell, 0), (certified == 1) & (clean == 1) & (fell == 0), distance


def findings_on(index, fate, *, has_certificate=True, error=None):
    """The findings on some of the points, counted straight from each point's fate."""
    label, clean, fell, certified, distance = (values[index] for values in fate)
    names = ("first", "second")
    standing = [clean, clean & (fell != 1)]
    distances = [distance[np.isfinite(distance) & (fell == number)] for number in (1, 2)]
    fallen = [np.flatnonzero((label == one) & (fell > 0)) for one in np.unique(label[fell > 0])]
    return Findings(
        clean=accuracy(clean),
        robust=accuracy(clean & (fell == 0)),
        certified=accuracy(certified) if has_certificate else None,
        certified_reason=None if has_certificate else "no rule",
        attacks=[
            AttackOutcome(
                attack=name,
                attacked=int(standing[number].sum()),
                broken=int((fell == number + 1).sum()),
                seconds=0.5 * len(index),
                queries=7 * len(index),
                error=error if number else None,
                distance=float(np.median(distances[number])) if len(distances[number]) else None,
            )
            for number, name in enumerate(names)
        ],
        distances=[one.tolist() for one in distances],
        curve=[CurvePoint(eps=0.0, robust=accuracy(clean)), CurvePoint(eps=0.2, robust=accuracy(clean & (fell != 2)))],
        points=PointsRecord(
            clean=pack(clean),
            robust=pack(clean & (fell == 0)),
            certified=pack(certified) if has_certificate else None,
            broken_by={name: pack(fell == number + 1) for number, name in enumerate(names)},
        ),
        examples=[
            AttackedExample(
                index=int(one[0]), label=int(label[one[0]]), clean_prediction=0, attacked_prediction=1, shape=(1, 1, 1),
                clean=[float(index[one[0]])], attacked=[0.5],
            )
            for one in fallen[:N_GALLERY]
        ],
        seconds=1.5 * len(index),
    )  # fmt: skip


@given(points_with_a_fate(), st.lists(st.integers(1, 20)), st.booleans(), st.sampled_from([None, "ArithmeticError: no"]))
def test_findings_split_anywhere_and_joined_are_those_on_all_points(fate, cuts, has_certificate, error):
    n = len(fate[0])
    parts = np.split(np.arange(n), sorted({cut for cut in cuts if cut < n}))
    told = {"has_certificate": has_certificate, "error": error}
    joined = join_findings([findings_on(part, fate, **told) for part in parts], N_GALLERY)
    assert joined == findings_on(np.arange(n), fate, **told)
    # What is kept in a file between shards is what was kept.
    assert msgspec.json.decode(msgspec.json.encode(joined), type=Findings) == joined


def test_an_attack_that_failed_on_some_points_has_failed():
    fate = (np.zeros(2, int), np.ones(2, bool), np.zeros(2, int), np.zeros(2, bool), np.full(2, np.nan))
    errors = ("A: a", None, "B: b", "A: a")
    parts = [findings_on(np.arange(2), fate, error=error) for error in errors]
    assert [outcome.error for outcome in join_findings(parts, N_GALLERY).attacks] == [None, "A: a; B: b"]


def test_findings_of_other_evaluations_are_not_joined():
    fate = (np.zeros(2, int), np.ones(2, bool), np.zeros(2, int), np.zeros(2, bool), np.full(2, np.nan))
    one = findings_on(np.arange(2), fate)
    others = {
        "the radii [0.0] in part 1, [0.0, 0.2]": msgspec.structs.replace(one, curve=one.curve[:1]),
        "the attacks ['first'] in part 1, ['first', 'second']": msgspec.structs.replace(one, attacks=one.attacks[:1]),
        "a certificate False in part 1, True": findings_on(np.arange(2), fate, has_certificate=False),
    }
    for what, other in others.items():
        with pytest.raises(ValueError, match=re.escape(f"`parts` must be of one evaluation, got {what} in the first")):
            join_findings([one, other], N_GALLERY)
    with pytest.raises(ValueError, match="at least one set of points, got none"):
        join_findings([], N_GALLERY)


def test_a_record_has_each_finding_but_the_distances():
    found, recorded = (typing.get_type_hints(kind) for kind in (Findings, EvaluationRecord))
    found["points"] |= None  # not known of records from before they were kept
    del found["distances"]
    assert {name: recorded[name] for name in found} == found


def test_findings_hold_the_distances_behind_each_median_seed_by_seed(framework, make_classifier, bright, battery):
    battery(Shift(0.1, 1), Shift(0.2, 3))
    x = flat(framework, [0.45, 0.35, 0.45, 0.1])
    result = evaluate(make_classifier(framework), x, [0] * 4, eps=0.2, battery="planted", seeds=(0, 1), **QUIET)
    found = result.findings()
    medians = [float(np.median(distances)) if distances else None for distances in found.distances]
    assert medians == [outcome.distance for outcome in result.attacks] and len(medians) == 4
    assert join_findings([found], 0) == found
