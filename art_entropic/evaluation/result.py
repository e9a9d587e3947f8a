"""What an evaluation found."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from art_entropic.evaluation.attacks import BATTERIES
from art_entropic.evaluation.tally import Tally
from art_entropic.extras import optional
from art_entropic.ops import Array
from art_entropic.records import Accuracy, AttackOutcome, CheckOutcome, CurvePoint, EvaluationRecord, Findings, unpack

if TYPE_CHECKING:
    import pandas as pd


CURVE_BATTERY = "quick"
UPPER_BOUND = "an upper bound: a better attack may do better"
CAVEAT = f"Robust accuracy is {UPPER_BOUND}."
# Raised with every change of the attacks' code or parameters, so that what was found before is not taken for new.
EVALUATION_REVISION = 2


def digest_of(classifier: Any, x: Array, y: Array) -> str:
    """Of test points, channels last, and their classes, in their order."""
    images = np.moveaxis(x, 1, -1) if classifier.channels_first and x.ndim == 4 else x
    return hashlib.sha256(np.ascontiguousarray(images).tobytes() + y.tobytes()).hexdigest()


class BatteryError(RuntimeError):
    """No attack of a battery could run; the message says why, attack by attack."""


class Evaluation(Findings, frozen=True, kw_only=True, eq=False):
    """What `evaluate` found: the findings, and what fits no file. Every array has one entry per test point.

    Attributes:
        clean, robust, certified: the shares, with Wilson 95 % intervals.
        certified_reason: why there is no certificate.
        attacks: one outcome per attack of the battery and seed, in order.
        curve: robust accuracy over the radius, as `security_curve` draws it; empty until `with_curve` puts it there.
        points: what became of each point; `clean_correct`, `survived`, `broken_by`, `certified_points`
            and `certified_by` read it.
        points_sha256: of the test points, channels last, and their classes, in their order.
        runs: for each attack by name, what it did to each point, as `to_frame` shows it.
        checks: of the evaluation, in the order of CHECKS; empty where they were not asked for.
        verdict: "no symptom found ...", "suspicious: ..." or "broken by ...".
    """

    eps: float
    norm: str
    battery: str
    seeds: tuple[int, ...]
    points_sha256: str
    runs: dict[str, Tally]
    checks: list[CheckOutcome]
    verdict: str

    @property
    def clean_correct(self) -> Array:
        """Bool (n,), right without an attack."""
        return unpack(self.points.clean, self.clean.n)

    @property
    def survived(self) -> Array:
        """Bool (n,), right without an attack and under each attack of the battery."""
        return unpack(self.points.robust, self.robust.n)

    @property
    def certified_points(self) -> Array | None:
        """Bool (n,), no perturbation of the ball can change the prediction; None without a certificate."""
        return None if self.points.certified is None else unpack(self.points.certified, self.clean.n)

    @property
    def certified_by(self) -> dict[str, Array]:
        """For each method of `certify` by name, bool (n,), the points that it proved and none before it did."""
        return {name: unpack(found, self.clean.n) for name, found in self.points.certified_by.items()}

    @property
    def broken_by(self) -> dict[str, Array]:
        """For each attack by name, bool (n,), the points that fell to it.

        In a cascade an attack sees only points that the attacks before it left standing; those with a certificate meet the
        first attack alone, as a check of the proof.
        """
        return {name: unpack(broken, self.clean.n) for name, broken in self.points.broken_by.items()}

    @property
    def missing(self) -> list[str]:
        """The attacks of the battery that did not run, each with the reason."""
        return missing_of(self.attacks)

    def with_curve(self, curve: Sequence[CurvePoint]) -> Evaluation:
        """The same evaluation beside a security curve."""
        return msgspec.structs.replace(self, curve=list(curve))

    def findings(self) -> Findings:
        """What fits into a file, and what `join_findings` takes."""
        return Findings(**{name: getattr(self, name) for name in Findings.__struct_fields__})

    def summary(self) -> dict[str, Any]:
        """Everything but what became of each point, for a file in JSON."""
        names = ("eps", "norm", "battery", "seeds", "clean", "robust", "certified", "certified_reason", "verdict", "missing",
                 "attacks", "curve", "checks", "seconds", "points")  # fmt: skip
        return {name: getattr(self, name) for name in names} | {"note": CAVEAT}

    def to_frame(self) -> pd.DataFrame:
        """One row for each point and attack: attacked, success, distance (in the norm of the ball), queries, seconds.

        The seconds of an attack are shared out by queries. Distance is that of the adversarial example found, inside the ball
        or not, NaN without one. Queries are those of which the attack told what they are about.
        """
        pandas = optional("pandas")
        clean_correct = self.clean_correct
        frames = []
        for name, run in self.runs.items():
            seconds = sum(one.seconds for one in self.attacks if one.attack == self._titles[name])
            share = run.queries / max(1, int(run.queries.sum()))
            frames.append(
                pandas.DataFrame(
                    {
                        "point": np.arange(len(clean_correct)),
                        "attack": name,
                        "clean": clean_correct,
                        "attacked": run.attacked,
                        "success": run.broken,
                        "distance": run.distance,
                        "queries": run.queries,
                        "seconds": seconds * share,
                    }
                )
            )
        return pandas.concat(frames, ignore_index=True)

    @property
    def _titles(self) -> dict[str, str]:
        names = BATTERIES[self.battery]
        return {name: outcome.attack for name, outcome in zip(names * len(self.seeds), self.attacks, strict=True)}

    def __str__(self) -> str:
        return in_words(self, self.eps, self.norm, self.battery, self.verdict)


def in_words(found: Findings | EvaluationRecord, eps: float, norm: str, battery: str, verdict: str) -> str:
    """What an evaluation prints: the shares with their intervals, the verdict, and what it was asked."""
    lines = {
        "clean": _shown(found.clean),
        "robust": f"{_shown(found.robust)}  {UPPER_BOUND}",
        "certified": "" if found.certified is None else _shown(found.certified) + _by_method(found),
        "verdict": verdict,
        "attacked": f"L{norm} eps {eps:g}, battery {battery!r}, n = {found.robust.n}",
        "not run": "; ".join(missing_of(found.attacks)),
    }
    return "\n".join(f"{name:<10}{line}" for name, line in lines.items() if line)


def missing_of(attacks: Sequence[AttackOutcome]) -> list[str]:
    """The attacks that did not run, each with the reason."""
    return [f"{one.attack}: {one.not_run}" for one in attacks if one.not_run]


def _by_method(found: Findings | EvaluationRecord) -> str:
    proved = {} if found.points is None else found.points.certified_by
    counts = {name: int(unpack(points, found.clean.n).sum()) for name, points in proved.items()}
    told = [f"{count} by {name}" for name, count in counts.items() if count]
    return f"  {', '.join(told)}" if told else ""


def _shown(share: Accuracy) -> str:
    return f"{share.value:<7.1%} [{share.low:.1%}, {share.high:.1%}]"
