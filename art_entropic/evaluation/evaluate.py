"""How robust a classifier is: a battery of attacks on the same points, certificates and checks."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from art_entropic._validate import check_callable, check_logits, choice, flag, folder_to_write, seed_of
from art_entropic.evaluation.attacks import BATTERIES
from art_entropic.evaluation.cascade import Cascade, Progress
from art_entropic.evaluation.case import Case, check_certificates
from art_entropic.evaluation.checks import CheckContext, checked_points, run_checks, verdict
from art_entropic.evaluation.kept import Finished
from art_entropic.evaluation.result import BatteryError, Evaluation, digest_of, missing_of
from art_entropic.measures import Measure
from art_entropic.ops import Array
from art_entropic.records import Accuracy, AttackOutcome, CheckOutcome, PointsRecord, pack
from art_entropic.statistics import accuracy


def evaluate(
    classifier: Any,
    x: Any,
    y: Any,
    eps: float,
    norm: float | str = "inf",
    battery: str = "standard",
    seeds: int | Sequence[int] = 0,
    *,
    checks: bool = True,
    cascade: bool = True,
    measure: str | Measure | None = None,
    transfer_from: Mapping[str, Any] | None = None,
    folder: str | os.PathLike[str] | None = None,
    verbose: bool = True,
    progress: Callable[[str], object] | None = None,
) -> Evaluation:
    """Attack a classifier on test data, certify it if its layers allow, and look for symptoms of attacks that fail.

    Args:
        classifier: an ART PyTorchClassifier, TensorFlowV2Classifier or KerasClassifier that returns logits. It is not changed.
        x: test points of shape (n, *classifier.input_shape), raw units, inside clip_values.
        y: classes of the points, indices (n,) or one-hot rows (n, nb_classes).
        eps: radius of the perturbations, in the units of x.
        norm: norm of the perturbations: "inf" or np.inf, 2, or 1.
        battery: a name of BATTERIES.
        seeds: seeds of the attacks, >= 0; with several, the battery runs once for each, and a point must survive all runs.
        checks: run CHECKS on the first 200 points that are classified right without an attack.
        cascade: let each attack see only the points that survived the attacks before it. With False every attack sees every
            point that is classified right: the same worst case, up to random numbers, at a multiple of the time.
        measure: measure that the classifier was retrained with, a name of MEASURES or the value itself, for the adaptive attack
            of the battery `full`. None takes `interval` if every layer has a rule, else `channel`.
        transfer_from: other classifiers by name, on the same inputs, such as the natural network or an adversarially trained
            one. The battery `full` and a check try adversarial examples of these classifiers.
        folder: folder for finished attacks, so that an interrupted evaluation continues with the next attack; None keeps none.
        verbose: show progress on stderr.
        progress: called with a line for each attack and each check as it begins, for a window or a log of your own.
    Returns:
        The evaluation. Points that are classified wrong without an attack count as broken. `security_curve` and
        `attacked_examples` compute what figures show in addition.
    Raises:
        TypeError: `classifier` is not a supported estimator, or an argument is of the wrong type.
        ValueError: an argument is out of its range, the classifier returns probabilities or values that are not finite, or it
            does not predict by the logits of its network.
        BatteryError: no attack of the battery could run.
        RuntimeError: an attack broke a point that was certified.
    """
    started = time.perf_counter()
    names = BATTERIES[choice("battery", battery, BATTERIES)]
    all_seeds = _check_seeds(seeds)
    checks, cascade, verbose = flag("checks", checks), flag("cascade", cascade), flag("verbose", verbose)
    told = None if progress is None else check_callable("progress", progress)
    case = Case.of(classifier, x, y, [eps], norm, measure=measure, sources=transfer_from)
    (ball,), nb_classes = case.balls, case.target.nb_classes
    check_logits(case.logits, nb_classes)
    home = None if folder is None else folder_to_write("folder", folder)  # made last, so that a bad argument leaves none behind

    with Progress(len(names) * len(all_seeds), verbose, checks=checks, told=told) as bar:
        proof, reason = case.certificates(ball)
        certified = None if proof is None else proof.proved
        store = None if home is None else Finished(home, case)
        run = Cascade(case, certified if cascade else None, cascade=cascade, store=store)
        outcomes = [run.attack(name, ball, seed, bar) for seed in all_seeds for name in names]
        if all(outcome.not_run for outcome in outcomes):
            reasons = "; ".join(missing_of(outcomes))
            raise BatteryError(f"no attack of the battery {battery!r} could run, so there is no robust accuracy. {reasons}")
        check_certificates(certified, run.broken, f"the battery {battery!r}")
        found: list[CheckOutcome] = []
        if checks:
            # Tallies of several seeds are of more than the one attack that a check would run.
            known = {
                name: run.tallies[name]
                for name, outcome in zip(names, outcomes, strict=False)
                if len(all_seeds) == 1 and not outcome.error
            }
            context = CheckContext.of(case, run.standing, certified, all_seeds[0], names, known=known, battery=run.tallies)
            found = run_checks(context, bar.check)
            bar.advance()
    if verbose and run.taken:
        print(f"{run.taken} of the attacks had been finished before, in {home}", file=sys.stderr)
    if proof is not None and not case.is_trained_for_bounds:
        reason = proof.nothing_because
    robust = accuracy(run.standing)
    return Evaluation(
        eps=ball.eps,
        norm=ball.norm_name,
        battery=battery,
        seeds=all_seeds,
        points_sha256=digest_of(classifier, case.x, case.y),
        points=PointsRecord(
            clean=pack(case.right),
            robust=pack(run.standing),
            certified=None if certified is None else pack(certified),
            certified_by={} if proof is None else {name: pack(found) for name, found in proof.by.items()},
            broken_by={name: pack(tally.broken) for name, tally in run.tallies.items()},
        ),
        runs=run.tallies,
        clean=accuracy(case.right),
        robust=robust,
        certified=None if reason is not None or certified is None else accuracy(certified),
        certified_reason=reason,
        attacks=outcomes,
        distances=run.distances,
        checks=found,
        verdict=verdict_on(robust, nb_classes, outcomes, found),
        seconds=time.perf_counter() - started,
    )


def check_evaluation(
    classifier: Any,
    x: Any,
    y: Any,
    survived: Array,
    eps: float,
    norm: float | str = "inf",
    battery: str = "standard",
    seed: int = 0,
    transfer_from: Mapping[str, Any] | None = None,
    progress: Callable[[str], object] | None = None,
) -> list[CheckOutcome]:
    """Run CHECKS for an earlier evaluation, on the first 200 points that are classified right without an attack.

    Args:
        classifier, x, y, eps, norm, battery, transfer_from: the arguments that `evaluate` was given.
        progress: called with a line for each check as it begins.
        survived: bool (n,), the points that survived the battery.
        seed: seed of the checks.
    Raises:
        TypeError, ValueError: as `evaluate` does.
    """
    names = BATTERIES[choice("battery", battery, BATTERIES)]
    case = Case.of(classifier, x, y, [eps], norm, sources=transfer_from)
    survived, n = np.asarray(survived), len(case.x)
    if survived.dtype != bool or survived.shape != (n,):
        raise ValueError(f"`survived` must be bool of shape ({n},), got {survived.dtype} of shape {survived.shape}")
    seed = seed_of("seed", seed)
    told = None if progress is None else check_callable("progress", progress)
    return run_checks(CheckContext.of(case, survived, _certified_of_checked(case), seed, names), told)


def _certified_of_checked(case: Case) -> Array | None:
    """Bool (n,), those of the points of the checks that have a certificate."""
    (ball,), chosen = case.balls, checked_points(case)
    try:
        check_logits(case.logits, case.target.nb_classes)
    except ValueError:  # which a check tells; there is no margin to prove
        return None
    if not len(chosen):
        return None
    checked = replace(case, x=case.x[chosen], y=case.y[chosen], logits=case.logits[chosen], right=case.right[chosen])
    found = checked.certified(ball)
    if found is None:
        return None
    certified = np.zeros(len(case.x), dtype=bool)
    certified[chosen] = found
    return certified


def verdict_on(robust: Accuracy, nb_classes: int, outcomes: Sequence[AttackOutcome], findings: Sequence[CheckOutcome]) -> str:
    """Give the verdict on an evaluation from the outcomes of its attacks and its checks."""
    tally: dict[str, int] = {}
    for outcome in outcomes:
        tally[outcome.attack] = tally.get(outcome.attack, 0) + outcome.broken
    return verdict(robust, nb_classes, tally, findings, [outcome.attack for outcome in outcomes if outcome.error])


def _check_seeds(seeds: int | Sequence[int]) -> tuple[int, ...]:
    given = tuple(seeds) if isinstance(seeds, (Sequence, np.ndarray)) and np.ndim(seeds) else (seeds,)
    if not given:
        raise ValueError(f"`seeds` must hold at least one seed, got {seeds!r}")
    return tuple(dict.fromkeys(seed_of("seeds", seed) for seed in given))
