"""Evaluations of the same points, point by point."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from art_entropic import __version__
from art_entropic.evaluation.result import CAVEAT, Evaluation, missing_of
from art_entropic.extras import optional
from art_entropic.ops import Array
from art_entropic.palette import GREY
from art_entropic.palette import colours as palette
from art_entropic.records import Accuracy, CurvePoint, EvaluationRecord, unpack
from art_entropic.statistics import Difference, holm, paired_difference

if TYPE_CHECKING:
    import pandas as pd


# Of all pairs together.
FAMILY_WISE_LEVEL = 0.05


@dataclass(frozen=True)
class Pair:
    """Difference between two defences on the same points.

    Attributes:
        difference: robust accuracy of the first, the more robust one, minus that of the second.
        p: p-value of the difference, corrected for the number of compared pairs (Holm 1979).
    """

    first: str
    second: str
    difference: Difference
    p: float

    def __str__(self) -> str:
        one = self.difference
        if self.p < FAMILY_WISE_LEVEL:
            said, points = f"{self.first} is {100 * one.value:.1f} points more robust than {self.second}", ""
        else:
            said, points = f"{self.first} is level with {self.second}", f"{100 * one.value:+.1f} points, "
        interval = f"95 % interval {100 * one.low:.1f} to {100 * one.high:.1f}"
        return f"{said} ({points}{interval}; p = {self.p:.2g}, n = {one.n})"


@dataclass(frozen=True)
class Row:
    """One defence."""

    name: str
    clean: Accuracy
    robust: Accuracy
    certified: Accuracy | None
    verdict: str
    curve: tuple[CurvePoint, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """Defences under the same attack of the same points, the most robust first."""

    eps: float
    norm: str
    battery: str
    rows: tuple[Row, ...]
    pairs: tuple[Pair, ...]
    missing: tuple[str, ...] = ()  # attacks of the battery that met none of them, each with the reasons

    def plot(self, colours: Mapping[str, str] | None = None) -> Any:
        """Plot security curves: robust accuracy over the radius, one line per defence, bands for the 95 % intervals.

        Args:
            colours: colours by defence; None takes grey for ``natural`` and a colour-blind safe palette for the others.
        Returns:
            A matplotlib figure.
        Raises:
            MissingPackageError: matplotlib is not installed.
            ValueError: no evaluation has a curve; `security_curve` computes one, `Evaluation.with_curve` adds it.
        """
        drawn = [row for row in self.rows if row.curve]
        if not drawn:
            raise ValueError(
                "`results` must have curves to plot, got none: add the points of `security_curve` by `Evaluation.with_curve`"
            )
        shades = {**palette(row.name for row in self.rows), **(colours or {})}
        figure = optional("matplotlib.figure").Figure(figsize=(5.6, 3.8), layout="constrained")
        axes = figure.subplots()
        for row in drawn:
            radii = [point.eps for point in row.curve]
            low, value, high = ([100 * getattr(point.robust, end) for point in row.curve] for end in ("low", "value", "high"))
            axes.fill_between(radii, low, high, color=shades[row.name], alpha=0.16, linewidth=0)
            axes.plot(radii, value, marker="o", color=shades[row.name], label=row.name, markersize=4.5)
        axes.axvline(self.eps, color=GREY, linewidth=0.8, linestyle=":")
        axes.set_ylim(-3, 103)
        axes.set_xlabel(f"L{self.norm} eps (dotted: the eps of the comparison)")
        axes.set_ylabel("robust accuracy, %")
        axes.legend(frameon=False)
        axes.grid(alpha=0.2)
        return figure

    def to_frame(self) -> pd.DataFrame:
        """Table with one row per defence: accuracies, their 95 % intervals, n, verdict."""
        return optional("pandas").DataFrame([self._cells(row) for row in self.rows])

    def pairs_frame(self) -> pd.DataFrame:
        """Table with one row per pair: difference in robust accuracy, 95 % interval, points on which they disagree, p."""
        return optional("pandas").DataFrame(
            [{"first": pair.first, "second": pair.second, **vars(pair.difference), "p": pair.p} for pair in self.pairs]
        )

    def _cells(self, row: Row) -> dict[str, Any]:
        cells: dict[str, Any] = {"defence": row.name, "n": row.robust.n}
        for name in ("clean", "robust", "certified"):
            share: Accuracy | None = getattr(row, name)
            missing = (math.nan, math.nan, math.nan)
            values = missing if share is None else (share.value, share.low, share.high)
            cells |= dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))
        return {**cells, "verdict": row.verdict}

    def __str__(self) -> str:
        width = max(len(row.name) for row in self.rows)
        lines = [f"L{self.norm} eps {self.eps:g}, battery {self.battery!r}, n = {self.rows[0].robust.n}"]
        if self.missing:
            lines.append(f"not run: {'; '.join(self.missing)}")
        for row in self.rows:
            certified = "" if row.certified is None else f", certified {_percent(row.certified)}"
            lines.append(
                f"{row.name:<{width}}  clean {_percent(row.clean)}, robust {_percent(row.robust)}{certified}; {row.verdict}"
            )
        return "\n".join([*lines, *map(str, self.pairs), CAVEAT])


def compare(results: Mapping[str, Evaluation | EvaluationRecord]) -> Comparison:
    """Compare evaluations of the same points: rank the defences and test each pair.

    Args:
        results: evaluations, or their records, by the name of the defence; all with the same points, ball and battery.
    Raises:
        TypeError: `results` is not a mapping of names to evaluations.
        ValueError: there are fewer than two, they differ in points, ball, battery, how often it ran, or which of its attacks
            could run, or a record lacks its points.
    """
    if not isinstance(results, Mapping):
        raise TypeError(f"`results` must map names to evaluations, got {results!r} of type {type(results).__name__}")
    for name, result in results.items():
        if not isinstance(result, (Evaluation, EvaluationRecord)):
            raise TypeError(f"`results` must hold evaluations or their records, got {result!r} for {name!r}")
    if len(results) < 2:
        raise ValueError(f"`results` must hold at least two evaluations, got {len(results)}")
    first = next(iter(results))
    for name, result in results.items():
        if _ground(result) != _ground(results[first]):
            raise ValueError(
                f"`results` must be of the same points, ball and battery, run as often: {first!r} has "
                f"{_ground(results[first])}, got {_ground(result)} for {name!r}"
            )
    _check_attacks(results)
    ranked = sorted(results, key=lambda name: -results[name].robust.correct)
    points = {name: points_in(name, results[name]) for name in ranked}
    names = list(itertools.combinations(ranked, 2))
    differences = [paired_difference(points[one], points[two]) for one, two in names]
    corrected = holm([difference.p for difference in differences])
    pairs = [Pair(*both, difference, p) for both, difference, p in zip(names, differences, corrected, strict=True)]
    eps, norm, battery, *_ = _ground(results[first])
    not_run = dict.fromkeys(words for result in results.values() for words in missing_of(result.attacks))
    return Comparison(eps, norm, battery, tuple(_row(name, results[name]) for name in ranked), tuple(pairs), tuple(not_run))


def _check_attacks(results: Mapping[str, Evaluation | EvaluationRecord]) -> None:
    """Refuse what met an attack beside what that attack could not run against. Where nothing was left, it need not run."""
    met = {one.attack: name for name, result in results.items() for one in result.attacks if one.attacked and not one.not_run}
    for name, result in results.items():
        unfair = [one for one in result.attacks if one.not_run and one.attack in met]
        if unfair:
            raise ValueError(
                f"`results` must have met the same attacks: {met[unfair[0].attack]!r} met one that {name!r} has not met, "
                f"{'; '.join(missing_of(unfair))}"
            )


class _Ground(NamedTuple):
    """What two evaluations must share to be compared."""

    eps: float
    norm: str
    battery: str
    runs_of_battery: int
    n: int
    points: str


def _ground(result: Evaluation | EvaluationRecord) -> _Ground:
    if isinstance(result, EvaluationRecord):
        runs, points = 1, f"{result.provenance.data_sha256[:12]} from {result.first_example}"
    else:
        runs, points = len(result.seeds), result.points_sha256[:12]
    return _Ground(result.eps, result.norm, result.battery, runs, result.robust.n, points)


def points_in(name: str, result: Evaluation | EvaluationRecord) -> Array:
    if result.points is None:
        raise ValueError(f"`results` must hold the outcome of each point, got an older record of {name!r} without them")
    return unpack(result.points.robust, result.robust.n)


def _row(name: str, result: Evaluation | EvaluationRecord) -> Row:
    verdict = result.verdict if isinstance(result, Evaluation) else "no checks in the record"
    return Row(name, result.clean, result.robust, result.certified, verdict, tuple(result.curve))


def _percent(share: Accuracy) -> str:
    return f"{100 * share.value:.1f} % [{100 * share.low:.1f}, {100 * share.high:.1f}]"


def leaderboard_entry(result: Evaluation, *, name: str, dataset: str, architecture: str, **facts: Any) -> dict[str, Any]:
    """Make a leaderboard entry of one model: the keys of RobustBench's model_info and more, accuracies in percent.

    Args:
        result: result of `evaluate`.
        name: name of the model.
        dataset: data set that it was trained on.
        architecture: architecture of its network.
        facts: further keys, such as link, authors, venue, additional_data.
    Returns:
        A dict for json.dump. ``autoattack_acc`` is None: `evaluate` runs its own battery, whose number is ``robust_acc``.
    Raises:
        ValueError: `facts` has a key that is measured here.
    """
    measured = {
        "name": name,
        "dataset": dataset,
        "architecture": architecture,
        "eps": result.eps,
        "norm": result.norm,
        "clean_acc": 100 * result.clean.value,
        "robust_acc": 100 * result.robust.value,
        "robust_low": 100 * result.robust.low,
        "robust_high": 100 * result.robust.high,
        "certified_acc": None if result.certified is None else 100 * result.certified.value,
        "autoattack_acc": None,
        "n": result.robust.n,
        "battery": result.battery,
        "attacks": [outcome.attack for outcome in result.attacks if not outcome.not_run],
        "missing_attacks": result.missing,
        "verdict": result.verdict,
        "unreliable": not result.verdict.startswith("no symptom"),
        "number_forward_passes": int(np.sum([outcome.queries for outcome in result.attacks])),
        "evaluated_with": f"art-entropic {__version__}",
    }
    clash = sorted(set(measured) & set(facts))
    if clash:
        raise ValueError(f"`facts` must not hold what is measured here, got {', '.join(clash)}")
    open_keys = {"link": None, "authors": None, "venue": None, "additional_data": None, "reported": None}
    return {**open_keys, **facts, **measured}
