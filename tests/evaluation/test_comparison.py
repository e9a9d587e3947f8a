import json

import msgspec
import numpy as np
import pytest
from scipy.stats import binomtest

from art_entropic import compare, leaderboard_entry
from art_entropic.evaluation.curve import security_curve
from art_entropic.evaluation.evaluate import evaluate
from art_entropic.records import pack
from art_entropic.statistics import accuracy, mcnemar, paired_difference


@pytest.fixture
def result(make_classifier, points):
    classifier = make_classifier("pytorch")
    x, _ = points("pytorch", n=60)
    y = np.argmax(classifier.predict(x), axis=1)
    return evaluate(classifier, x, y, eps=0.05, battery="quick", checks=False, verbose=False)


def surviving(result, correct):
    survived = np.arange(60) < correct
    points = msgspec.structs.replace(result.points, robust=pack(survived))
    return msgspec.structs.replace(result, points=points, robust=accuracy(survived))


def test_mcnemar_is_the_sign_test():
    for one, two in [(0, 0), (3, 0), (10, 2), (25, 25)]:
        expected = binomtest(one, one + two, 0.5).pvalue if one + two else 1.0
        np.testing.assert_allclose(mcnemar(one, two), expected)


def test_a_paired_difference_knows_what_the_pairs_share():
    first = np.arange(400) < 300
    second = np.arange(400) < 280  # right on a subset of the same points
    found = paired_difference(first, second)
    assert (found.n, found.only_first, found.only_second) == (400, 20, 0)
    np.testing.assert_allclose(found.value, 0.05)
    np.testing.assert_allclose(found.p, 2 * 0.5**20)
    deviation = np.sqrt(0.05 * 0.95 / 400)  # of a mean of 400 differences of 0 or 1
    np.testing.assert_allclose([found.low, found.high], [0.05 - 1.96 * deviation, 0.05 + 1.96 * deviation], atol=0.003)
    same = paired_difference(first, first)
    assert (same.value, same.p) == (0, 1)
    np.testing.assert_allclose([same.low, same.high], [-1.96 / 402, 1.96 / 402])  # agreement on 400 points is no certainty


def test_seeds_share_their_points():
    rng = np.random.default_rng(0)
    first, second = rng.random((3, 300)) < 0.8, rng.random((3, 300)) < 0.7
    found = paired_difference(first, second)
    np.testing.assert_allclose(found.value, first.mean() - second.mean())
    each = first.mean(axis=0) - second.mean(axis=0)
    deviation = each.std() / np.sqrt(300)
    np.testing.assert_allclose([found.low, found.high], found.value + np.array([-1.96, 1.96]) * deviation, atol=0.004)
    assert found.n == 300 and np.isnan(found.p)
    assert (found.only_first, found.only_second) == (int((first & ~second).sum()), int((second & ~first).sum()))


@pytest.mark.parametrize("second", [np.ones(3, bool), np.ones(4), np.ones((4, 1), bool)])
def test_points_that_are_no_pairs_are_refused(second):
    with pytest.raises(ValueError, match="`second` must"):
        paired_difference(np.ones(4, bool), second)


def test_defences_side_by_side(result):
    found = compare({"weak": surviving(result, 10), "strong": surviving(result, 50), "equal": surviving(result, 49)})
    assert [row.name for row in found.rows] == ["strong", "equal", "weak"]
    pairs = {(pair.first, pair.second): pair for pair in found.pairs}
    assert pairs["strong", "weak"].difference.only_first == 40
    np.testing.assert_allclose(pairs["strong", "weak"].p, 3 * 2 * 0.5**40, rtol=1e-6)  # Holm: the smallest of three
    assert pairs["strong", "equal"].p == 1.0
    assert "strong is level with equal (+1.7 points, 95 % interval" in str(pairs["strong", "equal"])
    assert "strong is 66.7 points more robust than weak (95 % interval" in str(pairs["strong", "weak"])
    assert "n = 60" in str(found) and "upper bound" in str(found)
    assert list(found.to_frame().columns[:6]) == ["defence", "n", "clean", "clean_low", "clean_high", "robust"]
    assert len(found.pairs_frame()) == 3


def test_only_what_was_attacked_alike_is_compared(result):
    with pytest.raises(ValueError, match="at least two"):
        compare({"one": result})
    with pytest.raises(ValueError, match=r"same points, ball and battery.*got .*0\.1.* for 'other'"):
        compare({"one": result, "other": msgspec.structs.replace(result, eps=0.1)})
    with pytest.raises(
        ValueError, match=r"run as often: 'one' has .*runs_of_battery=1.* got .*runs_of_battery=2.* for 'other'"
    ):
        compare({"one": result, "other": msgspec.structs.replace(result, seeds=(0, 1))})


def test_networks_that_met_other_attacks_are_not_compared(result):
    skipped = msgspec.structs.replace(result.attacks[1], skipped="it had nothing to work with")
    fewer = msgspec.structs.replace(result, attacks=[result.attacks[0], skipped])
    whole = msgspec.structs.replace(result, attacks=[result.attacks[0], msgspec.structs.replace(result.attacks[1], attacked=9)])
    for results in ({"one": whole, "other": fewer}, {"other": fewer, "one": whole}):
        with pytest.raises(
            ValueError,
            match=r"must have met the same attacks: 'one' met one that 'other' has not met, PGD-20 on margin: it",
        ):
            compare(results)
    # Where nothing was left for an attack, nobody knows whether it could have run.
    spared = msgspec.structs.replace(
        result, attacks=[result.attacks[0], msgspec.structs.replace(result.attacks[1], attacked=0)]
    )
    assert compare({"one": spared, "other": fewer}).missing == ("PGD-20 on margin: it had nothing to work with",)
    assert "\nnot run: PGD-20 on margin: it had nothing to work with\n" in str(compare({"one": fewer, "other": fewer}))


def test_a_curve_starts_from_what_a_stronger_battery_broke(make_classifier, points):
    x, _ = points("pytorch", n=40)
    classifier = make_classifier("pytorch")
    y = np.argmax(classifier.predict(x), axis=1)
    found = evaluate(classifier, x, y, eps=0.005, battery="quick", checks=False, verbose=False)
    broken = np.arange(40) % 2 == 0  # by whatever it met
    stronger = msgspec.structs.replace(
        found, points=msgspec.structs.replace(found.points, robust=pack(found.survived & ~broken))
    )
    plain, joined = (
        {
            one.eps: one.robust.correct
            for one in security_curve(classifier, x, y, (0.0, 0.002, 0.005, 0.01), evaluation=it, verbose=False)
        }
        for it in (None, stronger)
    )
    assert [joined[eps] for eps in (0.0, 0.002)] == [plain[eps] for eps in (0.0, 0.002)]
    assert joined[0.005] == int((found.survived & ~broken).sum()) < plain[0.005] and joined[0.01] <= joined[0.005]
    with pytest.raises(ValueError, match="`evaluation` must be of these points in Linf, got one of 40 points in Linf"):
        security_curve(classifier, x[:9], y[:9], (0.005,), evaluation=found, verbose=False)


def test_a_leaderboard_entry_has_numbers_for_numbers(result):
    entry = leaderboard_entry(result, name="tiny", dataset="points", architecture="cnn", link="https://example.org")
    keys = {"link", "name", "authors", "additional_data", "number_forward_passes", "dataset", "venue", "architecture", "eps"}
    assert keys | {"clean_acc", "reported", "autoattack_acc"} <= set(entry)
    assert json.loads(json.dumps(entry)) == entry
    assert entry["robust_acc"] == 100 * result.robust.value and entry["eps"] == 0.05
    assert entry["attacks"] == ["PGD-20 on cross-entropy", "PGD-20 on margin"]
    assert entry["number_forward_passes"] == sum(outcome.queries for outcome in result.attacks)
    assert entry["unreliable"] is True  # no check was run
    with pytest.raises(ValueError, match="measured here, got robust_acc"):
        leaderboard_entry(result, name="tiny", dataset="points", architecture="cnn", robust_acc=100)


def test_security_curves_are_drawn_with_their_intervals(make_classifier, points):
    x, y = points("pytorch", n=30)
    classifier = make_classifier("pytorch")
    options = dict(eps=0.05, battery="quick", checks=False, verbose=False)
    without = evaluate(classifier, x, y, **options)
    with_curve = without.with_curve(security_curve(classifier, x, y, (0.0, 0.1, 0.5), verbose=False))
    (axes,) = compare({"natural": with_curve, "b": without}).plot().axes
    (line,) = [line for line in axes.lines if line.get_label() == "natural"]
    np.testing.assert_allclose(line.get_xdata(), [0.0, 0.1, 0.5])
    np.testing.assert_allclose(line.get_ydata(), [100 * point.robust.value for point in with_curve.curve])
    with pytest.raises(ValueError, match="`results` must have curves to plot"):
        compare({"a": without, "b": without}).plot()
