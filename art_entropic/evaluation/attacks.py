"""ART's attacks, as rows of a table, each run so that it can be believed.

An attack sees a second estimator around the user's model (same weights, the attack's own loss, logits out) and runs on the
points that still stand. What it finds, at its end or on its way, is checked before it counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from art_entropic.backends.errors import NoIntervalRuleError
from art_entropic.backends.protocol import AttackObjective
from art_entropic.backends.registry import framework_module
from art_entropic.evaluation.objectives import LOSSES, OfLogits, margin, with_features, with_information
from art_entropic.evaluation.target import Ball, Target

MAX_RIVALS = 9
PGD_RESTARTS = 10
# Weights of the information beside the margin, in an attack on our own defence.
ENTROPIC_WEIGHTS = (-1.0, -0.1, 0.1, 1.0)
# Attacks that ask thousands of questions a point attack so many points.
COSTLY_POINTS = 50
# ART tiles an image 5 x 5; a tile of one pixel divides zero by zero.
SQUARE_L2_SIDE = 10


class CannotRunError(ValueError):
    """An attack has nothing to work with here; the message says what is missing."""


class Round(NamedTuple):
    """One run of an attack, on what the ones before left standing.

    Attributes:
        name: of the objective, for attacks that share it.
        objective: what it climbs.
        rival: number of the wrong class that it is aimed at, 0 the likeliest one; None aims at none.
        knows_origin: the objective is told the clean point.
        source: the classifier that is attacked in place of the target, for what it finds to be tried on the target.
    """

    name: str
    objective: AttackObjective
    rival: int | None = None
    knows_origin: bool = False
    source: Target | None = None


@dataclass(frozen=True)
class Attack:
    """One row of ATTACKS.

    Attributes:
        build: makes the ART attack from an estimator, a ball and a batch size.
        rounds: its runs on a target.
        max_points: attacks so many of the points it is given, no more.
        remark: what differs from the title for a model with that many classes.
        reads_logits_only: needs nothing of a classifier but its logits and their gradient.
        seeks_nearest: looks for the nearest adversarial example, inside the ball or not.
        spares_certified: too costly to try a certificate with; PROOF_ATTACK tries them in its place.
    """

    title: str
    build: Callable[[Any, Ball, int], Any]
    rounds: Callable[[Target, Ball], Sequence[Round]]
    max_points: int | None = None
    remark: Callable[[int], str] = lambda nb_classes: ""
    reads_logits_only: bool = True
    seeks_nearest: bool = False
    spares_certified: bool = False

    def title_for(self, nb_classes: int) -> str:
        remark = self.remark(nb_classes)
        return f"{self.title} ({remark})" if remark else self.title


def _pgd(steps: int) -> Callable[[Any, Ball, int], Any]:
    def build(estimator: Any, ball: Ball, batch_size: int) -> Any:
        from art.attacks.evasion import ProjectedGradientDescent

        return ProjectedGradientDescent(
            estimator,
            norm=ball.norm,
            eps=ball.eps,
            eps_step=2.5 * ball.eps / steps,
            max_iter=steps,
            num_random_init=1,
            batch_size=batch_size,
            verbose=False,
        )

    return build


def _apgd(steps: int) -> Callable[[Any, Ball, int], Any]:
    def build(estimator: Any, ball: Ball, batch_size: int) -> Any:
        from art.attacks.evasion import AutoProjectedGradientDescent

        if ball.norm == 1:
            # It steps along the gradient itself, where the steepest way in L1 is a single feature: on a linear network it finds
            # about half of what there is.
            raise CannotRunError("ART's APGD does not take the steepest step in L1, got the norm 1; PGD does")
        # loss_type None: the estimator's own loss. ART's own ones refuse other estimators, and its DLR builds n x n logits.
        return AutoProjectedGradientDescent(
            estimator,
            norm=ball.norm,
            eps=ball.eps,
            eps_step=2 * ball.eps,
            max_iter=steps,
            nb_random_init=1,
            batch_size=batch_size,
            loss_type=None,
            verbose=False,
        )

    return build


def _one_step(estimator: Any, ball: Ball, batch_size: int) -> Any:
    from art.attacks.evasion import FastGradientMethod

    return FastGradientMethod(estimator, norm=ball.norm, eps=ball.eps, batch_size=batch_size)


def _square(estimator: Any, ball: Ball, batch_size: int) -> Any:
    from art.attacks.evasion import SquareAttack

    if len(estimator.input_shape) != 3:
        raise CannotRunError(f"Square attacks images, got inputs of shape {estimator.input_shape}")
    if estimator.clip_values is None:
        raise CannotRunError("`classifier` must have clip_values for Square, got None")
    if ball.norm == 1:
        raise CannotRunError("Square works with the norms inf and 2, got 1")
    shape = estimator.input_shape[1:] if estimator.channels_first else estimator.input_shape[:-1]
    if ball.norm == 2 and min(shape, default=0) < SQUARE_L2_SIDE:
        raise CannotRunError(
            f"images must have {SQUARE_L2_SIDE} pixels a side for Square in L2, got {shape}: its tiles would be empty"
        )
    return SquareAttack(
        estimator, norm=ball.norm, eps=ball.eps, max_iter=1000, p_init=0.8, batch_size=batch_size, verbose=False
    )


def _hop_skip_jump(estimator: Any, ball: Ball, batch_size: int) -> Any:
    from art.attacks.evasion import HopSkipJump

    if ball.norm == 1:
        raise CannotRunError("HopSkipJump works with the norms inf and 2, got 1")
    return HopSkipJump(estimator, batch_size=batch_size, norm=ball.norm, max_iter=20, max_eval=500, verbose=False)


def _minimum_norm(estimator: Any, ball: Ball, batch_size: int) -> Any:
    from art.attacks.evasion import CarliniL2Method

    if ball.norm != 2:
        raise CannotRunError(f"Carlini & Wagner look for the nearest example in L2, got the norm {ball.norm_name}")
    return CarliniL2Method(estimator, max_iter=100, binary_search_steps=6, batch_size=batch_size, verbose=False)


def _reference(estimator: Any, ball: Ball, batch_size: int) -> Any:
    backend = estimator.backend
    reference_attack = framework_module(backend.framework).reference_attack
    if reference_attack is None:
        raise CannotRunError(
            f"torchattacks attacks PyTorch networks, got one of {backend.framework}; "
            "`to_pytorch` of art_entropic.benchmark.problems converts the networks of PROBLEMS"
        )
    if ball.norm == 1:
        raise CannotRunError("AutoAttack of torchattacks works with the norms inf and 2, got 1")
    if estimator.nb_classes < 4:
        raise CannotRunError(f"AutoAttack needs at least 4 classes for its DLR loss, got {estimator.nb_classes}")
    low, high = (None, None) if estimator.clip_values is None else map(np.asarray, estimator.clip_values)
    if low is None or not (np.all(low == 0) and np.all(high == 1)):
        raise CannotRunError(f"torchattacks needs inputs in [0, 1], got `clip_values` {estimator.clip_values}")
    seed = int(np.random.randint(2**31))  # seeded by whoever runs the attack; AutoAttack has a generator of its own
    try:
        return reference_attack(backend.estimator, ball.eps, ball.norm, seed)
    except ImportError as error:
        raise CannotRunError(
            "torchattacks is not installed: pip install --no-deps torchattacks (it asks for a release of requests from 2020, "
            "which no attack needs)"
        ) from error


def _one(loss: str) -> Callable[[Target, Ball], Sequence[Round]]:
    return _times(1, loss)


def _times(number: int, loss: str) -> Callable[[Target, Ball], Sequence[Round]]:
    return lambda target, ball: [Round(loss, OfLogits(LOSSES[loss]))] * number


def _rival_loss(nb_classes: int) -> str:
    return "dlr_to_rival" if nb_classes >= 4 else "margin_to_rival"


def _no_dlr(nb_classes: int) -> str:
    if nb_classes >= 4:
        return ""
    return f"margin in place of DLR, which needs 4 classes, the model has {nb_classes}"


def _each_rival(target: Target, ball: Ball) -> Sequence[Round]:
    loss = _rival_loss(target.nb_classes)
    number = min(target.nb_classes - 1, MAX_RIVALS)
    return [Round(loss, OfLogits(LOSSES[loss]), rival=rival) for rival in range(number)]


def _entropic(target: Target, ball: Ball) -> Sequence[Round]:
    if ball.norm == 1:
        raise CannotRunError(f"the information is measured over an Linf or an L2 ball, got the norm {ball.norm_name}")
    measure = target.known_measure
    if not measure.pointwise:
        raise CannotRunError(f"{measure.name!r} is one number for a whole batch, so no single point can climb it")
    return [
        Round(f"{measure.name} {weight:+g} at {ball.eps:g}", with_information(measure, weight, ball))
        for weight in ENTROPIC_WEIGHTS
    ]


def _each_layer(target: Target, ball: Ball) -> Sequence[Round]:
    try:
        names = target.backend.layer_names()
    except NoIntervalRuleError as error:
        raise CannotRunError(f"the layers of the network cannot be read: {error}") from error
    return [Round(f"features {name}", with_features(name), knows_origin=True) for name in names]


def _each_source(target: Target, ball: Ball) -> Sequence[Round]:
    if not target.sources:
        raise CannotRunError("no other classifier was given to craft on: pass `transfer_from`")
    objective = OfLogits(margin)
    return [Round("margin", objective, source=source) for source in target.sources.values()]


ATTACKS: dict[str, Attack] = {
    "fgsm": Attack("FGSM", _one_step, _one("cross_entropy")),
    "pgd_ce": Attack("PGD-20 on cross-entropy", _pgd(20), _one("cross_entropy")),
    "pgd_margin": Attack("PGD-20 on margin", _pgd(20), _one("margin")),
    "apgd_ce": Attack("APGD on cross-entropy", _apgd(100), _one("cross_entropy")),
    "apgd_t": Attack("APGD-T on DLR", _apgd(100), _each_rival, remark=_no_dlr),
    "pgd_restarts": Attack(f"PGD-20 on margin, {PGD_RESTARTS} restarts", _pgd(20), _times(PGD_RESTARTS, "margin")),
    "apgd_long": Attack("APGD on margin, 500 steps", _apgd(500), _one("margin")),
    "autoattack": Attack(
        "AutoAttack, standard, of torchattacks", _reference, _one("margin"), reads_logits_only=False, spares_certified=True
    ),
    "square": Attack("Square", _square, _one("margin")),
    "entropic": Attack("PGD-40 on margin and information, 4 weights", _pgd(40), _entropic, reads_logits_only=False),
    "features": Attack("PGD-40 on margin and features, each layer", _pgd(40), _each_layer, reads_logits_only=False),
    # Not by APGD: ART's returns its random start where the source itself is not fooled.
    "transfer": Attack(
        "PGD-40 on margin, crafted on other classifiers",
        _pgd(40),
        _each_source,
        reads_logits_only=False,
    ),
    "hop_skip_jump": Attack(
        f"HopSkipJump, {COSTLY_POINTS} points",
        _hop_skip_jump,
        _one("margin"),
        max_points=COSTLY_POINTS,
        seeks_nearest=True,
    ),
    "minimum_norm": Attack(
        f"Carlini & Wagner, nearest in L2, {COSTLY_POINTS} points",
        _minimum_norm,
        _one("margin"),
        max_points=COSTLY_POINTS,
        seeks_nearest=True,
    ),
}
PROOF_ATTACK = "pgd_margin"
_STANDARD = ("apgd_ce", "apgd_t", "pgd_restarts", "square")
BATTERIES: dict[str, tuple[str, ...]] = {
    "quick": ("pgd_ce", "pgd_margin"),
    "standard": _STANDARD,
    "reference": ("autoattack",),
    "full": (*_STANDARD, "entropic", "features", "transfer", "minimum_norm", "hop_skip_jump"),
}
