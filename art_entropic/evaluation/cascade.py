"""Attacks one after the other, each on the points that are left."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from art_entropic.evaluation.attacks import ATTACKS, CannotRunError
from art_entropic.evaluation.attempt import AttackRun, attack_points
from art_entropic.evaluation.kept import Finished
from art_entropic.evaluation.target import Ball, Target
from art_entropic.ops import Array
from art_entropic.records import AttackOutcome


class Cascade:
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
        store: Finished | None = None,
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

    def attack(self, name: str, ball: Ball, seed: int, progress: Progress) -> AttackOutcome:
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
            distance=median(found),
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


def median(distances: Sequence[float] | Array) -> float | None:
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


class Progress:
    """A bar on stderr, one step per attack."""

    def __init__(self, total: int, verbose: bool) -> None:
        from tqdm import tqdm

        self._bar = tqdm(total=total, desc="attacks", disable=not verbose, leave=False)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def show(self, text: str) -> None:
        self._bar.set_postfix_str(text)

    def advance(self) -> None:
        self._bar.update()
