"""How robust a classifier is: a battery of attacks on the same points, certificates and checks."""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from art_entropic._validate import (
    check_eps,
    check_inputs,
    check_labels,
    check_logits,
    choice,
    file_path,
    flag,
    listed,
    non_negative,
    whole_number,
)
from art_entropic.backends.errors import NoIntervalRuleError
from art_entropic.backends.registry import backend_for
from art_entropic.certificates import certify
from art_entropic.evaluation.attacks import ATTACKS, BATTERIES
from art_entropic.evaluation.cascade import Cascade, Progress
from art_entropic.evaluation.checks import CHECKED_POINTS, CheckContext, run_checks, verdict
from art_entropic.evaluation.kept import Finished
from art_entropic.evaluation.result import CURVE_BATTERY, BatteryError, Evaluation
from art_entropic.evaluation.target import Ball, Target, check_norm, largest_distance
from art_entropic.guards import check_predictions
from art_entropic.measures import MEASURES
from art_entropic.ops import Array
from art_entropic.records import Accuracy, AttackedExample, AttackOutcome, CheckOutcome, CurvePoint, PointsRecord, pack
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
    measure: str | None = None,
    transfer_from: Mapping[str, Any] | None = None,
    curve_eps: Sequence[float] = (),
    n_gallery: int = 0,
    folder: str | os.PathLike[str] | None = None,
    verbose: bool = True,
) -> Evaluation:
    """Attack a classifier on test data, certify it where its layers allow, and look for symptoms of attacks that fail.

    Args:
        classifier: an ART PyTorchClassifier, TensorFlowV2Classifier or KerasClassifier that returns logits. It leaves as it
            came.
        x: test points of shape (n, *classifier.input_shape), raw units, inside clip_values.
        y: their classes, indices (n,) or one-hot rows (n, nb_classes).
        eps: radius of the perturbations, in the units of x.
        norm: "inf" or np.inf, 2, or 1.
        battery: a name of BATTERIES.
        seeds: of the attacks' random numbers, >= 0; with several, the battery runs once for each, and a point must survive all.
        checks: run CHECKS on the first 200 points that are right without an attack.
        cascade: each attack sees only what the ones before it left standing. Without, every attack sees every point that is
            right: the same worst case, up to the attacks' random numbers, at a multiple of the time.
        measure: a name of MEASURES, the one that the classifier was retrained with, for the adaptive attack of the battery
            `full`. None takes `interval` where every layer has a rule, else `channel`.
        transfer_from: other classifiers by name, on the same inputs, such as the natural and an adversarially trained twin:
            examples crafted on them are tried here, by the battery `full` and by a check.
        curve_eps: radii of the security curve, >= 0. A point that falls at one stays fallen at all larger ones.
        n_gallery: number of attacked examples to keep, at most one of each class. Only image data has a gallery.
        folder: where finished attacks are kept, so that an interrupted evaluation goes on with the next one; None keeps none.
        verbose: show progress on stderr.
    Returns:
        Points that the classifier gets wrong without an attack count as broken.
    Raises:
        TypeError: not a supported estimator.
        ValueError: an argument is out of its range, the classifier returns probabilities or values that are not finite, or it
            predicts by something else than its logits.
        BatteryError: no attack of the battery could run.
        RuntimeError: an attack broke a point that was certified.
    """
    started = time.perf_counter()
    if measure is not None:
        choice("measure", measure, MEASURES)
    names = BATTERIES[choice("battery", battery, BATTERIES)]
    n_gallery, all_seeds = whole_number("n_gallery", n_gallery), _check_seeds(seeds)
    checks, cascade, verbose = flag("checks", checks), flag("cascade", cascade), flag("verbose", verbose)
    home = None if folder is None else file_path("folder", folder)
    target, ball, x, y, logits = _prepared(classifier, x, y, eps, norm, measure, transfer_from)
    check_logits(logits, int(classifier.nb_classes))
    radii = _check_radii(curve_eps, ball.norm, target)

    clean_predictions = target.predict(x)
    clean_correct = clean_predictions == y
    total = len(names) * len(all_seeds) + len(BATTERIES[CURVE_BATTERY]) * sum(r > 0 for r in radii) + checks
    with Progress(total, verbose) as progress:
        certified_points, reason = _certify(classifier, x, y, ball)
        store = None if home is None else Finished(home, target, x, y)
        run = Cascade(target, x, y, clean_correct, certified_points if cascade else None, cascade=cascade, store=store)
        outcomes = [run.attack(name, ball, seed, progress) for seed in all_seeds for name in names]
        if all(outcome.error or outcome.skipped for outcome in outcomes):
            told = "; ".join(f"{outcome.attack}: {outcome.error or outcome.skipped}" for outcome in outcomes)
            raise BatteryError(f"no attack of the battery {battery!r} could run, so there is no robust accuracy. {told}")
        _check_certificates(certified_points, run.broken, f"the battery {battery!r}")
        curve = _curve(target, x, y, clean_correct, all_seeds[0], radii, ball, certified_points, progress)
        findings = _checked(run, clean_correct, ball, all_seeds[0], names, progress) if checks else []
    robust = accuracy(run.standing)
    return Evaluation(
        eps=ball.eps,
        norm=ball.norm_name,
        battery=battery,
        seeds=all_seeds,
        points_sha256=_digest_of(classifier, x, y),
        points=PointsRecord(
            clean=pack(clean_correct),
            robust=pack(run.standing),
            certified=None if certified_points is None else pack(certified_points),
            broken_by={name: pack(one.broken) for name, one in run.runs.items()},
        ),
        runs=run.runs,
        clean=accuracy(clean_correct),
        robust=robust,
        certified=None if certified_points is None else accuracy(certified_points),
        certified_reason=reason,
        attacks=outcomes,
        distances=[found.tolist() for found in run.distances],
        curve=curve,
        checks=findings,
        verdict=verdict_on(robust, target.nb_classes, outcomes, findings),
        examples=_gallery(target, x, y, clean_predictions, run, n_gallery),
        seconds=time.perf_counter() - started,
    )


def _prepared(
    classifier: Any, x: Any, y: Any, eps: float, norm: float | str, measure: str | None, sources: Mapping[str, Any] | None
) -> tuple[Target, Ball, Array, Array, Array]:
    """The arguments that every evaluation shares, checked, and the logits; the target knows whether it always says the same."""
    sources = _check_sources(classifier, sources)
    # Whatever is attacked is told first by name where it is no classifier.
    backend_for(classifier)
    x = check_inputs(x, input_shape=tuple(classifier.input_shape), clip_values=classifier.clip_values)
    target = Target.of(classifier, measure, sources, x.shape[1:])
    ball = _check_ball(eps, norm, target)
    y = check_labels(y, n=len(x), nb_classes=int(classifier.nb_classes))
    for one in (target, *target.sources.values()):
        check_predictions(one.backend, x)
    logits = target.logits(x)
    return replace(target, is_deterministic=np.array_equal(logits, target.logits(x))), ball, x, y, logits


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
) -> list[CheckOutcome]:
    """CHECKS of an evaluation that was made before, on the first 200 points that are right without an attack.

    Args:
        classifier, x, y, eps, norm, battery, transfer_from: as `evaluate` had them.
        survived: bool (n,), the points that survived the battery.
        seed: of the checks' random numbers.
    Raises:
        TypeError, ValueError: as `evaluate` does.
    """
    names = BATTERIES[choice("battery", battery, BATTERIES)]
    target, ball, x, y, _ = _prepared(classifier, x, y, eps, norm, None, transfer_from)
    survived = np.asarray(survived)
    if survived.dtype != bool or survived.shape != (len(x),):
        raise ValueError(f"`survived` must be bool of shape ({len(x)},), got {survived.dtype} of shape {survived.shape}")
    index = np.flatnonzero(target.predict(x) == y)[:CHECKED_POINTS]
    return run_checks(CheckContext(target, x[index], y[index], survived[index], ball, whole_number("seed", seed), names))


def _digest_of(classifier: Any, x: Array, y: Array) -> str:
    images = np.moveaxis(x, 1, -1) if classifier.channels_first and x.ndim == 4 else x
    return hashlib.sha256(np.ascontiguousarray(images).tobytes() + y.tobytes()).hexdigest()


def verdict_on(robust: Accuracy, nb_classes: int, outcomes: Sequence[AttackOutcome], findings: Sequence[CheckOutcome]) -> str:
    """The verdict from what the attacks of a battery did, and what its checks found."""
    tally: dict[str, int] = {}
    for outcome in outcomes:
        tally[outcome.attack] = tally.get(outcome.attack, 0) + outcome.broken
    return verdict(robust, nb_classes, tally, findings, [outcome.attack for outcome in outcomes if outcome.error])


def _checked(run: Cascade, right: Array, ball: Ball, seed: int, names: Sequence[str], progress: Progress) -> list[CheckOutcome]:
    index = np.flatnonzero(right)[:CHECKED_POINTS]
    kept = [one for name, one in run.runs.items() if not ATTACKS[name].seeks_nearest]
    context = CheckContext(run.target, run.x[index], run.y[index], run.standing[index], ball, seed, names, kept)
    findings = run_checks(context, progress.show)
    progress.advance()
    return findings


def _curve(
    target: Target,
    x: Array,
    y: Array,
    clean_correct: Array,
    seed: int,
    radii: list[float],
    ball: Ball,
    certified_points: Array | None,
    progress: Progress,
) -> list[CurvePoint]:
    run = Cascade(target, x, y, clean_correct)
    points = []
    for radius in radii:
        if radius > 0:
            outcomes = [run.attack(name, Ball(radius, ball.norm), seed, progress) for name in BATTERIES[CURVE_BATTERY]]
            if all(outcome.error for outcome in outcomes):
                raise RuntimeError(f"no attack of the curve could run at eps {radius:g}: {outcomes[0].error}")
        if radius <= ball.eps:
            _check_certificates(certified_points, run.broken, f"the curve at eps {radius:g}")
        points.append(CurvePoint(eps=radius, robust=accuracy(run.standing)))
    return points


def _certify(classifier: Any, x: Array, y: Array, ball: Ball) -> tuple[Array | None, str | None]:
    # The box around x contains the L2 ball of the same radius, so its certificate holds there too.
    try:
        return certify(classifier, x, y, ball.eps), None
    except NoIntervalRuleError as error:
        return None, str(error)


def _check_certificates(certified_points: Array | None, broken: Array, what: str) -> None:
    if certified_points is None:
        return
    both = np.flatnonzero(certified_points & broken)
    if len(both):
        raise RuntimeError(
            f"{len(both)} points are certified and yet broken by {what}, the first at index {both[0]}: "
            "an interval rule is not sound, or the model is not the same in both; please report this"
        )


def _gallery(
    target: Target, x: Array, y: Array, clean_predictions: Array, run: Cascade, n_gallery: int
) -> list[AttackedExample]:
    if n_gallery == 0 or x.ndim != 4:
        return []
    fallen = np.flatnonzero(run.broken)
    chosen = [int(fallen[y[fallen] == label][0]) for label in np.unique(y[fallen])][:n_gallery]
    if not chosen:
        return []
    attacked = target.predict(run.x_adv[chosen])
    clean_images, attacked_images = (_images(target, points[chosen]) for points in (x, run.x_adv))
    return [
        AttackedExample(
            index=index,
            label=int(y[index]),
            clean_prediction=int(clean_predictions[index]),
            attacked_prediction=int(attacked[place]),
            shape=clean_images[place].shape,
            clean=clean_images[place].ravel().tolist(),
            attacked=attacked_images[place].ravel().tolist(),
        )
        for place, index in enumerate(chosen)
    ]


def _images(target: Target, points: Array) -> Array:
    """Points as images: (n, h, w, c), the clip range mapped to [0, 1]."""
    clip_values = target.classifier.clip_values
    low, high = (points.min(), points.max()) if clip_values is None else map(np.asarray, clip_values)
    scaled = np.clip((points - low) / np.maximum(high - low, 1e-12), 0.0, 1.0)
    return np.moveaxis(scaled, 1, -1) if target.classifier.channels_first else scaled


def _check_seeds(seeds: int | Sequence[int]) -> tuple[int, ...]:
    given = tuple(seeds) if isinstance(seeds, (Sequence, np.ndarray)) and np.ndim(seeds) else (seeds,)
    if not given:
        raise ValueError(f"`seeds` must name at least one seed, got {seeds!r}")
    return tuple(dict.fromkeys(whole_number("seeds", seed) for seed in given))


def _check_sources(classifier: Any, sources: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if sources is not None and not isinstance(sources, Mapping):
        raise TypeError(f"`transfer_from` must map names to classifiers, got {type(sources).__name__}")
    for name, source in (sources or {}).items():
        Target.of(source)  # raises TypeError for what is not a classifier
        wish, got = ((tuple(one.input_shape), int(one.nb_classes)) for one in (classifier, source))
        if wish != got:
            raise ValueError(f"`transfer_from` must have the shapes of `classifier`, {wish}, got {got} for {name!r}")
    return sources or {}


def _check_radii(curve_eps: Sequence[float], norm: float, target: Target) -> list[float]:
    radii = {non_negative("curve_eps", radius) for radius in listed("curve_eps", curve_eps, "radii")}
    return sorted(_check_ball(radius, norm, target).eps if radius > 0 else radius for radius in radii)


def _check_ball(eps: Any, norm: Any, target: Target) -> Ball:
    exponent, clip_values = check_norm(norm), target.classifier.clip_values
    if math.isinf(exponent) or clip_values is None:
        return Ball(check_eps(eps, clip_values), exponent)
    ball = Ball(check_eps(eps, None), exponent)
    largest = largest_distance(clip_values, target.input_shape, exponent)
    if ball.eps > largest:
        raise ValueError(
            f"`eps` must not exceed {largest:g}, the L{ball.norm_name} distance of the farthest points in `clip_values`, "
            f"got {eps!r}"
        )
    return ball
