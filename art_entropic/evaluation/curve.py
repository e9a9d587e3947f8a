"""Robust accuracy over the radius."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from art_entropic._validate import check_logits, choice, flag, listed, non_negative, norm_name, norm_of, seed_of
from art_entropic.evaluation.attacks import BATTERIES
from art_entropic.evaluation.cascade import Cascade, Progress
from art_entropic.evaluation.case import Case, check_certificates
from art_entropic.evaluation.result import CURVE_BATTERY, BatteryError, Evaluation, digest_of
from art_entropic.records import CurvePoint
from art_entropic.statistics import accuracy


def security_curve(
    classifier: Any,
    x: Any,
    y: Any,
    eps_values: Sequence[float],
    norm: float | str = "inf",
    battery: str = CURVE_BATTERY,
    seed: int = 0,
    *,
    evaluation: Evaluation | None = None,
    verbose: bool = True,
) -> list[CurvePoint]:
    """Attack a classifier at several radii. A point that falls at one stays fallen at all larger ones.

    Far enough out a curve must reach zero: one that does not tells of a broken attack, not of a robust classifier.

    Args:
        classifier: as `evaluate` takes it. It leaves as it came.
        x: test points, as for `evaluate`.
        y: their classes, as for `evaluate`.
        eps_values: radii in the units of x, >= 0; at 0 nothing is attacked.
        norm: of the perturbations, as for `evaluate`.
        battery: a name of BATTERIES.
        seed: of the attacks' random numbers.
        evaluation: what `evaluate` found on the same points and norm: what its stronger battery broke at its eps stays fallen
            from there on.
        verbose: show progress on stderr.
    Returns:
        One point for each radius, ascending. `Evaluation.with_curve` puts them beside an evaluation, for `compare` to draw.
    Raises:
        TypeError, ValueError: as `evaluate` does; or `evaluation` is of other points or of another norm.
        BatteryError: no attack could run at one of the radii.
        RuntimeError: an attack broke a point that was certified.
    """
    names = BATTERIES[choice("battery", battery, BATTERIES)]
    seed, verbose = seed_of("seed", seed), flag("verbose", verbose)
    radii = sorted({non_negative("eps_values", radius) for radius in listed("eps_values", eps_values, "radii")})
    case = Case.of(classifier, x, y, [radius for radius in radii if radius > 0], norm)
    check_logits(case.logits, case.target.nb_classes)
    if evaluation is not None:
        _check_evaluation(evaluation, case, norm_name(norm_of(norm)))
    run = Cascade(case)
    points = [CurvePoint(eps=0.0, robust=accuracy(case.right))] if 0 in radii else []
    with Progress(len(names) * len(case.balls), verbose) as progress:
        for ball in case.balls:
            if evaluation is not None and ball.eps >= evaluation.eps:
                run.fell(np.flatnonzero(evaluation.clean_correct & ~evaluation.survived))
            outcomes = [run.attack(name, ball, seed, progress) for name in names]
            if all(outcome.not_run for outcome in outcomes):
                raise BatteryError(f"no attack of the curve could run at eps {ball.eps:g}: {outcomes[0].not_run}")
            # The cheapest method: here certificates hold the curve, nobody counts them.
            check_certificates(case.certified(ball, "ibp"), run.broken, f"the curve at eps {ball.eps:g}")
            points.append(CurvePoint(eps=ball.eps, robust=accuracy(run.standing)))
    return points


def _check_evaluation(evaluation: Evaluation, case: Case, norm: str) -> None:
    digest = digest_of(case.target.classifier, case.x, case.y)
    if (evaluation.points_sha256, evaluation.norm) != (digest, norm):
        raise ValueError(
            f"`evaluation` must be of these points in L{norm}, got one of {evaluation.clean.n} points in L{evaluation.norm} "
            f"with digest {evaluation.points_sha256[:12]}, these have {digest[:12]}"
        )
