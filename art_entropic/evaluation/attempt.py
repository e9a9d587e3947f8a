"""One attack on the points that it is given, batch by batch."""

from __future__ import annotations

import contextlib
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from art_entropic.ops import Array

if TYPE_CHECKING:
    from art_entropic.evaluation.attacked import Attacked, Path
from art_entropic.evaluation.attacks import ATTACKS, Attack, CannotRunError, Round
from art_entropic.evaluation.target import Ball, Target, distances, numpy_seeded, within_ball


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
    from art_entropic.evaluation.attacked import Path

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
