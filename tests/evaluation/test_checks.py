"""Controls: what masks gradients must be found out, what is robust must be left in peace."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from art_entropic.backends.registry import backend_for
from art_entropic.benchmark.defences import DEFENCES
from art_entropic.evaluation.attacks import ATTACKS, BATTERIES, CannotRunError
from art_entropic.evaluation.checks import CHECKS, CheckContext, retold, seen, verdict
from art_entropic.evaluation.evaluate import check_evaluation, evaluate
from art_entropic.evaluation.planted import find_planted
from art_entropic.evaluation.target import Ball, Target
from art_entropic.records import CheckOutcome
from art_entropic.statistics import accuracy

EPS = 0.15


def trained(defence, make_classifier, points, framework, nb_epochs=12):
    x, y = points(framework, n=384)
    classifier = make_classifier(framework)
    DEFENCES[defence].train(
        classifier, x, y, eps=EPS, nb_epochs=nb_epochs, batch_size=32, seed=0, learning_rate=1e-2, verbose=False
    )
    return classifier


def judged(classifier, points, framework, battery="quick", **options):
    x, y = points(framework, n=60, seed=1)
    return evaluate(classifier, x, y, eps=EPS, battery=battery, verbose=False, **options)


def status(result):
    return {check.check: check.status for check in result.checks}


def test_an_adversarially_trained_network_is_left_in_peace(framework, make_classifier, points):
    classifier = trained("madry_pgd", make_classifier, points, framework)
    natural = trained("natural", make_classifier, points, framework)
    result = judged(classifier, points, framework, battery="standard", transfer_from={"natural": natural})
    assert result.robust.value > 0.6
    assert np.all(result.certified_points <= result.survived)
    seen = status(result)
    assert list(seen) == list(CHECKS)
    # An image of 6 x 6 is too small for none of them but those that say so.
    assert {name for name, one in seen.items() if one != "pass"} == set(), result.checks
    assert result.verdict == f"no symptom found (all {len(CHECKS)} checks passed)"
    assert "upper bound" in str(result)
    x, y = points(framework, n=60, seed=1)
    later = check_evaluation(classifier, x, y, result.survived, EPS, transfer_from={"natural": natural})
    assert [one.status for one in later] == list(seen.values())


def scale_logits(classifier, factor):
    """The same decisions, and logits so large that cross-entropy is flat."""
    backend = backend_for(classifier)
    state = backend.state()
    last = list(state)[-2:]
    backend.load_state({name: array * factor if name in last else array for name, array in state.items()})


def test_saturated_logits_are_found_out(framework, make_classifier, points):
    classifier = trained("natural", make_classifier, points, framework)
    scale_logits(classifier, np.float32(1e5))
    result = judged(classifier, points, framework)
    seen = status(result)
    assert seen["gradients"] == "flag"
    (found,) = (check for check in result.checks if check.check == "gradients")
    assert found.value > 0.5 and found.n == 60 and "saturate" in found.advice
    assert f"{100 * found.value:.1f} % of the gradients are zero or not finite" in result.verdict


@pytest.fixture
def wrapped(make_classifier, points):
    """A naturally trained PyTorch network behind a module of the test's own."""
    torch = pytest.importorskip("torch")
    from art.estimators.classification import PyTorchClassifier

    def make(forward):
        inner = trained("natural", make_classifier, points, "pytorch")

        class Wrapper(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.network = inner.model

            def forward(self, x):
                return forward(self.network, x)

        return PyTorchClassifier(
            Wrapper(), torch.nn.CrossEntropyLoss(), (2, 6, 6), 3, channels_first=True, clip_values=(0.0, 1.0)
        )

    return make


def test_quantised_inputs_are_found_out(wrapped, points):
    import torch

    # Rounding to eighths has no gradient at all; a small slope keeps autograd alive, as such defences do.
    classifier = wrapped(lambda network, x: network(torch.round(8 * x) / 8 + 0 * x))
    result = judged(classifier, points, "pytorch")
    seen = status(result)
    assert result.robust.value > 0.9  # what a naive evaluation would have believed
    assert {seen["gradients"], seen["black_box"], seen["unbounded"]} == {"flag"}
    assert result.verdict.startswith("suspicious: ")
    x, y = points("pytorch", n=60, seed=1)
    later = check_evaluation(classifier, x, y, result.survived, EPS, battery="quick")
    assert {one.check: one.status for one in later} == seen


def test_a_network_without_any_gradient_is_found_out(wrapped, points):
    import torch

    classifier = wrapped(lambda network, x: network(torch.round(8 * x.detach()) / 8))
    result = judged(classifier, points, "pytorch")
    assert not result.missing  # a flat place is no error
    assert status(result)["gradients"] == "flag"
    assert result.verdict.startswith("suspicious: ")


def test_a_check_that_breaks_is_not_harmless(framework, make_classifier, points, monkeypatch):
    def broken(context):
        raise ZeroDivisionError("nothing to divide")

    monkeypatch.setitem(CHECKS, "random", replace(CHECKS["random"], run=broken))
    classifier = make_classifier(framework)
    x, _ = points(framework, n=10)
    result = evaluate(classifier, x, np.argmax(classifier.predict(x), axis=1), eps=1e-4, battery="quick", verbose=False)
    (found,) = (one for one in result.checks if one.check == "random")
    assert (found.status, found.reason) == ("fail", "ZeroDivisionError: nothing to divide")
    assert CHECKS["random"].title in result.verdict


def test_probabilities_fail_their_check(make_classifier, points):
    torch = pytest.importorskip("torch")
    classifier = make_classifier("pytorch")
    classifier.model.append(torch.nn.Softmax(dim=1))
    x, _ = points("pytorch", n=10)
    y = backend_for(classifier).logits(x).argmax(axis=1)
    seen = {one.check: one.status for one in check_evaluation(classifier, x, y, np.ones(10, bool), 0.1, battery="quick")}
    assert seen["logits"] == "flag"
    with pytest.raises(ValueError, match=r"`survived` must be bool of shape \(10,\), got float64"):
        check_evaluation(classifier, x, y, np.ones(10), 0.1)


def test_random_noise_is_found_out(wrapped, points):
    import torch

    classifier = wrapped(lambda network, x: network(x + 0.1 * torch.randn_like(x)))
    result = judged(classifier, points, "pytorch")
    assert status(result)["deterministic"] == "flag"
    assert not result.verdict.startswith("no symptom")


@pytest.mark.parametrize("kind", ["normalised over the batch", "noise by place"])
def test_an_answer_that_depends_on_the_batch_is_found_out(kind, wrapped, points):
    """Asked twice alike it answers alike. But no point has a robustness of its own."""
    import torch

    def of_the_batch(network, x):
        return network(x - x.mean(0) + 0.5)

    def by_place(network, x):
        return network(x + 0.2 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)))

    result = judged(wrapped(of_the_batch if kind == "normalised over the batch" else by_place), points, "pytorch")
    (found,) = (one for one in result.checks if one.check == "deterministic")
    assert found.status == "flag" and found.value > 1e-4
    assert "when it is asked again, or by itself" in result.verdict


def test_a_network_that_cannot_answer_on_one_point_is_refused_before_any_attack(wrapped, points):
    import torch

    norm = torch.nn.BatchNorm1d(72, track_running_stats=False)
    classifier = wrapped(lambda network, x: network(norm(x.flatten(1)).reshape(x.shape)))
    with pytest.raises(ValueError, match="but its network, on a batch of 1, fails with ValueError: Expected more than 1 value"):
        judged(classifier, points, "pytorch")
    squeezed = wrapped(lambda network, x: network(x).squeeze())
    with pytest.raises(ValueError, match=r"a batch of one point gets logits of shape \(3,\)"):
        judged(squeezed, points, "pytorch")


def test_where_nothing_is_right_nothing_could_be_checked(framework, make_classifier, points):
    classifier = make_classifier(framework)
    x, _ = points(framework, n=5)
    wrong = (np.argmax(classifier.predict(x), axis=1) + 1) % 3
    result = evaluate(classifier, x, wrong, eps=0.1, battery="quick", verbose=False)
    assert {one.status for one in result.checks} == {"skipped"}
    assert result.verdict == "nothing could be checked: no point is right without an attack"


def test_winners_take_all_is_found_out(wrapped, points):
    import torch

    def k_winners(network, x):
        # After Xiao et al. 2020: a discontinuous activation on the input, whose gradients point nowhere.
        flat = x.flatten(1)
        shattered = flat + 0.3 * torch.sign(torch.sin(200.0 * flat)).detach()
        return network(shattered.reshape(x.shape))

    result = judged(wrapped(k_winners), points, "pytorch")
    assert result.verdict.startswith(("suspicious", "broken by"))


def test_the_activation_measure_is_exposed(framework, make_classifier, points):
    from art_entropic import EntropicTrainer

    x, y = points(framework, n=384)
    classifier = make_classifier(framework)
    EntropicTrainer(classifier, EPS * 2, measure="activation", verbose=False).fit(x, y, nb_epochs=8, batch_size=32, seed=0)
    x, y = points(framework, n=100, seed=1)
    result = evaluate(classifier, x, y, eps=EPS * 2, battery="quick", checks=False, verbose=False)
    assert result.clean.value > 0.95
    assert result.verdict.startswith("broken by PGD-20")


def test_a_battery_is_measured_by_what_was_planted(framework, make_classifier, points):
    classifier = trained("entropic_interval", make_classifier, points, framework)
    x, _ = points(framework, n=20, seed=1)
    target, ball = Target.of(classifier), Ball(EPS, np.inf)
    strong = find_planted(target, x, ball, BATTERIES["standard"], seed=0)
    weak = find_planted(target, x, ball, ["fgsm"], seed=0)
    assert strong.n >= 10 and strong.found >= 0.95 * strong.n
    assert weak.n == strong.n and weak.found < strong.found
    assert strong.n + strong.by_chance <= 20
    with pytest.raises(CannotRunError, match="no attack of these can look for a planted example, got transfer"):
        find_planted(target, x, ball, ["transfer"], seed=0)


def test_an_attack_that_asks_for_gradients_of_classes_finds_what_was_planted(framework, make_classifier, points):
    target = Target.of(trained("natural", make_classifier, points, framework, nb_epochs=2))
    x, _ = points(framework, n=2, seed=1)
    found = find_planted(target, x, Ball(1.0, 2.0), ["minimum_norm"], seed=0)
    assert found.n >= 1 and found.found >= 1


def check(name, alarm="pass", value=0.06):
    return CheckOutcome(check=name, title=CHECKS[name].title, status=alarm, value=value, n=200, meaning="", advice="")


@pytest.mark.parametrize(
    ("robust", "statuses", "expected"),
    [
        (60, {"one_step": "pass", "random": "skipped"}, "no symptom found (1 check passed, 12 skipped)"),
        (
            60,
            {"one_step": "flag", "bounds": "fail"},
            "suspicious: one step of FGSM breaks more points than twenty of PGD, by 6.0 % of 200; "
            "6.0 % of what the attacks returned lies outside the ball or the clip range, or is not finite",
        ),
        (1, {"one_step": "pass"}, "broken by B"),
        (
            1,
            {"transfer": "flag"},
            "broken by B (and suspicious: 6.0 % of 200 points survive PGD and fall to examples crafted on another network)",
        ),
        (60, {}, "no checks were run"),
    ],
)
def test_verdicts(robust, statuses, expected):
    checks = [check(name, one) for name, one in statuses.items()]
    assert verdict(accuracy(robust, 100), 10, {"A": 2, "B": 30}, checks) == expected


@pytest.mark.parametrize("name", CHECKS)
def test_every_check_says_what_it_saw(name):
    assert not {"{", "}"} & set(seen(check(name, "flag"))) and seen(check(name, "flag")) != seen(check(name, "flag", None))


def test_a_verdict_of_a_record_says_what_was_seen_where_the_record_holds_it():
    old = f"suspicious: not so: {CHECKS['black_box'].title}; did not run: Square"
    said = "suspicious: Square, which sees no gradient, breaks more points than PGD, by 6.0 % of 200; did not run: Square"
    assert retold(old, [check("black_box", "flag")]) == said
    assert retold(said, [check("black_box", "flag")]) == said
    assert retold(old, [check("black_box", "flag", value=None)]) == retold(old, []) == old
    assert retold("no symptom found in 12 of 13 checks", []) == "no symptom found (12 checks passed, 1 skipped)"
    assert retold("no symptom found in 13 of 13 checks", []) == "no symptom found (all 13 checks passed)"


def test_a_check_that_cannot_run_says_why(make_classifier, points, framework):
    classifier = make_classifier(framework, clip_values=None)
    x, _ = points(framework, n=20)
    result = evaluate(classifier, x, np.argmax(classifier.predict(x), axis=1), eps=0.1, battery="quick", verbose=False)
    skipped = {one.check: one.reason for one in result.checks if one.status == "skipped"}
    assert set(skipped) >= {"black_box", "unbounded", "transfer"}
    assert "`classifier` must have clip_values" in skipped["unbounded"] and "transfer_from" in skipped["transfer"]
    assert all(one.value is None and not one.advice for one in result.checks if one.status == "skipped")


@pytest.fixture
def recorded(monkeypatch):
    """Puts an attack that breaks nothing in the place of another, and tells how often it was given each point."""

    def record(name):
        given = Counter()

        class Recorder:
            def generate(self, x, y):
                given.update(point.tobytes() for point in x)
                return x.copy()

        row = replace(ATTACKS[name], build=lambda *_: Recorder(), rounds=ATTACKS["pgd_margin"].rounds)
        monkeypatch.setitem(ATTACKS, name, row)
        return given

    return record


def test_no_check_repeats_what_the_battery_did(framework, make_classifier, points, recorded):
    weak, white = recorded("square"), [recorded(name) for name in ("pgd_ce", "pgd_margin")]
    classifier = make_classifier(framework)
    x, _ = points(framework, n=40)
    y = np.argmax(classifier.predict(x), axis=1)
    result = evaluate(classifier, x, y, eps=0.03, battery="standard", verbose=False)
    # The battery's APGD broke some, which Square then never met; too few for it to matter, or met by the check alone.
    assert 0 < result.runs["square"].attacked.sum() < 40 and set(weak.values()) == {1}
    # At the radius itself, at half of it or at twice, and without a bound.
    assert max(white[0].values()) == 2 and max(white[1].values()) <= 4


def test_a_certified_point_is_attacked_by_no_check(framework, make_classifier, points, recorded):
    given = {name: recorded(name) for name in ("fgsm", "square", "apgd_long", "transfer", "pgd_ce", "pgd_margin")}
    target = Target.of(make_classifier(framework))
    x, _ = points(framework, n=30)
    certified = np.arange(30) < 20
    context = CheckContext(
        target, x, target.predict(x), np.ones(30, bool), certified, Ball(1e-4, np.inf), seed=0, attacks=BATTERIES["quick"]
    )
    for name in ("gradients", "one_step", "black_box", "random", "more_steps"):
        found = CHECKS[name].run(context)
        assert not found.suspicious and found.n == (10 if name == "gradients" else 30)
    met = set().union(*given.values())
    assert met == {point.tobytes() for point in x[20:]}
    # Nobody has proved anything for more room.
    assert CHECKS["unbounded"].run(context).n == 30 and max(given["pgd_ce"].values()) == 2


def test_what_is_known_of_an_attack_is_not_asked_again(framework, make_classifier, points):
    target = Target.of(make_classifier(framework))
    x, _ = points(framework, n=12)
    context = CheckContext(
        target, x, target.predict(x), np.ones(12, bool), np.zeros(12, bool), Ball(0.1, np.inf), seed=0, attacks=()
    )
    first = context.broken("pgd_margin", np.arange(8)).copy()
    asked = target.forward_passes
    assert asked >= 8
    np.testing.assert_array_equal(context.broken("pgd_margin", np.arange(8)), first)
    assert target.forward_passes == asked
    later = replace(context, known={"pgd_margin": context.attack("pgd_margin", np.arange(8)).of(np.arange(12))}, _tallies={})
    assert later.known_first("pgd_margin", np.array([9, 3, 11, 2]))[0].tolist() == [3, 2, 9, 11]
    np.testing.assert_array_equal(later.broken("pgd_margin", np.arange(8)), first)
    assert target.forward_passes == asked
    later.attack("pgd_margin", np.arange(12))
    assert target.forward_passes > asked
