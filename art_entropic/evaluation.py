"""Robust accuracy that can be believed: the share of points that survive every attack of a battery."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from art_entropic._validate import check_eps, check_inputs, check_labels, check_logits, choice, non_negative, whole_number
from art_entropic.attacks import ATTACKS, BATTERIES, Ball, Target, attack_points, check_norm
from art_entropic.backends import Array, NoIntervalRuleError
from art_entropic.certificates import certify
from art_entropic.records import Accuracy, AttackedExample, AttackOutcome, CurvePoint, PointsRecord, pack
from art_entropic.statistics import accuracy

CURVE_BATTERY = "quick"


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What `evaluate` found. Every array has one entry per test point.

    Attributes:
        clean_correct: bool (n,), right without an attack.
        survived: bool (n,), right without an attack and under each attack of the battery.
        broken_by: for each attack by name, bool (n,), the points that fell to it. An attack sees only points that the
            attacks before it left standing; those with a certificate meet the first attack alone, as a check of the proof.
        certified_points: bool (n,), no perturbation of the ball can change the prediction; None without a certificate.
        clean, robust, certified: the shares, with Wilson 95 % intervals.
        certified_reason: why there is no certificate.
        attacks: one outcome per attack of the battery, in order.
        curve: robust accuracy under the quick battery, one point per radius, ascending.
        examples: points that fell, beside what they fell to.
    """

    eps: float
    norm: str
    battery: str
    seed: int
    clean_correct: Array
    survived: Array
    broken_by: dict[str, Array]
    certified_points: Array | None
    clean: Accuracy
    robust: Accuracy
    certified: Accuracy | None
    certified_reason: str | None
    attacks: list[AttackOutcome]
    curve: list[CurvePoint]
    examples: list[AttackedExample]
    seconds: float

    def points_record(self) -> PointsRecord:
        """What became of each point, for a record."""
        return PointsRecord(
            clean=pack(self.clean_correct),
            robust=pack(self.survived),
            certified=None if self.certified_points is None else pack(self.certified_points),
            broken_by={name: pack(broken) for name, broken in self.broken_by.items()},
        )

    def __str__(self) -> str:
        shares = f"clean {_shown(self.clean)}, robust {_shown(self.robust)}"
        certified = "" if self.certified is None else f", certified {_shown(self.certified)}"
        return (
            f"{shares}{certified}; n = {self.robust.n}, L{self.norm} eps {self.eps:g}, battery {self.battery!r}. "
            "Robust accuracy is an upper bound: a better attack may do better."
        )


def evaluate(
    classifier: Any,
    x: Any,
    y: Any,
    eps: float,
    norm: float | str = "inf",
    battery: str = "standard",
    seed: int = 0,
    curve_eps: Sequence[float] = (),
    n_gallery: int = 0,
    verbose: bool = True,
) -> Evaluation:
    """Attack a classifier on test data, and certify it where its layers allow.

    Args:
        classifier: an ART PyTorchClassifier, TensorFlowV2Classifier or KerasClassifier that returns logits. It leaves as it
            came.
        x: test points of shape (n, *classifier.input_shape), raw units, inside clip_values.
        y: their classes, indices (n,) or one-hot rows (n, nb_classes).
        eps: radius of the perturbations, in the units of x.
        norm: "inf" or np.inf, or 2.
        battery: a name of BATTERIES.
        seed: of the attacks' random numbers, >= 0.
        curve_eps: radii of the security curve, >= 0. A point that falls at one stays fallen at all larger ones.
        n_gallery: number of attacked examples to keep, at most one of each class. Only image data has a gallery.
        verbose: show progress on stderr.
    Returns:
        Points that the classifier gets wrong without an attack count as broken.
    Raises:
        TypeError: not a supported estimator.
        ValueError: an argument is out of its range, or the classifier returns probabilities or values that are not finite.
        RuntimeError: no attack of the battery could run, or an attack broke a point that was certified.
    """
    started = time.perf_counter()
    target = Target.of(classifier)
    ball = Ball(check_eps(eps, classifier.clip_values), check_norm(norm))
    names = BATTERIES[choice("battery", battery, BATTERIES)]
    seed, n_gallery = whole_number("seed", seed), whole_number("n_gallery", n_gallery)
    radii = _check_radii(curve_eps, classifier.clip_values)
    x = check_inputs(x, input_shape=tuple(classifier.input_shape), clip_values=classifier.clip_values)
    y = check_labels(y, n=len(x), nb_classes=int(classifier.nb_classes))
    logits = target.logits(x)
    check_logits(logits, int(classifier.nb_classes))
    target = replace(target, is_deterministic=np.array_equal(logits, target.logits(x)))

    clean_predictions = target.predict(x)
    clean_correct = clean_predictions == y
    with _Progress(len(names) + len(BATTERIES[CURVE_BATTERY]) * sum(r > 0 for r in radii), verbose) as progress:
        certified_points, reason = _certify(classifier, x, y, ball)
        run = _Cascade(target, x, y, clean_correct, seed, certified_points)
        outcomes = [run.attack(name, ball, progress) for name in names]
        if all(outcome.error for outcome in outcomes):
            told = "; ".join(f"{outcome.attack}: {outcome.error}" for outcome in outcomes)
            raise RuntimeError(f"no attack of the battery {battery!r} could run, so there is no robust accuracy. {told}")
        _check_certificates(certified_points, run.broken, f"the battery {battery!r}")
        curve = _curve(target, x, y, clean_correct, seed, radii, ball, certified_points, progress)
    return Evaluation(
        eps=ball.eps,
        norm=ball.norm_name,
        battery=battery,
        seed=seed,
        clean_correct=clean_correct,
        survived=run.standing,
        broken_by=run.broken_by,
        certified_points=certified_points,
        clean=accuracy(clean_correct),
        robust=accuracy(run.standing),
        certified=None if certified_points is None else accuracy(certified_points),
        certified_reason=reason,
        attacks=outcomes,
        curve=curve,
        examples=_gallery(target, x, y, clean_predictions, run, n_gallery),
        seconds=time.perf_counter() - started,
    )


class _Cascade:
    """Attacks one after another; each sees only what the ones before left standing.

    Certified points are attacked once: no attack can break them, and one is enough to expose a wrong certificate.
    """

    def __init__(self, target: Target, x: Array, y: Array, standing: Array, seed: int, certified: Array | None = None) -> None:
        self.target, self.x, self.y, self.seed = target, x, y, seed
        self.standing = standing.copy()
        self.certified = np.zeros(len(x), dtype=bool) if certified is None else certified
        self.certified_were_attacked = False
        self.broken = np.zeros(len(x), dtype=bool)
        self.broken_by: dict[str, Array] = {}
        self.x_adv = x.copy()

    def attack(self, name: str, ball: Ball, progress: _Progress) -> AttackOutcome:
        attack = ATTACKS[name]
        _, remark = attack.loss_for(int(self.target.classifier.nb_classes))
        title = f"{attack.title} ({remark})" if remark else attack.title
        progress.show(f"{attack.title} at {ball.eps:g}")
        index = np.flatnonzero(self.standing & ~self.certified if self.certified_were_attacked else self.standing)
        started, queries = time.perf_counter(), self.target.forward_passes
        error = None
        fell = np.zeros(len(index), dtype=bool)
        if len(index):
            try:
                fell, candidates = attack_points(name, self.target, self.x[index], self.y[index], ball, self.seed)
                self.x_adv[index[fell]] = candidates[fell]
                self.certified_were_attacked = True
            except Exception as problem:  # recorded: one attack that cannot run must not hide what the others find
                error = f"{type(problem).__name__}: {problem}"
        self.standing[index[fell]] = False
        self.broken[index[fell]] = True
        self.broken_by[name] = self.broken_by.get(name, np.zeros(len(self.x), dtype=bool))
        self.broken_by[name][index[fell]] = True
        progress.advance()
        return AttackOutcome(
            attack=title,
            attacked=len(index),
            broken=int(fell.sum()),
            seconds=time.perf_counter() - started,
            queries=self.target.forward_passes - queries,
            error=error,
        )


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
    run = _Cascade(target, x, y, clean_correct, seed)
    points = []
    for radius in radii:
        if radius > 0:
            outcomes = [run.attack(name, Ball(radius, ball.norm), progress) for name in BATTERIES[CURVE_BATTERY]]
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


def _check_radii(curve_eps: Sequence[float], clip_values: Any) -> list[float]:
    radii = {non_negative("curve_eps", radius) for radius in curve_eps}
    return sorted(check_eps(radius, clip_values) if radius > 0 else radius for radius in radii)


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
