"""One attack on the points that it is given, batch by batch."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from art_entropic.evaluation.attacks import ATTACKS, Attack, CannotRunError, Round
from art_entropic.evaluation.tally import Tally
from art_entropic.evaluation.target import Ball, Target, distances, numpy_seeded, within_ball
from art_entropic.ops import Array

if TYPE_CHECKING:
    from art_entropic.evaluation.attacked import Trail


@dataclass(eq=False)
class Attempt:
    """One attack on one set of points.

    Attributes:
        attack: a name of ATTACKS.
        target: the classifier.
        x: points that the classifier gets right, (n, ...), float32, raw units.
        y: their classes, int64 (n,).
        ball: the perturbations.
        seed: of the attack's random numbers.
    """

    attack: str
    target: Target
    x: Array
    y: Array
    ball: Ball
    seed: int

    @property
    def row(self) -> Attack:
        return ATTACKS[self.attack]

    @cached_property
    def tally(self) -> Tally:
        """What has fallen so far."""
        return Tally.on(self.x)

    def check(self) -> None:
        """Raise CannotRunError where the attack has nothing to work with here, without running it."""
        one = self.row.rounds(self.target, self.ball)[0]
        victim = self.target if one.source is None else one.source
        self.row.build(victim.twin(one.name, one.objective), self.ball, victim.batch_size)

    def run(self) -> Tally:
        """All rounds of the attack.

        Raises:
            CannotRunError: the attack has nothing to work with here.
        """
        for number, one in enumerate(self.row.rounds(self.target, self.ball)):
            try:
                self._round(number, one)
            except CannotRunError:
                raise
            except Exception as problem:  # recorded: what the other rounds find must not be lost with this one
                self.tally.errors.append(f"round {number + 1}: {type(problem).__name__}: {problem}")
        return self.tally

    def run_whole(self) -> Tally:
        """As `run`, where a part of the rounds would not do.

        Raises:
            CannotRunError: the attack has nothing to work with here.
            RuntimeError: a round failed.
        """
        tally = self.run()
        if tally.errors:
            raise RuntimeError(f"{self.row.title} failed: {tally.errors[0]}")
        return tally

    def _round(self, number: int, one: Round) -> None:
        victim = self.target if one.source is None else one.source
        twin, labels, seed = victim.twin(one.name, one.objective), self._labels(one.rival), self._seed(number)
        with victim.untouched(seed), numpy_seeded(seed):
            art_attack = self.row.build(twin, self.ball, victim.batch_size)
            for points in self._batches(victim.batch_size):
                self.tally.attacked[points] = True
                trail = self._trail(points, one)
                # A source falls long before what it is good for has been found.
                with twin.following(trail) if one.source is None else contextlib.nullcontext():
                    candidates = art_attack.generate(self.x[points], y=labels[points])
                self._count(points, trail, np.asarray(candidates, dtype=np.float32))

    def _batches(self, size: int) -> Iterator[Array]:
        """Indices of the points that stand when a round begins."""
        standing = np.flatnonzero(~self.tally.broken[: self.row.max_points])
        yield from (standing[start : start + size] for start in range(0, len(standing), size))

    def _labels(self, rival: int | None) -> Array:
        labels: Array = np.eye(self.target.nb_classes, dtype=np.float32)[self.y]
        if rival is not None:
            # Marks the rival for the loss; the true class stays the largest entry, so ART still attacks untargeted.
            labels[np.arange(len(self.y)), self._rivals[:, rival]] = 0.5
        return labels

    @cached_property
    def _rivals(self) -> Array:
        """For each point the other classes, the likeliest first, and its own at the end."""
        wrong = np.array(self.target.logits(self.x), dtype=np.float64)
        wrong[np.arange(len(self.y)), self.y] = -np.inf
        return np.asarray(np.argsort(-wrong, axis=1, kind="stable"))

    def _trail(self, points: Array, one: Round) -> Trail:
        from art_entropic.evaluation.attacked import Trail

        x = self.x[points]
        more = x.reshape(len(x), -1) if one.knows_origin else None
        return Trail(x, self.y[points], lambda places, candidates: self._succeeds(points[places], candidates), more)

    def _succeeds(self, points: Array, candidates: Array) -> Array:
        """Which candidates are adversarial examples of these points."""
        valid = within_ball(self.x[points], candidates, self.ball, self.target.classifier.clip_values)
        valid[valid] = self.target.predict(candidates[valid]) != self.y[points[valid]]
        return valid

    def _count(self, points: Array, trail: Trail, candidates: Array) -> None:
        """What an attack left behind on its way, and what it returned."""
        x, tally = self.x[points], trail.tally
        logits = self.target.logits(candidates)
        trail.see(np.arange(len(x)), candidates, logits)
        wrong = (np.argmax(logits, axis=1) != self.y[points]) & np.isfinite(candidates).reshape(len(x), -1).all(axis=1)
        first = np.where(tally.broken, distances(x, tally.x_adv, self.ball.norm), np.nan)
        last = np.where(wrong, distances(x, candidates, self.ball.norm), np.nan)
        tally.distance[:] = np.fmin(first, last)
        valid = within_ball(x, candidates, self.ball, self.target.classifier.clip_values)
        tally.out_of_bounds[:] = ~tally.broken & ~valid
        self.tally.add(points, tally)

    def _seed(self, number: int) -> int:
        """Of a round."""
        return int(np.random.SeedSequence([self.seed, zlib.crc32(self.attack.encode()), number]).generate_state(1)[0])
