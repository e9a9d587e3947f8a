"""Attacks one after the other, each on the points that are left."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from art_entropic.evaluation.attacks import ATTACKS, PROOF_ATTACK, CannotRunError
from art_entropic.evaluation.attempt import Attempt
from art_entropic.evaluation.case import Case
from art_entropic.evaluation.kept import Finished
from art_entropic.evaluation.tally import Cost, Tally
from art_entropic.evaluation.target import Ball, Target
from art_entropic.ops import Array
from art_entropic.records import AttackOutcome


class Cascade:
    """Attacks one after another; each sees only what the ones before left standing, or, if not a cascade, all that was right.

    Certified points are attacked once: no attack can break them, and one is enough to expose a wrong certificate.
    """

    def __init__(
        self, case: Case, certified: Array | None = None, *, cascade: bool = True, store: Finished | None = None
    ) -> None:
        self._case, self._cascade, self._store = case, cascade, store
        self.standing = case.right.copy()
        self.broken = np.zeros(len(case.x), dtype=bool)
        self.tallies: dict[str, Tally] = {}
        self.distances: list[list[float]] = []
        self._certified = np.zeros(len(case.x), dtype=bool) if certified is None else certified
        self._certified_were_attacked = False
        self.taken = 0  # attacks that an earlier start had finished

    def _points(self) -> Array:
        if not self._cascade:
            return np.flatnonzero(self._case.right)
        return np.flatnonzero(self.standing & ~self._certified if self._certified_were_attacked else self.standing)

    def attack(self, name: str, ball: Ball, seed: int, progress: Progress) -> AttackOutcome:
        if ATTACKS[name].spares_certified and not self._certified_were_attacked:
            self._try_certificates(ball, seed)
        target, points = self._case.target, self._points()
        title = ATTACKS[name].title_for(target.nb_classes)
        progress.begin(f"{title} at {ball.eps:g}")
        attempt = self._attempt(name, points, ball, seed)
        watch, tally, cost, facts = _Watch(target), Tally.on(attempt.x), None, {}
        if len(points):
            try:
                tally, cost = self._run(attempt, points)
                self._certified_were_attacked = self._certified_were_attacked or not tally.errors
                if tally.errors:
                    facts = {"error": "; ".join(tally.errors)}
            except CannotRunError as problem:
                facts = {"skipped": str(problem)}
            except Exception as problem:  # recorded: one attack that cannot run must not hide what the others find
                facts = {"error": f"{type(problem).__name__}: {problem}"}
        cost = cost or watch.cost()
        self._count(name, points, tally)
        progress.advance()
        return AttackOutcome(
            attack=title,
            attacked=len(points),
            broken=int(tally.broken.sum()),
            seconds=cost.seconds,
            queries=cost.queries,
            distance=median(self.distances[-1]),
            **facts,
        )

    def _attempt(self, name: str, points: Array, ball: Ball, seed: int) -> Attempt:
        return Attempt(name, self._case.target, self._case.x[points], self._case.y[points], ball, seed)

    def _try_certificates(self, ball: Ball, seed: int) -> None:
        """Let a cheap attack meet the certified points; if it fails, the next attack of the battery meets them."""
        points = np.flatnonzero(self.standing & self._certified)
        if len(points):
            tally, _cost = self._run(self._attempt(PROOF_ATTACK, points, ball, seed), points)
            self._certified_were_attacked = not tally.errors
            self.fell(points[tally.broken])

    def _run(self, attempt: Attempt, points: Array) -> tuple[Tally, Cost]:
        """What became of the points, and what that took when it was done, which may be an earlier start."""
        kept = None if self._store is None else self._store.read(attempt, points)
        if kept is not None:
            self.taken += 1
            return kept
        watch = _Watch(attempt.target)
        tally, cost = attempt.run(), watch.cost()
        if self._store is not None and not tally.errors:
            self._store.write(attempt, points, tally, cost)
        return tally, cost

    def _count(self, name: str, points: Array, tally: Tally) -> None:
        self.fell(points[tally.broken])
        self.tallies.setdefault(name, Tally.on(self._case.x)).add(points, tally)
        self.distances.append(tally.distances.tolist())

    def fell(self, points: Array) -> None:
        """These points are broken, which others may have found."""
        self.standing[points], self.broken[points] = False, True


class _Watch:
    """What has been spent on a target since."""

    def __init__(self, target: Target) -> None:
        self._target, self._started, self._asked = target, time.perf_counter(), target.forward_passes

    def cost(self) -> Cost:
        return Cost(time.perf_counter() - self._started, self._target.forward_passes - self._asked)


def median(distances: Sequence[float]) -> float | None:
    return float(np.median(distances)) if len(distances) else None


class Progress:
    """A bar on stderr, one step per attack and one for all checks.

    Args:
        n_attacks: how many there are.
        checks: whether there are checks too.
        told: called with a line for each attack and each check that is begun.
    """

    def __init__(
        self, n_attacks: int, verbose: bool, *, checks: bool = False, told: Callable[[str], object] | None = None
    ) -> None:
        from tqdm import tqdm

        self._n_attacks, self._done, self._told = n_attacks, 0, told
        self._bar = tqdm(total=n_attacks + checks, desc="attacks", disable=not verbose, leave=False)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def begin(self, attack: str) -> None:
        self._show(attack, f"attack {self._done + 1} of {self._n_attacks}: {attack}")

    def check(self, text: str) -> None:
        self._show(text, text)

    def _show(self, beside_bar: str, alone: str) -> None:
        self._bar.set_postfix_str(beside_bar)
        if self._told is not None:
            self._told(alone)

    def advance(self) -> None:
        self._done += 1
        self._bar.update()
