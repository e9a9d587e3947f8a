"""ART's attacks, as rows of a table, each run so that it can be believed.

An attack sees a second estimator around the user's model (same weights, the attack's own loss, logits out) and runs on the
points that still stand. What it finds, at its end or on its way, is checked before it counts.
"""

from __future__ import annotations

import contextlib
import math
import random
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from art_entropic.backends import (
    Array,
    AttackObjective,
    Backend,
    Batch,
    NoIntervalRuleError,
    Ops,
    Tensor,
    View,
    backend_for,
    framework_module,
    framework_of,
)
from art_entropic.information import MEASURES, ReadOut

if TYPE_CHECKING:
    from art_entropic.attacked import Attacked, Path

# Float32 rounding of x + d, relative to the range of the data.
ROUNDING = 1e-6
MAX_RIVALS = 9
PGD_RESTARTS = 10
# Features of a batch: on a processor the layers of a small network then stay in its caches.
BATCH_FEATURES = {"processor": 2**17, "accelerator": 2**21}
# Weights of the information beside the margin, in an attack on our own defence.
ENTROPIC_WEIGHTS = (-1.0, -0.1, 0.1, 1.0)
# Measures that read each point by itself.
POINTWISE = ("interval", "channel")
# Attacks that ask thousands of questions a point attack so many points.
COSTLY_POINTS = 50
_TINY = 1e-12
# ART tiles an image 5 x 5; a tile of one pixel divides zero by zero.
SQUARE_L2_SIDE = 10


# -------------------------------------------------------------------------------------------------------------- losses


def _true_logit(ops: Ops, z: Tensor, y: Tensor) -> Tensor:
    return ops.sum(ops.where(y == 1, z, 0 * z), axis=1)


def cross_entropy(ops: Ops, z: Tensor, y: Tensor) -> Tensor:
    """-log softmax(z)_y, (n,)."""
    return -_true_logit(ops, ops.log_softmax(z), y)


def margin(ops: Ops, z: Tensor, y: Tensor) -> Tensor:
    """max_{i != y} z_i - z_y, (n,): positive exactly where the prediction is wrong."""
    return ops.max(ops.where(y == 1, z - math.inf, z), axis=1) - _true_logit(ops, z, y)


def margin_to_rival(ops: Ops, z: Tensor, y: Tensor) -> Tensor:
    """z_t - z_y, (n,)."""
    rival = ops.sum(ops.where((y > 0) & (y < 1), z, 0 * z), axis=1)
    return rival - _true_logit(ops, z, y)


def dlr_to_rival(ops: Ops, z: Tensor, y: Tensor) -> Tensor:
    """(z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2), the targeted difference of logits ratio of Croce & Hein 2020, eq. (7)."""
    top = ops.largest(z, 4)
    return margin_to_rival(ops, z, y) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + _TINY)


Loss = Callable[[Ops, Tensor, Tensor], Tensor]
"""Logits (n, nb_classes) and one-hot rows, the rival of a row marked by a value between 0 and 1, to what is climbed, (n,)."""

LOSSES: dict[str, Loss] = {
    "cross_entropy": cross_entropy,
    "margin": margin,
    "margin_to_rival": margin_to_rival,
    "dlr_to_rival": dlr_to_rival,
}


def of_logits(loss: Loss) -> AttackObjective:
    """An attack's objective that looks at the logits only."""

    def objective(view: View, x: Tensor, y: Tensor, more: Tensor) -> tuple[Tensor, Tensor]:
        z = view.logits(x)
        return z, loss(view.ops, z, y)

    return objective


def with_information(measure: str, weight: float, eps: float) -> AttackObjective:
    """Margin plus `weight` times the information, in nats, that the defence was trained to keep small.

    With a positive weight the attack looks where the defence lets perturbations through, with a negative one it walks where the
    defence believes itself safe. The measure is read with its own resolution, at the box or the ball around the iterate.
    """
    row = MEASURES[measure]

    def objective(view: View, x: Tensor, y: Tensor, more: Tensor) -> tuple[Tensor, Tensor]:
        ops = view.ops
        still = 0.0 * x
        batch = Batch(x, y, still, ops.sum(ops.flatten(still), axis=1) + 0.5)  # the middle of the posterior
        reading = row.read(view, batch, eps, ReadOut(row.resolution))
        return reading.logits, margin(ops, reading.logits, y) + weight * reading.information

    return objective


def with_features(layer: str) -> AttackObjective:
    """Margin plus how far a layer has moved from where the clean point put it, ||t(x') - t(x)|| / ||t(x)||."""

    def objective(view: View, x: Tensor, y: Tensor, more: Tensor) -> tuple[Tensor, Tensor]:
        ops = view.ops
        there = view.activations(x)
        here = view.activations(ops.reshape_like(more, x))
        (moved,) = (one.value for one in there.layers if one.name == layer)
        (clean,) = (one.value for one in here.layers if one.name == layer)
        shift, scale = (ops.sqrt(ops.sum(ops.flatten(t * t), axis=1) + _TINY) for t in (moved - clean, clean))
        return there.logits, margin(ops, there.logits, y) + shift / (scale + _TINY)

    return objective


# ------------------------------------------------------------------------------------------------------------- attacks


@dataclass(frozen=True)
class Ball:
    """The perturbations an adversary may choose from: ||d||_norm <= eps, in the units of the raw input."""

    eps: float
    norm: float

    @property
    def norm_name(self) -> str:
        return "inf" if math.isinf(self.norm) else f"{self.norm:g}"


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
    """

    title: str
    build: Callable[[Any, Ball, int], Any]
    rounds: Callable[[Target, Ball], Sequence[Round]]
    max_points: int | None = None
    remark: Callable[[int], str] = lambda nb_classes: ""
    reads_logits_only: bool = True
    seeks_nearest: bool = False

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
            raise CannotRunError("ART's APGD does not climb steepest in L1, got the norm 1; PGD does")
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
        raise CannotRunError("Square knows the norms inf and 2, got 1")
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
        raise CannotRunError("HopSkipJump knows the norms inf and 2, got 1")
    return HopSkipJump(estimator, batch_size=batch_size, norm=ball.norm, max_iter=20, max_eval=500, verbose=False)


def _minimum_norm(estimator: Any, ball: Ball, batch_size: int) -> Any:
    from art.attacks.evasion import CarliniL2Method

    if ball.norm != 2:
        raise CannotRunError(f"Carlini & Wagner look for the nearest example in L2, got the norm {ball.norm_name}")
    return CarliniL2Method(estimator, max_iter=100, binary_search_steps=6, batch_size=batch_size, verbose=False)


def _reference(estimator: Any, ball: Ball, batch_size: int) -> Any:
    backend = estimator.backend
    if backend.framework != "pytorch":
        raise CannotRunError(
            f"torchattacks attacks PyTorch networks, got one of {backend.framework}; "
            "`to_pytorch` of art_entropic.problems takes the weights of a network of PROBLEMS over"
        )
    if ball.norm == 1:
        raise CannotRunError("AutoAttack of torchattacks knows the norms inf and 2, got 1")
    if estimator.nb_classes < 4:
        raise CannotRunError(f"AutoAttack needs 4 classes for its DLR loss, got {estimator.nb_classes}")
    low, high = (None, None) if estimator.clip_values is None else map(np.asarray, estimator.clip_values)
    if low is None or not (np.all(low == 0) and np.all(high == 1)):
        raise CannotRunError(f"torchattacks wants inputs in [0, 1], got `clip_values` {estimator.clip_values}")
    seed = int(np.random.randint(2**31))  # seeded by whoever runs the attack; AutoAttack has a generator of its own
    try:
        return framework_module("pytorch").reference_attack(backend, ball.eps, ball.norm, estimator.nb_classes, seed)
    except ImportError as error:
        raise CannotRunError(
            "torchattacks is not installed: pip install --no-deps torchattacks (it asks for a release of requests from 2020, "
            "which no attack needs)"
        ) from error


def _one(loss: str) -> Callable[[Target, Ball], Sequence[Round]]:
    return _times(1, loss)


def _times(number: int, loss: str) -> Callable[[Target, Ball], Sequence[Round]]:
    return lambda target, ball: [Round(loss, of_logits(LOSSES[loss]))] * number


def _rival_loss(nb_classes: int) -> str:
    return "dlr_to_rival" if nb_classes >= 4 else "margin_to_rival"


def _no_dlr(nb_classes: int) -> str:
    if nb_classes >= 4:
        return ""
    return f"margin in place of DLR, which needs 4 classes, the model has {nb_classes}"


def _each_rival(target: Target, ball: Ball) -> Sequence[Round]:
    loss = _rival_loss(target.nb_classes)
    number = min(target.nb_classes - 1, MAX_RIVALS)
    return [Round(loss, of_logits(LOSSES[loss]), rival=rival) for rival in range(number)]


def _entropic(target: Target, ball: Ball) -> Sequence[Round]:
    if not math.isinf(ball.norm):
        raise CannotRunError(f"the information is read over the Linf ball, got the norm {ball.norm_name}")
    measure = target.known_measure
    if measure not in POINTWISE:
        raise CannotRunError(f"{measure!r} is a number of a whole batch, which no point climbs alone")
    return [
        Round(f"{measure} {weight:+g} at {ball.eps:g}", with_information(measure, weight, ball.eps))
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
    objective = of_logits(margin)
    return [Round("margin", objective, source=source) for source in target.sources.values()]


ATTACKS: dict[str, Attack] = {
    "fgsm": Attack("FGSM", _one_step, _one("cross_entropy")),
    "pgd_ce": Attack("PGD-20 on cross-entropy", _pgd(20), _one("cross_entropy")),
    "pgd_margin": Attack("PGD-20 on margin", _pgd(20), _one("margin")),
    "apgd_ce": Attack("APGD on cross-entropy", _apgd(100), _one("cross_entropy")),
    "apgd_t": Attack("APGD-T on DLR", _apgd(100), _each_rival, remark=_no_dlr),
    "pgd_restarts": Attack(f"PGD-20 on margin, {PGD_RESTARTS} restarts", _pgd(20), _times(PGD_RESTARTS, "margin")),
    "apgd_long": Attack("APGD on margin, 500 steps", _apgd(500), _one("margin")),
    "autoattack": Attack("AutoAttack, standard, of torchattacks", _reference, _one("margin"), reads_logits_only=False),
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

_STANDARD = ("apgd_ce", "apgd_t", "pgd_restarts", "square")
BATTERIES: dict[str, tuple[str, ...]] = {
    "quick": ("pgd_ce", "pgd_margin"),
    "standard": _STANDARD,
    "reference": ("autoattack",),
    "full": (*_STANDARD, "entropic", "features", "transfer", "minimum_norm", "hop_skip_jump"),
}


def check_norm(norm: Any) -> float:
    """The norm of the ball as a number.

    Raises:
        ValueError: none of infinity, 2 and 1.
    """
    if isinstance(norm, (str, Real)) and norm in ("inf", np.inf):
        return math.inf
    if isinstance(norm, (str, Real)) and norm in ("2", 2, "1", 1) and not isinstance(norm, bool):
        return float(norm)
    raise ValueError(f"`norm` must be 'inf', np.inf, 2 or 1, got {norm!r}")


# -------------------------------------------------------------------------------------------------------------- target


@dataclass(frozen=True, eq=False)
class Target:
    """A classifier under attack.

    Attributes:
        is_deterministic: it answers the same each time.
        measure: the information measure that it was retrained with, where that is known.
        sources: other classifiers, for transfer.
        input_shape: of one point; the classifier may leave lengths open.
    """

    classifier: Any
    backend: Backend
    framework: str
    input_shape: tuple[int, ...]
    is_deterministic: bool = True
    measure: str | None = None
    sources: Mapping[str, Target] = field(default_factory=dict)
    _twins: dict[str, Attacked] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        classifier: Any,
        measure: str | None = None,
        sources: Mapping[str, Any] | None = None,
        input_shape: tuple[int, ...] | None = None,
    ) -> Target:
        """`input_shape` is that of the points where the classifier leaves lengths open; None where it leaves none."""
        backend = backend_for(classifier)
        shape = tuple(classifier.input_shape) if input_shape is None else input_shape
        others = {name: cls.of(source, input_shape=shape) for name, source in (sources or {}).items()}
        return cls(classifier, backend, framework_of(classifier), shape, measure=measure, sources=others)

    @property
    def nb_classes(self) -> int:
        return int(self.classifier.nb_classes)

    @property
    def known_measure(self) -> str:
        """The measure it was retrained with; where nobody said, `interval` if its layers have rules, else `channel`."""
        if self.measure is not None:
            return self.measure
        try:
            self.backend.intervals(np.zeros((1, *self.input_shape), np.float32), 0.0)
        except NoIntervalRuleError:
            return "channel"
        return "interval"

    def logits(self, x: Array) -> Array:
        """(n, nb_classes), also for no point at all."""
        return self.backend.logits(x) if len(x) else np.zeros((0, self.nb_classes), np.float32)

    def predict(self, x: Array) -> Array:
        """Classes, int64 (n,); -1 where a logit is not finite."""
        logits = self.logits(x)
        return np.where(np.isfinite(logits).all(axis=1), np.argmax(logits, axis=1), -1)

    def twin(self, name: str, objective: AttackObjective) -> Attacked:
        """The second estimator with that objective, built once for each name."""
        from art_entropic.attacked import Attacked

        if name not in self._twins:
            self._twins[name] = Attacked(
                self.backend, objective, self.batch_size, self.input_shape, remembers=self.is_deterministic
            )
        return self._twins[name]

    @property
    def forward_passes(self) -> int:
        """Points that attacks have sent through the network so far."""
        return sum(twin.forward_passes for twin in self._twins.values())

    @property
    def batch_size(self) -> int:
        """Of an attack."""
        features = BATCH_FEATURES["accelerator" if self.backend.is_accelerated else "processor"]
        return int(np.clip(features // max(1, math.prod(self.input_shape)), 16, 512))

    def untouched(self, seed: int) -> contextlib.AbstractContextManager[None]:
        """The classifier leaves as it came; inside, its framework draws from that seed where it can be told."""
        context: contextlib.AbstractContextManager[None] = framework_module(self.framework).untouched(self.classifier, seed)
        return context


@contextlib.contextmanager
def numpy_seeded(seed: int) -> Iterator[None]:
    """ART draws from the global generators of NumPy and Python: seeded inside, afterwards as they were."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    np.random.seed(seed)
    random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)


def within_ball(x: Array, x_adv: Array, ball: Ball, clip_values: Any) -> Array:
    """Which candidates are finite, in the budget and in the clip range, up to float32 rounding; bool (n,).

    Args:
        x: clean points, (n, ...).
        x_adv: candidates of the same shape.
        clip_values: (lowest, highest), or None.
    """
    n = len(x)
    low, high = (np.float64(-np.inf), np.float64(np.inf)) if clip_values is None else map(np.asarray, clip_values)
    reach = float(np.max(np.abs(x), initial=1e-30)) + ball.eps
    slack = ROUNDING * (reach if clip_values is None else min(reach, float(np.max(high - low))))
    finite = np.isfinite(x_adv).reshape(n, -1).all(axis=1)
    inside = ((x_adv >= low - slack) & (x_adv <= high + slack)).reshape(n, -1).all(axis=1)
    # The rounding of every feature adds up in the norm.
    allowed = ball.eps + slack * math.prod(x.shape[1:]) ** (1 / ball.norm)
    return np.asarray(finite & inside & (distances(x, x_adv, ball.norm) <= allowed))


def largest_distance(clip_values: Any, shape: tuple[int, ...], norm: float) -> float:
    """Of two inputs of that shape."""
    span = float(np.max(np.asarray(clip_values[1]) - np.asarray(clip_values[0])))
    return span * float(math.prod(shape) ** (1 / norm))


def distances(x: Array, x_adv: Array, norm: float) -> Array:
    """||x_adv - x||_norm of each point, float64 (n,); infinite where a feature is NaN."""
    difference = np.nan_to_num(x_adv.astype(np.float64) - x, nan=np.inf).reshape(len(x), -1)
    return np.asarray(np.linalg.norm(difference, ord=norm, axis=1))


@dataclass(frozen=True, eq=False)
class AttackRun:
    """What an attack did to each of its points, (n,) each.

    Attributes:
        attacked: it was given the point.
        broken: a candidate was checked to lie in the ball and in the clip range, and the classifier gets it wrong.
        x_adv: candidates of x's shape, equal to x where the point stands.
        distance: of the nearest adversarial example that the attack showed, inside the ball or not, in the ball's norm; NaN
            without.
        queries: how often the network was asked about the point, as far as a query tells which points it is about.
        out_of_bounds: what the attack returned lies outside the ball or the clip range, or is not finite; it never counts.
        flat_at_start: the first gradient was zero in every feature, or not finite.
        gradients, flat, not_finite: how many gradients were taken, and how many of them were all zero, or not finite.
        errors: of rounds that failed; what the others found still counts.
    """

    attacked: Array
    broken: Array
    x_adv: Array
    distance: Array
    queries: Array
    out_of_bounds: Array
    flat_at_start: Array
    gradients: Array
    flat: Array
    not_finite: Array
    errors: list[str] = field(default_factory=list)

    @classmethod
    def on(cls, x: Array) -> AttackRun:
        """Nothing done yet."""
        n = len(x)
        no, zero = np.zeros((4, n), dtype=bool), np.zeros((4, n), np.int64)
        return cls(no[0], no[1], x.copy(), np.full(n, np.nan), zero[0], no[2], no[3], *zero[1:])


def attack_points(attack: str | Attack, target: Target, x: Array, y: Array, ball: Ball, seed: int) -> AttackRun:
    """Run one attack.

    Args:
        attack: a name of ATTACKS, or a row of one's own.
        target: the classifier.
        x: points that the classifier gets right, (n, ...), float32, raw units.
        y: their classes, int64 (n,).
        ball: the perturbations.
        seed: of the attack's random numbers.
    Raises:
        CannotRunError: the attack has nothing to work with here.
    """
    name, row = (attack, ATTACKS[attack]) if isinstance(attack, str) else (attack.title, attack)
    run = AttackRun.on(x)
    rounds = row.rounds(target, ball)
    rivals = np.argsort(-_wrong_only(target.logits(x), y), axis=1, kind="stable")
    within = np.arange(len(x)) < (len(x) if row.max_points is None else row.max_points)
    for number, one in enumerate(rounds):
        labels = np.eye(target.nb_classes, dtype=np.float32)[y]
        if one.rival is not None:
            # Marks the rival for the loss; the true class stays the largest entry, so ART still attacks untargeted.
            labels[np.arange(len(y)), rivals[:, one.rival]] = 0.5
        try:
            _run_round(run, row, one, target, x, y, labels, ball, within, _seed(seed, name, number))
        except CannotRunError:
            raise
        except Exception as problem:  # recorded: what the other rounds find must not be lost with this one
            run.errors.append(f"round {number + 1}: {type(problem).__name__}: {problem}")
    return run


def _run_round(
    run: AttackRun,
    row: Attack,
    one: Round,
    target: Target,
    x: Array,
    y: Array,
    labels: Array,
    ball: Ball,
    within: Array,
    seed: int,
) -> None:
    victim = target if one.source is None else one.source
    twin = victim.twin(one.name, one.objective)
    with victim.untouched(seed), numpy_seeded(seed):
        art_attack = row.build(twin, ball, victim.batch_size)
        standing = np.flatnonzero(~run.broken & within)
        for start in range(0, len(standing), victim.batch_size):
            index = standing[start : start + victim.batch_size]
            run.attacked[index] = True
            _run_batch(run, index, art_attack, twin, target, x[index], y[index], labels[index], ball, one)


def _run_batch(
    run: AttackRun,
    index: Array,
    art_attack: Any,
    twin: Attacked,
    target: Target,
    x: Array,
    y: Array,
    labels: Array,
    ball: Ball,
    one: Round,
) -> None:
    """One batch through one round, written into the run at `index`."""
    from art_entropic.attacked import Path

    def succeeds(places: Array, candidates: Array) -> Array:
        valid = within_ball(x[places], candidates, ball, target.classifier.clip_values)
        valid[valid] = target.predict(candidates[valid]) != y[places[valid]]
        return valid

    path = Path(x, y, succeeds, x.reshape(len(x), -1) if one.knows_origin else None)
    # A source falls long before what it is good for has been found.
    with twin.following(path) if one.source is None else contextlib.nullcontext():
        candidates = np.asarray(art_attack.generate(x.copy(), y=labels), dtype=np.float32)
    logits = target.logits(candidates)
    path.see(np.arange(len(x)), candidates, logits)
    _write(run, index, path, x, candidates, np.argmax(logits, axis=1) != y, ball, target.classifier.clip_values)


def _write(
    run: AttackRun, index: Array, path: Path, x: Array, candidates: Array, wrong: Array, ball: Ball, clip_values: Any
) -> None:
    first = np.where(path.fallen, distances(x, path.x_adv, ball.norm), np.nan)
    last = np.where(
        wrong & np.isfinite(candidates).reshape(len(x), -1).all(axis=1), distances(x, candidates, ball.norm), np.nan
    )
    distance = np.fmin(first, last)
    run.broken[index], run.x_adv[index] = path.fallen, path.x_adv
    run.distance[index] = np.fmin(run.distance[index], distance)
    run.out_of_bounds[index] |= ~path.fallen & ~within_ball(x, candidates, ball, clip_values)
    new = run.gradients[index] == 0
    run.flat_at_start[index[new]] = path.flat_at_start[new]
    for field_name in ("queries", "gradients", "flat", "not_finite"):
        getattr(run, field_name)[index] += getattr(path, field_name)


def _wrong_only(logits: Array, y: Array) -> Array:
    result = np.array(logits, dtype=np.float64)
    result[np.arange(len(y)), y] = -np.inf
    return result


def _seed(seed: int, name: str, number: int) -> int:
    return int(np.random.SeedSequence([seed, zlib.crc32(name.encode()), number]).generate_state(1)[0])
