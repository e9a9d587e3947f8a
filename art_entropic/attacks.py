"""ART's attacks, as rows of a table, each run so that it can be believed.

An attack sees a second estimator around the user's model (same weights, the attack's own loss, logits out) and runs on the
points that still stand. What it finds, at its end or on its way, is checked before it counts.
"""

from __future__ import annotations

import contextlib
import math
import random
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from art_entropic.backends import (
    Array,
    AttackObjective,
    Backend,
    Ops,
    Tensor,
    View,
    backend_for,
    framework_module,
    framework_of,
)

# Float32 rounding of x + d, relative to the range of the data.
ROUNDING = 1e-6
MAX_RIVALS = 9
PGD_RESTARTS = 10
# Features of a batch: on a processor the layers of a small network then stay in its caches.
BATCH_FEATURES = {"processor": 2**17, "accelerator": 2**21}
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

    def objective(view: View, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        z = view.logits(x)
        return z, loss(view.ops, z, y)

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


@dataclass(frozen=True)
class Attack:
    """One row of ATTACKS.

    Attributes:
        loss: a name of LOSSES. None where the attack reads logits only.
        build: makes the ART attack from an estimator, a ball and a batch size.
        rounds: number of runs, each on what the one before left standing, for a model with that many classes.
        rivals: round r is aimed at the r-th best wrong class.
    """

    title: str
    loss: str | None
    build: Callable[[Any, Ball, int], Any]
    rounds: Callable[[int], int] = lambda nb_classes: 1
    rivals: bool = False

    def loss_for(self, nb_classes: int) -> tuple[str, str]:
        """The loss for a model with that many classes, and a remark where it is not the one of the table."""
        if self.loss == "dlr_to_rival" and nb_classes < 4:
            return "margin_to_rival", f"margin in place of DLR, which needs 4 classes, the model has {nb_classes}"
        return self.loss or "margin", ""


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


def _apgd(estimator: Any, ball: Ball, batch_size: int) -> Any:
    from art.attacks.evasion import AutoProjectedGradientDescent

    # loss_type None: the estimator's own loss. ART's own ones refuse a KerasClassifier, and its DLR builds n x n logits.
    return AutoProjectedGradientDescent(
        estimator,
        norm=ball.norm,
        eps=ball.eps,
        eps_step=2 * ball.eps,
        max_iter=100,
        nb_random_init=1,
        batch_size=batch_size,
        loss_type=None,
        verbose=False,
    )


def _square(estimator: Any, ball: Ball, batch_size: int) -> Any:
    from art.attacks.evasion import SquareAttack

    if estimator.clip_values is None:
        raise ValueError("`classifier` must have clip_values for Square, got None")
    shape = estimator.input_shape[1:] if estimator.channels_first else estimator.input_shape[:-1]
    if ball.norm == 2 and min(shape, default=0) < SQUARE_L2_SIDE:
        raise ValueError(
            f"images must have {SQUARE_L2_SIDE} pixels a side for Square in L2, got {shape}: its tiles would be empty"
        )
    return SquareAttack(
        estimator, norm=ball.norm, eps=ball.eps, max_iter=1000, p_init=0.8, batch_size=batch_size, verbose=False
    )


ATTACKS: dict[str, Attack] = {
    "pgd_ce": Attack("PGD-20 on cross-entropy", "cross_entropy", _pgd(20)),
    "pgd_margin": Attack("PGD-20 on margin", "margin", _pgd(20)),
    "apgd_ce": Attack("APGD on cross-entropy", "cross_entropy", _apgd),
    "apgd_t": Attack(
        "APGD-T on DLR",
        "dlr_to_rival",
        _apgd,
        rounds=lambda nb_classes: min(nb_classes - 1, MAX_RIVALS),
        rivals=True,
    ),
    "pgd_restarts": Attack(
        f"PGD-20 on margin, {PGD_RESTARTS} restarts", "margin", _pgd(20), rounds=lambda nb_classes: PGD_RESTARTS
    ),
    "square": Attack("Square", None, _square),
}

BATTERIES: dict[str, tuple[str, ...]] = {
    "quick": ("pgd_ce", "pgd_margin"),
    "standard": ("apgd_ce", "apgd_t", "pgd_restarts", "square"),
}


def check_norm(norm: Any) -> float:
    """The norm of the ball as a number.

    Raises:
        ValueError: neither infinity nor 2.
    """
    if norm in ("inf", np.inf):
        return math.inf
    if norm in ("2", 2):
        return 2.0
    raise ValueError(f"`norm` must be 'inf', np.inf or 2, got {norm!r}")


@dataclass(frozen=True, eq=False)
class Target:
    """A classifier under attack."""

    classifier: Any
    backend: Backend
    framework: str
    is_deterministic: bool = True
    _twins: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, classifier: Any) -> Target:
        return cls(classifier, backend_for(classifier), framework_of(classifier))

    def logits(self, x: Array) -> Array:
        """(n, nb_classes), also for no point at all."""
        return self.backend.logits(x) if len(x) else np.zeros((0, int(self.classifier.nb_classes)), np.float32)

    def predict(self, x: Array) -> Array:
        """Classes, int64 (n,); -1 where a logit is not finite."""
        logits = self.logits(x)
        return np.where(np.isfinite(logits).all(axis=1), np.argmax(logits, axis=1), -1)

    def twin(self, loss: str) -> Any:
        """The second estimator with that loss, built once."""
        from art_entropic.attacked import Attacked

        if loss not in self._twins:
            objective = of_logits(LOSSES[loss])
            self._twins[loss] = Attacked(self.backend, objective, self.batch_size, remembers=self.is_deterministic)
        return self._twins[loss]

    @property
    def forward_passes(self) -> int:
        """Points that attacks have sent through the network so far."""
        return sum(twin.forward_passes for twin in self._twins.values())

    @property
    def batch_size(self) -> int:
        """Of an attack."""
        features = BATCH_FEATURES["accelerator" if self.backend.is_accelerated else "processor"]
        return int(np.clip(features // max(1, math.prod(self.classifier.input_shape)), 16, 512))

    def untouched(self) -> contextlib.AbstractContextManager[None]:
        context: contextlib.AbstractContextManager[None] = framework_module(self.framework).untouched(self.classifier)
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
    scale = np.max(np.abs(x), initial=1e-30) if clip_values is None else np.max(high - low)
    slack = ROUNDING * float(scale)
    finite = np.isfinite(x_adv).reshape(n, -1).all(axis=1)
    inside = ((x_adv >= low - slack) & (x_adv <= high + slack)).reshape(n, -1).all(axis=1)
    distance = np.nan_to_num(x_adv.astype(np.float64) - x, nan=np.inf).reshape(n, -1)
    size = np.linalg.norm(distance, ord=ball.norm, axis=1)
    allowed = ball.eps + slack * (1.0 if math.isinf(ball.norm) else math.sqrt(distance.shape[1]))
    return np.asarray(finite & inside & (size <= allowed))


def attack_points(name: str, target: Target, x: Array, y: Array, ball: Ball, seed: int) -> tuple[Array, Array]:
    """Run one attack of ATTACKS.

    Args:
        name: a name of ATTACKS.
        target: the classifier.
        x: points that the classifier gets right, (n, ...), float32, raw units.
        y: their classes, int64 (n,).
        ball: the perturbations.
        seed: of the attack's random numbers.
    Returns:
        (broken, x_adv): bool (n,); candidates of x's shape, equal to x where the point stands. Broken means that the candidate
        was checked to lie in the ball and in the clip range, and that the classifier gets it wrong.
    """
    attack = ATTACKS[name]
    nb_classes = int(target.classifier.nb_classes)
    loss, _ = attack.loss_for(nb_classes)
    result = np.array(x)
    broken = np.zeros(len(x), dtype=bool)
    rivals = np.argsort(-_wrong_only(target.logits(x), y), axis=1, kind="stable") if attack.rivals else None
    with target.untouched():
        twin = target.twin(loss)
        art_attack = attack.build(twin, ball, target.batch_size)
        for number in range(attack.rounds(nb_classes)):
            labels = np.eye(nb_classes, dtype=np.float32)[y]
            if rivals is not None:
                # Marks the rival for the loss; the true class stays the largest entry, so ART still attacks untargeted.
                labels[np.arange(len(y)), rivals[:, number]] = 0.5
            standing = np.flatnonzero(~broken)
            with numpy_seeded(_seed(seed, name, number)):
                for start in range(0, len(standing), target.batch_size):
                    index = standing[start : start + target.batch_size]
                    path = _followed(target, art_attack, twin, x[index], y[index], labels[index], ball)
                    broken[index], result[index] = path.fallen, path.x_adv
    return broken, result


def _followed(target: Target, art_attack: Any, twin: Any, x: Array, y: Array, labels: Array, ball: Ball) -> Any:
    """The path of one batch through an attack, with what the attack returned at its end."""
    from art_entropic.attacked import Path

    def succeeds(index: Array, candidates: Array) -> Array:
        valid = within_ball(x[index], candidates, ball, target.classifier.clip_values)
        valid[valid] = target.predict(candidates[valid]) != y[index[valid]]
        return valid

    path = Path(x, y, succeeds)
    with twin.following(path):
        candidates = np.asarray(art_attack.generate(x.copy(), y=labels), dtype=np.float32)
    path.see(np.arange(len(x)), candidates, target.logits(candidates))
    return path


def _wrong_only(logits: Array, y: Array) -> Array:
    result = np.array(logits, dtype=np.float64)
    result[np.arange(len(y)), y] = -np.inf
    return result


def _seed(seed: int, name: str, number: int) -> int:
    return int(np.random.SeedSequence([seed, zlib.crc32(name.encode()), number]).generate_state(1)[0])
