"""Robust accuracy that can be believed: the share of points that survive every attack of a battery."""

from __future__ import annotations

import hashlib
import math
import os
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
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
from art_entropic.attacks import (
    ATTACKS,
    BATTERIES,
    AttackRun,
    Ball,
    CannotRunError,
    Target,
    attack_points,
    check_norm,
    largest_distance,
)
from art_entropic.backends import Array, NoIntervalRuleError, backend_for
from art_entropic.certificates import certify
from art_entropic.checks import CHECKED_POINTS, UPPER_BOUND, Scene, run_checks, verdict
from art_entropic.files import replacing
from art_entropic.guards import check_predictions
from art_entropic.information import MEASURES
from art_entropic.records import (
    SCHEMA,
    Accuracy,
    AttackedExample,
    AttackOutcome,
    CheckOutcome,
    CurvePoint,
    Findings,
    PointsRecord,
    installed_version,
    pack,
    unpack,
)
from art_entropic.statistics import accuracy

if TYPE_CHECKING:
    import pandas as pd

CURVE_BATTERY = "quick"
# Raised with every change of the attacks' code or parameters, so that what was found before is not taken for new.
EVALUATION_REVISION = 2
FINGERPRINT_POINTS = 100


class BatteryError(RuntimeError):
    """No attack of a battery could run; the message says why, attack by attack."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What `evaluate` found. Every array has one entry per test point.

    Attributes:
        points_sha256: of the test points, channels last, and their classes, in their order.
        clean_correct: bool (n,), right without an attack.
        survived: bool (n,), right without an attack and under each attack of the battery.
        broken_by: for each attack by name, bool (n,), the points that fell to it. In a cascade an attack sees only points that
            the attacks before it left standing; those with a certificate meet the first attack alone, as a check of the proof.
        runs: for each attack by name, what it did to each point, as `to_frame` shows it.
        certified_points: bool (n,), no perturbation of the ball can change the prediction; None without a certificate.
        clean, robust, certified: the shares, with Wilson 95 % intervals.
        certified_reason: why there is no certificate.
        attacks: one outcome per attack of the battery and seed, in order.
        distances: for each of these, the distances (in the norm of the ball) of the adversarial examples that it found, inside
            the ball or not.
        curve: robust accuracy under the quick battery, one point per radius, ascending.
        checks: of the evaluation, in the order of CHECKS; empty where they were not asked for.
        verdict: "no symptom found ...", "suspicious: ..." or "broken by ...".
        examples: points that fell, beside what they fell to.
    """

    eps: float
    norm: str
    battery: str
    seeds: tuple[int, ...]
    points_sha256: str
    clean_correct: Array
    survived: Array
    broken_by: dict[str, Array]
    runs: dict[str, AttackRun]
    certified_points: Array | None
    clean: Accuracy
    robust: Accuracy
    certified: Accuracy | None
    certified_reason: str | None
    attacks: list[AttackOutcome]
    distances: list[Array]
    curve: list[CurvePoint]
    checks: list[CheckOutcome]
    verdict: str
    examples: list[AttackedExample]
    seconds: float

    @property
    def missing(self) -> list[str]:
        """The attacks of the battery that did not run, each with the reason."""
        return [f"{one.attack}: {one.error or one.skipped}" for one in self.attacks if one.error or one.skipped]

    def points_record(self) -> PointsRecord:
        """What became of each point, for a record."""
        return PointsRecord(
            clean=pack(self.clean_correct),
            robust=pack(self.survived),
            certified=None if self.certified_points is None else pack(self.certified_points),
            broken_by={name: pack(broken) for name, broken in self.broken_by.items()},
        )

    def findings(self) -> Findings:
        """What `join_findings` takes: all but the checks, without an array as large as the points."""
        return Findings(
            clean=self.clean,
            robust=self.robust,
            certified=self.certified,
            certified_reason=self.certified_reason,
            attacks=self.attacks,
            distances=[distances.tolist() for distances in self.distances],
            curve=self.curve,
            points=self.points_record(),
            examples=self.examples,
            seconds=self.seconds,
        )

    def summary(self) -> dict[str, Any]:
        """Everything but what became of each point, for a file in JSON."""
        names = ("eps", "norm", "battery", "seeds", "clean", "robust", "certified", "certified_reason", "verdict", "missing",
                 "attacks", "curve", "checks", "seconds")  # fmt: skip
        return {name: getattr(self, name) for name in names} | {"points": self.points_record(), "note": UPPER_BOUND}

    def to_frame(self) -> pd.DataFrame:
        """One row for each point and attack: attacked, success, distance (in the norm of the ball), queries, seconds.

        The seconds of an attack are shared out by queries. Distance is that of the adversarial example found, inside the ball
        or not, NaN without one. Queries are those of which the attack told what they are about.
        """
        import pandas as pd

        n = len(self.clean_correct)
        frames = []
        for name, run in self.runs.items():
            seconds = sum(one.seconds for one in self.attacks if one.attack == self._titles[name])
            share = run.queries / max(1, int(run.queries.sum()))
            frames.append(
                pd.DataFrame(
                    {
                        "point": np.arange(n),
                        "attack": name,
                        "clean": self.clean_correct,
                        "attacked": run.attacked,
                        "success": run.broken,
                        "distance": run.distance,
                        "queries": run.queries,
                        "seconds": seconds * share,
                    }
                )
            )
        return pd.concat(frames, ignore_index=True)

    def distance_curve(self, attack: str) -> list[CurvePoint]:
        """Robust accuracy over the radius as an attack that looks for the nearest adversarial example sees it.

        A point stands at every radius below the distance of what the attack found, everywhere if it found nothing, nowhere if
        it is wrong without an attack. In a cascade the attack was given only what the others left standing: for a curve of
        all points evaluate with `cascade=False`.

        Args:
            attack: a name of the battery's attacks; most telling for `minimum_norm` and `hop_skip_jump`.
        Returns:
            One point for each distance, ascending, of the points that the attack was given and those that are wrong.
        Raises:
            ValueError: no attack of that name ran, or it was given no point.
        """
        choice("attack", attack, self.runs)
        run = self.runs[attack]
        given = run.attacked
        if not given.any():
            raise ValueError(f"`attack` must have been given a point, got {attack!r}, which was given none")
        kept = given | ~self.clean_correct
        distance = np.where(self.clean_correct, np.where(np.isfinite(run.distance), run.distance, np.inf), 0.0)[kept]
        radii = np.unique(np.concatenate([[0.0], distance[np.isfinite(distance)]]))
        return [CurvePoint(eps=float(radius), robust=accuracy(distance > radius)) for radius in radii]

    @property
    def _titles(self) -> dict[str, str]:
        names = BATTERIES[self.battery]
        return {name: outcome.attack for name, outcome in zip(names * len(self.seeds), self.attacks, strict=True)}

    def __str__(self) -> str:
        shares = f"clean {_shown(self.clean)}, robust {_shown(self.robust)}"
        certified = "" if self.certified is None else f", certified {_shown(self.certified)}"
        missing = f" The battery was incomplete: {'; '.join(self.missing)}." if self.missing else ""
        return (
            f"{shares}{certified}; n = {self.robust.n}, L{self.norm} eps {self.eps:g}, battery {self.battery!r}. "
            f"Verdict: {self.verdict}. {UPPER_BOUND}{missing}"
        )


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
    with _Progress(total, verbose) as progress:
        certified_points, reason = _certify(classifier, x, y, ball)
        store = None if home is None else _Finished(home, target, x, y)
        run = _Cascade(target, x, y, clean_correct, certified_points if cascade else None, cascade=cascade, store=store)
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
        clean_correct=clean_correct,
        survived=run.standing,
        broken_by={name: one.broken for name, one in run.runs.items()},
        runs=run.runs,
        certified_points=certified_points,
        clean=accuracy(clean_correct),
        robust=robust,
        certified=None if certified_points is None else accuracy(certified_points),
        certified_reason=reason,
        attacks=outcomes,
        distances=run.distances,
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
    return run_checks(Scene(target, x[index], y[index], survived[index], ball, whole_number("seed", seed), names))


def join_findings(parts: Sequence[Findings], n_gallery: int) -> Findings:
    """Findings of the same evaluation on several sets of points, as those on all of the points.

    Nothing is averaged: points stand behind one another, counts are added, and intervals and medians are taken anew from them.

    Args:
        parts: in the order of their points, of one network, battery, ball and radii of the curve.
        n_gallery: number of examples to keep, as each part did.
    Returns:
        The indices of the examples are those among all points; the seconds are the sum.
    Raises:
        ValueError: there is no part, or one was not evaluated as the first one was.
    """
    _check_alike(parts)
    first = parts[0]
    sizes = [part.clean.n for part in parts]
    certified = [part.certified for part in parts if part.certified is not None]
    outcomes = zip(*(part.attacks for part in parts), strict=True)
    distances = [[*chain.from_iterable(found)] for found in zip(*(part.distances for part in parts), strict=True)]
    return Findings(
        clean=_added([part.clean for part in parts]),
        robust=_added([part.robust for part in parts]),
        certified=_added(certified) if certified else None,
        certified_reason=first.certified_reason,
        attacks=[_joined_outcome(*one) for one in zip(outcomes, distances, strict=True)],
        distances=distances,
        curve=[
            CurvePoint(eps=points[0].eps, robust=_added([point.robust for point in points]))
            for points in zip(*(part.curve for part in parts), strict=True)
        ],
        points=_joined_points([part.points for part in parts], sizes),
        examples=_joined_gallery([part.examples for part in parts], sizes, n_gallery),
        seconds=math.fsum(part.seconds for part in parts),
    )


# What findings must share to be joined.
_LIKENESS: dict[str, Callable[[Findings], Any]] = {
    "the attacks": lambda part: [one.attack for one in part.attacks],
    "the radii": lambda part: [point.eps for point in part.curve],
    "a certificate": lambda part: part.certified is not None,
    "no certificate because": lambda part: part.certified_reason,
    "the points broken by": lambda part: sorted(part.points.broken_by),
}


def _check_alike(parts: Sequence[Findings]) -> None:
    if not parts:
        raise ValueError("`parts` must hold the findings on at least one set of points, got none")
    for number, part in enumerate(parts):
        for what, read in _LIKENESS.items():
            wish, got = read(parts[0]), read(part)
            if wish != got:
                raise ValueError(
                    f"`parts` must be of one evaluation, got {what} {got!r} in part {number}, {wish!r} in the first"
                )


def _added(shares: Sequence[Accuracy]) -> Accuracy:
    return accuracy(sum(share.correct for share in shares), sum(share.n for share in shares))


def _joined_outcome(outcomes: Sequence[AttackOutcome], distances: Sequence[float]) -> AttackOutcome:
    """One attack on all points: it failed where it failed on some of them."""
    return AttackOutcome(
        attack=outcomes[0].attack,
        attacked=sum(one.attacked for one in outcomes),
        broken=sum(one.broken for one in outcomes),
        seconds=math.fsum(one.seconds for one in outcomes),
        queries=sum(one.queries for one in outcomes),
        error=_each_once(one.error for one in outcomes),
        skipped=_each_once(one.skipped for one in outcomes),
        distance=_median(distances),
    )


def _each_once(messages: Iterable[str | None]) -> str | None:
    return "; ".join(dict.fromkeys(message for message in messages if message)) or None


def _joined_points(parts: Sequence[PointsRecord], sizes: Sequence[int]) -> PointsRecord:
    def joined(texts: Iterable[str]) -> str:
        # Bits of a part end anywhere in a byte, so the next part's cannot simply follow.
        return pack(np.concatenate([unpack(text, n) for text, n in zip(texts, sizes, strict=True)]))

    certified = [part.certified for part in parts if part.certified is not None]
    return PointsRecord(
        clean=joined(part.clean for part in parts),
        robust=joined(part.robust for part in parts),
        certified=joined(certified) if certified else None,
        broken_by={name: joined(part.broken_by[name] for part in parts) for name in parts[0].broken_by},
    )


def _joined_gallery(parts: Sequence[Sequence[AttackedExample]], sizes: Sequence[int], n_gallery: int) -> list[AttackedExample]:
    """As `_gallery` chooses, the first that fell of each class: a class that is among the first of all is so in its part."""
    first: dict[int, AttackedExample] = {}
    for examples, before in zip(parts, accumulate((0, *sizes[:-1])), strict=True):
        for example in examples:
            first.setdefault(example.label, msgspec.structs.replace(example, index=before + example.index))
    return [first[label] for label in sorted(first)][:n_gallery]


def _digest_of(classifier: Any, x: Array, y: Array) -> str:
    images = np.moveaxis(x, 1, -1) if classifier.channels_first and x.ndim == 4 else x
    return hashlib.sha256(np.ascontiguousarray(images).tobytes() + y.tobytes()).hexdigest()


def verdict_on(robust: Accuracy, nb_classes: int, outcomes: Sequence[AttackOutcome], findings: Sequence[CheckOutcome]) -> str:
    """The verdict from what the attacks of a battery did, and what its checks found."""
    tally: dict[str, int] = {}
    for outcome in outcomes:
        tally[outcome.attack] = tally.get(outcome.attack, 0) + outcome.broken
    return verdict(robust, nb_classes, tally, findings, [outcome.attack for outcome in outcomes if outcome.error])


def _checked(
    run: _Cascade, right: Array, ball: Ball, seed: int, names: Sequence[str], progress: _Progress
) -> list[CheckOutcome]:
    index = np.flatnonzero(right)[:CHECKED_POINTS]
    kept = [one for name, one in run.runs.items() if not ATTACKS[name].seeks_nearest]
    scene = Scene(run.target, run.x[index], run.y[index], run.standing[index], ball, seed, names, kept)
    findings = run_checks(scene, progress.show)
    progress.advance()
    return findings


class _Cascade:
    """Attacks one after another; each sees only what the ones before left standing, or, if not a cascade, all that was right.

    Certified points are attacked once: no attack can break them, and one is enough to expose a wrong certificate.
    """

    def __init__(
        self,
        target: Target,
        x: Array,
        y: Array,
        standing: Array,
        certified: Array | None = None,
        *,
        cascade: bool = True,
        store: _Finished | None = None,
    ) -> None:
        self.target, self.x, self.y = target, x, y
        self.standing = standing.copy()
        self.broken = np.zeros(len(x), dtype=bool)
        self.runs: dict[str, AttackRun] = {}
        self.distances: list[Array] = []
        self.x_adv = x.copy()
        self._right = standing.copy()
        self._cascade, self._store = cascade, store
        self._certified = np.zeros(len(x), dtype=bool) if certified is None else certified
        self._certified_were_attacked = False

    def _points(self) -> Array:
        if not self._cascade:
            return np.flatnonzero(self._right)
        return np.flatnonzero(self.standing & ~self._certified if self._certified_were_attacked else self.standing)

    def attack(self, name: str, ball: Ball, seed: int, progress: _Progress) -> AttackOutcome:
        title = ATTACKS[name].title_for(self.target.nb_classes)
        progress.show(f"{title} at {ball.eps:g}")
        index = self._points()
        queries, run, facts = self.target.forward_passes, AttackRun.on(self.x[index]), {}
        started, spent = time.perf_counter(), None
        if len(index):
            try:
                run, spent = self._run(name, index, ball, seed)
                self._certified_were_attacked = self._certified_were_attacked or not run.errors
                if run.errors:
                    facts = {"error": "; ".join(run.errors)}
            except CannotRunError as problem:
                facts = {"skipped": str(problem)}
            except Exception as problem:  # recorded: one attack that cannot run must not hide what the others find
                facts = {"error": f"{type(problem).__name__}: {problem}"}
        seconds, asked = spent or (time.perf_counter() - started, self.target.forward_passes - queries)
        fell = index[run.broken]
        self.x_adv[fell] = run.x_adv[run.broken]
        self.standing[fell], self.broken[fell] = False, True
        self.runs[name] = _joined(self.runs.get(name), run, index, self.x)
        progress.advance()
        found = run.distance[np.isfinite(run.distance)]
        self.distances.append(found)
        return AttackOutcome(
            attack=title,
            attacked=len(index),
            broken=len(fell),
            seconds=seconds,
            queries=asked,
            distance=_median(found),
            **facts,
        )

    def _run(self, name: str, index: Array, ball: Ball, seed: int) -> tuple[AttackRun, tuple[float, int] | None]:
        """The run, and, where it was kept from an earlier start, what it took then."""
        kept = None if self._store is None else self._store.read(name, index, ball, seed)
        if kept is not None:
            return kept
        started, queries = time.perf_counter(), self.target.forward_passes
        run = attack_points(name, self.target, self.x[index], self.y[index], ball, seed)
        if self._store is not None and not run.errors:
            self._store.write(name, index, ball, seed, run, time.perf_counter() - started, self.target.forward_passes - queries)
        return run, None


def _median(distances: Sequence[float] | Array) -> float | None:
    return float(np.median(distances)) if len(distances) else None


def _joined(before: AttackRun | None, run: AttackRun, index: Array, x: Array) -> AttackRun:
    """What an attack did to all points: with a second seed, beside what it did with the first."""
    whole = AttackRun.on(x) if before is None else before
    whole.broken[index] |= run.broken
    whole.x_adv[index[run.broken]] = run.x_adv[run.broken]
    whole.distance[index] = np.fmin(whole.distance[index], run.distance)
    whole.attacked[index] |= run.attacked
    whole.out_of_bounds[index] |= run.out_of_bounds
    first = whole.gradients[index] == 0
    whole.flat_at_start[index[first]] = run.flat_at_start[first]
    for name in ("queries", "gradients", "flat", "not_finite"):
        getattr(whole, name)[index] += getattr(run, name)
    return whole


class _Finished:
    """Finished attacks in a folder, each named by all that determines it: network, points, attack, ball, seed, versions."""

    def __init__(self, folder: Path, target: Target, x: Array, y: Array) -> None:
        self._folder, self._target = folder, target
        known = hashlib.sha256(
            f"{SCHEMA} {EVALUATION_REVISION} {target.framework} {target.measure} {target.batch_size}".encode()
        )
        for package in ("adversarial-robustness-toolbox", "numpy", "torch", "tensorflow", "torchattacks"):
            known.update(f"{package} {installed_version(package)}".encode())
        for name, one in {"": target, **target.sources}.items():
            for weight, array in one.backend.state().items():
                known.update(f"{name} {weight} {array.dtype}".encode() + np.ascontiguousarray(array).tobytes())
            # Preprocessing and whatever else is no weight show in what the network says.
            known.update(one.logits(x[:FINGERPRINT_POINTS]).tobytes())
        known.update(repr(target.classifier.clip_values).encode() + x.tobytes() + y.tobytes())
        self._known = known

    def _path(self, name: str, index: Array, ball: Ball, seed: int) -> Path:
        key = self._known.copy()
        key.update(f"{name} {ball} {seed}".encode() + index.tobytes())
        return self._folder / f"{name}-{key.hexdigest()[:20]}.npz"

    def read(self, name: str, index: Array, ball: Ball, seed: int) -> tuple[AttackRun, tuple[float, int]] | None:
        path = self._path(name, index, ball, seed)
        if not path.exists():
            return None
        try:
            # Opened here, since NumPy leaves a file open that is no whole archive.
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                run = AttackRun(**{name: file[name] for name in AttackRun.__dataclass_fields__ if name != "errors"})
                return run, (float(file["seconds"]), int(file["asked"]))
        except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError, TypeError, NotImplementedError) as error:
            print(f"{path} is damaged ({error}): its attack is run again", file=sys.stderr)
            return None

    def write(self, name: str, index: Array, ball: Ball, seed: int, run: AttackRun, seconds: float, asked: int) -> None:
        path = self._path(name, index, ball, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays = {name: value for name, value in vars(run).items() if name != "errors"}
        with replacing(path, path.suffix) as temporary:
            np.savez(temporary, seconds=seconds, asked=asked, **arrays)


def _curve(
    target: Target,
    x: Array,
    y: Array,
    clean_correct: Array,
    seed: int,
    radii: list[float],
    ball: Ball,
    certified_points: Array | None,
    progress: _Progress,
) -> list[CurvePoint]:
    run = _Cascade(target, x, y, clean_correct)
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
    target: Target, x: Array, y: Array, clean_predictions: Array, run: _Cascade, n_gallery: int
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


def _shown(share: Accuracy) -> str:
    return f"{share.value:.1%} [{share.low:.1%}, {share.high:.1%}]"


class _Progress:
    """A bar on stderr, one step per attack."""

    def __init__(self, total: int, verbose: bool) -> None:
        from tqdm import tqdm

        self._bar = tqdm(total=total, desc="attacks", disable=not verbose, leave=False)

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def show(self, text: str) -> None:
        self._bar.set_postfix_str(text)

    def advance(self) -> None:
        self._bar.update()
