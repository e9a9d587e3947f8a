"""Records -> tables, Markdown and one self-contained HTML page. Never touches a model or a framework.

Everything is computed from ``records.jsonl`` alone, so that a report can be rebuilt on a machine that has neither the
data nor the weights. The last record of a key is the valid one.
"""

from __future__ import annotations

import base64
import importlib.util
import io
import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np

from art_entropic.analysis import PROFILE_MEASURES, plot_layers
from art_entropic.attacks import ATTACKS
from art_entropic.backends import FRAMEWORKS
from art_entropic.defences import DEFENCES
from art_entropic.evaluation import CURVE_BATTERY
from art_entropic.files import write_whole
from art_entropic.palette import NATURAL, PALETTE
from art_entropic.problems import PROBLEMS
from art_entropic.records import (
    Accuracy,
    AnyRecord,
    AttackedExample,
    AttackOutcome,
    Cell,
    CheckOutcome,
    ChecksRecord,
    EvaluationRecord,
    MeasurementRecord,
    ProfileRecord,
    ProfileRow,
    Provenance,
    TrainingRecord,
    read_records,
    unpack,
)
from art_entropic.statistics import Difference, paired_difference

RECORDS = "records.jsonl"
UPPER_BOUND = "an upper bound: a better attack may do better"
NO_FIGURES = "Figures were left out because matplotlib is not installed: pip install 'art-entropic[plot]'"
SECONDS_NOTE = (
    "Training seconds are those of the defence alone, on top of the natural training that all of them start from; "
    "the ratio is to that natural training."
)

RunRecord = TrainingRecord | EvaluationRecord | ChecksRecord | ProfileRecord

# A training's setting: the share of its cores that other processes kept busy, and from where on its seconds are unsure.
OTHER_LOAD = "other_load"
BUSY = 0.1
# Another: the title of the table.
TITLE = "title"

GALLERY_DEFENCES = (NATURAL, "entropic", "entropic_channel", "madry_pgd")
GALLERY_COLUMNS = 8
SHOWN_MEASURES = ("interval", "rivals")

INK = "#010203"  # stands for the page's own text colour in a figure, see `_inline_svg`
STROKES = (("-", "o"), ("--", "s"), (":", "^"))  # line and marker of a framework, in the order of FRAMEWORKS


# -------------------------------------------------------------------------------------------------------------- tables


@dataclass(frozen=True)
class Estimate:
    """An accuracy: of one seed with its Wilson 95 % interval, or the mean of several with their lowest and highest."""

    value: float
    low: float
    high: float
    n: int
    n_seeds: int

    def overlaps(self, other: Estimate) -> bool:
        return self.low <= other.high and other.low <= self.high

    def __str__(self) -> str:
        return f"{percent(self.value)} [{percent(self.low)}, {percent(self.high)}]"


class Ground(NamedTuple):
    """What all rows of a comparison share."""

    problem: str
    network: str
    n_train_limit: int | None
    eps: float
    norm: str


class Seat(NamedTuple):
    """The place of a cell in its comparison."""

    framework: str
    defence: str
    variant: str
    seed: int


def ground_of(record: Cell) -> Ground:
    """The comparison that a record belongs to."""
    return Ground(record.problem, record.network, record.n_train_limit, record.eps, record.norm)


def seat_of(record: Cell) -> Seat:
    """Its place there."""
    return Seat(record.framework, record.defence, record.variant, record.seed)


@dataclass(frozen=True)
class Row:
    """One defence, or a variant of it, on one framework, its seeds pooled.

    What was not measured is None, and `remark` says why.
    """

    framework: str
    defence: str
    variant: str = ""
    clean: Estimate | None = None
    robust: Estimate | None = None
    certified: Estimate | None = None
    certified_reason: str | None = None
    seconds: float | None = None
    ratio: float | None = None
    remark: str | None = None
    notes: tuple[str, ...] = ()
    curve: tuple[tuple[float, Estimate], ...] = ()
    attacks: tuple[AttackOutcome, ...] = ()
    tests: tuple[EvaluationRecord, ...] = ()  # one a seed
    training: TrainingRecord | None = None
    busy: bool = False  # others used the machine while it trained
    diverged: bool = False  # in every seed
    verdicts: tuple[str, ...] = ()  # of the sanity checks, one a seed
    checks: tuple[CheckOutcome, ...] = ()  # of the first seed
    colour: str = ""  # in figures: its defence's, for a variant one of its own

    @property
    def framework_title(self) -> str:
        return _title(FRAMEWORKS, self.framework)

    @property
    def defence_title(self) -> str:
        title = _title(DEFENCES, self.defence)
        return f"{title}: {self.variant}" if self.variant else title

    @property
    def ours(self) -> bool:
        return self.defence in DEFENCES and DEFENCES[self.defence].ours

    @property
    def css_colour(self) -> str:
        return self.colour.replace(INK, "currentColor")

    @property
    def shown(self) -> EvaluationRecord | None:
        """Of the first seed, for the gallery."""
        return self.tests[0] if self.tests else None

    @property
    def verdict(self) -> str | None:
        """In words, of every seed where they differ; None where nothing was checked."""
        return " / ".join(dict.fromkeys(self.verdicts)) or None

    @property
    def settings(self) -> str:
        """What the training was told, as one line."""
        told = {} if self.training is None else self.training.settings
        return ", ".join(f"{name} {value}" for name, value in told.items() if name not in ("data", TITLE))

    @property
    def passes(self) -> str | None:
        """Forward and backward passes of one batch through the network over the whole training."""
        if self.training is None or not self.training.forward_passes:
            return None
        return f"{self.training.forward_passes} / {self.training.backward_passes}"

    def at(self, eps: float) -> Estimate | None:
        """The point of the security curve at a radius."""
        return dict(self.curve).get(eps)


@dataclass(frozen=True)
class Section:
    """One comparison: every row was attacked alike, on the same points."""

    problem: str
    network: str
    n_train_limit: int | None
    eps: float
    norm: str
    battery: str | None
    n: int
    first_example: int
    seeds: tuple[int, ...]
    rows: tuple[Row, ...]
    name: str | None = None  # the title that its plan asked for

    @property
    def title(self) -> str:
        """Name of the comparison, with its network, and the number of training points where there were not all of them."""
        parts = [self.name or _title(PROBLEMS, self.problem)]
        if self.network:
            parts.append(f"network {self.network}")
        if self.n_train_limit is not None:
            parts.append(f"first {self.n_train_limit} training points")
        return ", ".join(parts)

    @property
    def radius(self) -> str:
        return f"L{self.norm} eps {self.eps:g}"

    @property
    def frameworks(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(row.framework for row in self.rows))

    @property
    def groups(self) -> tuple[tuple[str, tuple[Row, ...]], ...]:
        """Rows by framework title."""
        return tuple(
            (_title(FRAMEWORKS, framework), tuple(row for row in self.rows if row.framework == framework))
            for framework in self.frameworks
        )

    @property
    def curve_eps(self) -> tuple[float, ...]:
        return tuple(sorted({eps for row in self.rows for eps, _ in row.curve}))

    @property
    def attacks(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(attack.attack for row in self.rows for attack in row.attacks))

    @property
    def caption(self) -> str:
        if self.battery is None:
            return f"{self.radius}: no network has been attacked yet."
        seeds = ", ".join(map(str, self.seeds))
        attacks = f" ({'; '.join(_title(ATTACKS, name) for name in self.attacks)})" if self.attacks else ""
        brackets = (
            "Brackets: Wilson 95 % interval."
            if len(self.seeds) == 1
            else f"Mean over {len(self.seeds)} seeds; brackets: lowest and highest seed."
        )
        points = f"{self.n} test points" + (f" from number {self.first_example} on" if self.first_example else "")
        return (
            f"Attack battery {self.battery}{attacks}, {self.radius}, n = {points}, "
            f"seed{'s' if len(self.seeds) > 1 else ''} {seeds}. {brackets} Robust accuracy is {UPPER_BOUND}."
        )


def busy_note(section: Section) -> str | None:
    """Whose seconds cannot be compared, None where all can."""
    rows = [f"{row.defence_title} on {row.framework_title}" for row in section.rows if row.busy]
    if not rows:
        return None
    return (
        f"Training seconds are unsure, because other programs used more than {BUSY:.0%} of the machine during the training "
        f"of {', '.join(rows)}. Run it again, in a new folder, with nothing else running."
    )


def percent(share: float) -> str:
    """A share as a percentage with one decimal, without its sign."""
    return f"{100 * share:.1f}"


def duration(seconds: float) -> str:
    """Seconds with a precision that fits their size."""
    return f"{seconds:.2g}" if seconds < 1 else f"{seconds:.1f}" if seconds < 100 else f"{seconds:.0f}"


def _title(table: Any, name: str) -> str:
    row = table.get(name)
    return name if row is None else str(row.title)


def _rank(table: Any, name: str) -> tuple[int, str]:
    """Order of a table, names of another version's tables last."""
    names = list(table)
    return (names.index(name) if name in names else len(names), name)


def pool(accuracies: Sequence[Accuracy]) -> Estimate | None:
    """One accuracy per seed -> one estimate; None where there is none.

    Seeds share their test points, so their counts are not added: several seeds show their own spread instead.
    """
    if not accuracies:
        return None
    if len(accuracies) == 1:
        only = accuracies[0]
        return Estimate(only.value, only.low, only.high, only.n, 1)
    values = [accuracy.value for accuracy in accuracies]
    return Estimate(sum(values) / len(values), min(values), max(values), accuracies[0].n, len(values))


def paired(row: Row, rival: Row) -> Difference | None:
    """Robust accuracy of a row less that of its rival, on the same points and over the seeds that both have.

    None where the records of either do not tell what became of each point.
    """
    ours, theirs = ({test.seed: test for test in one.tests if test.points is not None} for one in (row, rival))
    seeds = sorted(set(ours) & set(theirs))
    if not seeds:
        return None
    first, second = (np.stack([_survivors(tests[seed]) for seed in seeds]) for tests in (ours, theirs))
    return paired_difference(first, second)


def _survivors(test: EvaluationRecord) -> np.ndarray:
    if test.points is None:
        raise ValueError(f"the record {test.key} must know what became of each point")
    return unpack(test.points.robust, test.robust.n)


def sections(records: Iterable[AnyRecord]) -> list[Section]:
    """Records -> comparisons, in the order of their first appearance.

    Evaluations belong together where problem, network, training points, eps, norm, battery and test points agree. A
    training that has no evaluation (unavailable, diverged, interrupted) shows in every comparison on its ground.
    """
    trainings: dict[str, TrainingRecord] = {}
    latest: dict[Ground, dict[Seat, TrainingRecord]] = {}
    evaluations: dict[tuple[Ground, str | None, int, int], dict[Seat, EvaluationRecord]] = {}
    checks: dict[str, ChecksRecord] = {}
    for record in records:
        if isinstance(record, (MeasurementRecord, ProfileRecord)):
            continue
        if isinstance(record, ChecksRecord):
            checks[record.evaluation_key] = record
            continue
        ground, seat = ground_of(record), seat_of(record)
        if isinstance(record, TrainingRecord):
            trainings[record.key] = record
            latest.setdefault(ground, {})[seat] = record
        else:
            points = record.clean.n, record.first_example
            evaluations.setdefault((ground, record.battery, *points), {})[seat] = record
    attacked = {ground for ground, *_ in evaluations}
    for ground in latest:
        if ground not in attacked:
            evaluations[(ground, None, 0, 0)] = {}
    return [
        _section(ground, battery, n, first, tests, latest.get(ground, {}), trainings, checks)
        for (ground, battery, n, first), tests in evaluations.items()
    ]


def _section(
    ground: Ground,
    battery: str | None,
    n: int,
    first_example: int,
    evaluations: dict[Seat, EvaluationRecord],
    latest: dict[Seat, TrainingRecord],
    by_key: dict[str, TrainingRecord],
    checks: dict[str, ChecksRecord],
) -> Section:
    trained = dict(latest)
    for seat, evaluation in evaluations.items():
        training = by_key.get(evaluation.training_key)
        if training is not None:
            trained[seat] = training
    seats = dict.fromkeys([*trained, *evaluations])
    variants = list(dict.fromkeys(seat.variant for seat in seats))
    places = {(_rank(FRAMEWORKS, s.framework), _rank(DEFENCES, s.defence), variants.index(s.variant), s[:3]) for s in seats}
    seeds = tuple(sorted({seat.seed for seat in seats}))
    rows = [_row(*place, seeds, trained, evaluations, checks) for *_, place in sorted(places)]
    names = {training.settings.get(TITLE) for training in trained.values()}
    name = str(names.pop()) if len(names) == 1 and None not in names else None
    return Section(*ground, battery=battery, n=n, first_example=first_example, seeds=seeds, rows=_coloured(rows), name=name)


def _coloured(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Rows with their colours; a variant takes one that no defence of the section has, as long as there are any."""
    taken = {colour(row.defence) for row in rows if not row.variant}
    free = [shade for shade in PALETTE if shade not in taken] or list(PALETTE)
    variants = list(dict.fromkeys((row.defence, row.variant) for row in rows if row.variant))
    shades = {variant: free[number % len(free)] for number, variant in enumerate(variants)}
    return tuple(replace(row, colour=shades.get((row.defence, row.variant), colour(row.defence))) for row in rows)


def _row(
    framework: str,
    defence: str,
    variant: str,
    seeds: Sequence[int],
    trained: dict[Seat, TrainingRecord],
    evaluations: dict[Seat, EvaluationRecord],
    checks: dict[str, ChecksRecord],
) -> Row:
    seats = [Seat(framework, defence, variant, seed) for seed in seeds]
    runs = [trained[seat] for seat in seats if seat in trained]
    tests = [evaluations[seat] for seat in seats if seat in evaluations]
    done = [run for run in runs if run.status == "done"]
    starts = [trained.get(Seat(framework, NATURAL, "", seed)) for seed in seeds]
    natural = [run for run in starts if run is not None and run.status == "done"]
    seconds = _mean([run.seconds for run in done])
    base = _mean([run.seconds for run in natural if run.seed in {one.seed for one in done}])
    certified = [test.certified for test in tests if test.certified is not None]
    checked = [checks[test.key] for test in tests if test.key in checks]
    return Row(
        framework=framework,
        defence=defence,
        variant=variant,
        clean=pool([test.clean for test in tests]),
        robust=pool([test.robust for test in tests]),
        certified=pool(certified),
        certified_reason=next((test.certified_reason for test in tests if test.certified_reason), None),
        seconds=seconds,
        ratio=seconds / base if seconds is not None and base else None,
        remark=_remark(runs, tests),
        notes=tuple(dict.fromkeys(note for run in runs for note in run.notes)),
        curve=_pool_curves(tests),
        attacks=tuple(outcome for test in tests for outcome in test.attacks),
        tests=tuple(tests),
        training=done[0] if done else None,
        busy=any(_other_load(run) > BUSY for run in done),
        diverged=bool(runs) and all(run.status == "diverged" for run in runs),
        verdicts=tuple(record.verdict for record in checked),
        checks=tuple(checked[0].checks) if checked else (),
    )


def _other_load(run: TrainingRecord) -> float:
    load = run.settings.get(OTHER_LOAD)
    return float(load) if isinstance(load, (int, float)) else 0.0


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _remark(runs: Sequence[TrainingRecord], tests: Sequence[EvaluationRecord]) -> str | None:
    """Why numbers are missing, in the words of the record; None where none is."""
    parts = []
    for status in ("unavailable", "diverged"):
        failed = [run for run in runs if run.status == status]
        if failed:
            which = "" if len(failed) == len(runs) else f" ({len(failed)} of {len(runs)} seeds)"
            parts.append(f"{failed[0].reason or f'{status}, no reason recorded'}{which}")
    waiting = sum(run.status == "done" for run in runs) - len(tests)
    if waiting > 0:
        parts.append("trained, not attacked yet" + (f" ({waiting} of {len(runs)} seeds)" if len(runs) > 1 else ""))
    return "; ".join(parts) or None


def _pool_curves(tests: Sequence[EvaluationRecord]) -> tuple[tuple[float, Estimate], ...]:
    points: dict[float, list[Accuracy]] = {}
    for test in tests:
        for point in test.curve:
            points.setdefault(point.eps, []).append(point.robust)
    pooled = ((eps, pool(points[eps])) for eps in sorted(points))
    return tuple((eps, estimate) for eps, estimate in pooled if estimate is not None)


# ------------------------------------------------------------------------------------------------------------- summary


def summary(section: Section) -> list[str]:
    """One sentence a framework: who is ahead in robust accuracy, by how much, at what cost. Defeats come first."""
    behind: list[str] = []
    others: list[str] = []
    for framework in section.frameworks:
        rows = [row for row in section.rows if row.framework == framework and row.robust is not None]
        if not rows:
            others.append(f"{_title(FRAMEWORKS, framework)}: nothing has been attacked yet.")
            continue
        for lost, sentence in _verdicts(rows):
            (behind if lost else others).append(f"{rows[0].framework_title}: {sentence}")
    return behind + others


def _verdicts(rows: Sequence[Row]) -> list[tuple[bool, str]]:
    """For each of our own defences, variants only where there is nothing else: whether it lost, and the sentence."""
    ours = [row for row in rows if row.ours and not row.variant] or [row for row in rows if row.ours]
    rivals = [row for row in rows if not row.ours]
    if not ours or not rivals:
        best = max(rows, key=_robustness)
        return [(False, f"{best.defence_title} has the highest robust accuracy, {percent(_robustness(best))} %.")]
    return [_verdict(row, rivals) for row in ours]


def _verdict(entropic: Row, rivals: Sequence[Row]) -> tuple[bool, str]:
    rival = max(rivals, key=_robustness)
    points = 100 * (_robustness(entropic) - _robustness(rival))
    figures = f"{percent(_robustness(entropic))} % against {percent(_robustness(rival))} % for {rival.defence_title}"
    if abs(points) < 0.05:
        names = f"{entropic.defence_title} and {rival.defence_title}"
        return False, f"{names} are level in robust accuracy, {figures}{_cost(entropic, rival)}."
    place = "ahead" if points > 0 else "behind"
    return points < 0, (
        f"{entropic.defence_title} is {place} in robust accuracy by {abs(points):.1f} points, {figures}"
        f"{_chance(entropic, rival)}{_cost(entropic, rival)}.{_cheaper(entropic, rivals)}{_without_gain(entropic, rivals)}"
    )


def _cheaper(entropic: Row, rivals: Sequence[Row]) -> str:
    """Rivals that took less time and are not clearly less robust: a reader would choose them."""
    found = [
        f"{rival.defence_title} ({percent(_robustness(rival))} % in {duration(rival.seconds)} s)"
        for rival in rivals
        if rival.seconds and entropic.seconds and rival.seconds < entropic.seconds
        if _may_be_level(entropic, rival)
    ]
    return f" Cheaper and not clearly less robust: {', '.join(found)}." if found else ""


def _without_gain(entropic: Row, rivals: Sequence[Row]) -> str:
    natural = next((row for row in rivals if row.defence == NATURAL), None)
    if natural is None or _robustness(entropic) > _robustness(natural):
        return ""
    return f" It is not above natural training either, which has {percent(_robustness(natural))} %."


def _robustness(row: Row) -> float:
    return -1.0 if row.robust is None else row.robust.value


def _difference(entropic: Row, rival: Row) -> Difference | None:
    """Paired, of one seed: over several the trainings differ more than the points."""
    one_seed = entropic.robust is not None and entropic.robust.n_seeds == 1
    return paired(entropic, rival) if one_seed else None


def _may_be_level(entropic: Row, rival: Row) -> bool:
    """Whether the rival is not clearly less robust."""
    if entropic.robust is None or rival.robust is None:
        return False
    difference = _difference(entropic, rival)
    return rival.robust.high >= entropic.robust.low if difference is None else difference.low <= 0


def _chance(entropic: Row, rival: Row) -> str:
    if entropic.robust is None or rival.robust is None:
        return ""
    difference = _difference(entropic, rival)
    if difference is not None:
        if difference.low > 0 or difference.high < 0:
            return ""
        ends = f"{100 * difference.low:+.1f} to {100 * difference.high:+.1f}"
        return f" (95 % interval of the paired difference {ends}, so this may be chance)"
    if not entropic.robust.overlaps(rival.robust):
        return ""
    kind = "their 95 % intervals overlap" if entropic.robust.n_seeds == 1 else "their ranges over the seeds overlap"
    return f" ({kind}, so this may be chance)"


def _cost(entropic: Row, rival: Row) -> str:
    parts = []
    if entropic.seconds and rival.seconds:
        ratio = entropic.seconds / rival.seconds
        seconds = f"{duration(entropic.seconds)} s against {duration(rival.seconds)} s"
        unsure = ", unsure: the machine was busy" if entropic.busy or rival.busy else ""
        parts.append(f"it took {_times(ratio)} the training time ({seconds}{unsure})")
    if entropic.clean is not None and rival.clean is not None:
        points = 100 * (entropic.clean.value - rival.clean.value)
        parts.append(f"its clean accuracy is {_compared(points)}")
    return "; " + " and ".join(parts) if parts else ""


def _times(ratio: float) -> str:
    return f"{ratio:.2f} times" if ratio < 10 else f"{ratio:.0f} times"


def _compared(points: float) -> str:
    if abs(points) < 0.05:
        return "the same"
    return f"{abs(points):.1f} points {'higher' if points > 0 else 'lower'}"


# ---------------------------------------------------------------------------------------------------------- provenance


@dataclass(frozen=True)
class Origin:
    """What the records say of how they were made; more than one entry where they disagree."""

    commands: tuple[str, ...]
    data: tuple[str, ...]
    machines: tuple[str, ...]
    versions: tuple[tuple[str, str], ...]
    created: str


def origin(records: Sequence[RunRecord]) -> Origin:
    """Collect the provenance of records, equal entries once."""
    sources: list[Provenance] = [record.provenance for record in records]
    versions: dict[str, dict[str, None]] = {}
    for source in sources:
        for package, version in {"Python": source.python, **source.versions}.items():
            versions.setdefault(package, {})[version] = None
    return Origin(
        commands=tuple(dict.fromkeys(source.command for source in sources)),
        data=tuple(dict.fromkeys(_data_line(record) for record in records if isinstance(record, TrainingRecord))),
        machines=tuple(dict.fromkeys(map(_machine, sources))),
        versions=tuple((package, " / ".join(found)) for package, found in versions.items()),
        created=max(source.created for source in sources),
    )


def _machine(source: Provenance) -> str:
    # A processor is named anyway.
    device = "" if source.device in (None, "cpu") else f"{source.device}, "
    return f"{device}{source.processor}, {source.cores} cores, {source.platform}"


def _data_line(record: TrainingRecord) -> str:
    return f"{record.settings.get('data', record.problem)}, sha256 {record.provenance.data_sha256}"


# ------------------------------------------------------------------------------------------------------------- figures


@dataclass(frozen=True)
class Figure:
    """A picture as inline SVG, in the page's own text colour."""

    caption: str
    svg: str


def colour(defence: str) -> str:
    """The one colour of a defence in all figures; natural training has the colour of the text."""
    if defence == NATURAL:
        return INK
    names = sorted((name for name in DEFENCES if name != NATURAL), key=lambda name: not DEFENCES[name].default)
    position = names.index(defence) if defence in names else len(names)
    return PALETTE[position % len(PALETTE)]


def _stroke(framework: str) -> tuple[str, str]:
    return STROKES[min(_rank(FRAMEWORKS, framework)[0], len(STROKES) - 1)]


def figures(section: Section, *, salt: str) -> list[Figure]:
    """Security curves, one panel a framework, and robust accuracy against cost. Needs matplotlib.

    Args:
        salt: makes the SVG identifiers of several sections on one page differ.
    """
    panels = [
        _curve_figure(section, framework, rows, salt=f"{salt}-{framework}")
        for framework in section.frameworks
        if (rows := [row for row in section.rows if row.framework == framework and row.curve])
    ]
    priced = [row for row in section.rows if row.seconds and row.robust is not None]
    if len(priced) > 1:
        panels.append(_cost_figure(section, priced, salt=f"{salt}-cost"))
    return panels


def _curve_figure(section: Section, framework: str, rows: Sequence[Row], *, salt: str) -> Figure:
    axes, figure = _axes()
    style, marker = _stroke(framework)
    for row in rows:
        radii = [eps for eps, _ in row.curve]
        axes.fill_between(
            radii,
            [100 * estimate.low for _, estimate in row.curve],
            [100 * estimate.high for _, estimate in row.curve],
            color=row.colour, alpha=0.16, linewidth=0,
        )  # fmt: skip
        values = [100 * estimate.value for _, estimate in row.curve]
        axes.plot(radii, values, style, marker=marker, color=row.colour, markersize=4.5, linewidth=1.8)
    axes.axvline(section.eps, color=INK, alpha=0.45, linewidth=0.8, linestyle=(0, (2, 3)))
    axes.set_ylim(-3, 103)
    axes.set_xlabel(f"L{section.norm} eps (dotted: the eps of the table)")
    axes.set_ylabel("robust accuracy, %")
    title = _title(FRAMEWORKS, framework)
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    said = "; ".join(
        f"{row.defence_title} " + ", ".join(f"{percent(estimate.value)} % at {eps:g}" for eps, estimate in row.curve)
        for row in rows
    )
    attacks = "" if section.battery == CURVE_BATTERY else f" (battery {CURVE_BATTERY}, weaker than the table's)"
    alt = f"{title}, robust accuracy: {said}"
    return Figure(f"Robust accuracy against eps{attacks}, {title}", _inline_svg(figure, alt, salt))


def _cost_figure(section: Section, rows: Sequence[Row], *, salt: str) -> Figure:
    axes, figure = _axes()
    for row in rows:
        if row.robust is None or row.seconds is None:
            continue
        value = 100 * row.robust.value
        reach = [[value - 100 * row.robust.low], [100 * row.robust.high - value]]
        marker = _stroke(row.framework)[1]
        axes.errorbar(
            row.seconds, value, yerr=reach, fmt=marker, color=row.colour,
            markersize=6.5, capsize=3, linewidth=1.2,
        )  # fmt: skip
    seconds = [row.seconds for row in rows if row.seconds]
    if max(seconds) > 8 * min(seconds):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if _leads_with(value, (2, 5)) else "")
    else:
        axes.set_xlim(0, 1.08 * max(seconds))
    axes.set_ylim(-3, 103)
    axes.set_xlabel("training seconds")
    axes.set_ylabel(f"robust accuracy at eps {section.eps:g}, %")
    axes.set_title("What robustness costs", loc="left", fontsize=11, color=INK)
    said = "; ".join(
        f"{row.defence_title} on {row.framework_title} {percent(_robustness(row))} % for {duration(row.seconds or 0)} s"
        for row in rows
    )
    return Figure("Robust accuracy against training seconds", _inline_svg(figure, f"Robustness and cost: {said}", salt))


@dataclass(frozen=True)
class Layers:
    """Where the information goes in the networks of one framework: a table and its figures."""

    framework: str
    n: int
    resolution: float
    measures: tuple[str, ...]  # titles
    models: tuple[str, ...]  # titles
    rows: tuple[tuple[str, tuple[tuple[str, ...], ...]], ...]  # layer -> for each measure the numbers of the models
    sentence: str
    notes: tuple[str, ...]
    figures: tuple[Figure, ...]


def information(section: Section, records: Iterable[AnyRecord], *, salt: str, drawing: bool) -> list[Layers]:
    """The latest profile of each framework on the ground of a section.

    Args:
        salt: makes the SVG identifiers of several sections on one page differ.
        drawing: whether there is matplotlib.
    """
    ground = Ground(section.problem, section.network, section.n_train_limit, section.eps, section.norm)
    latest = {
        record.framework: record
        for record in records
        if isinstance(record, ProfileRecord)
        and (ground_of(record), record.first_example) == (ground, section.first_example)
        and record.n <= section.n
    }
    return [
        _layers(latest[framework], salt=f"{salt}-{framework}-information", drawing=drawing)
        for framework in section.frameworks
        if framework in latest
    ]


def _layers(record: ProfileRecord, *, salt: str, drawing: bool) -> Layers:
    models = tuple(dict.fromkeys(row.model for row in record.rows))
    measures = tuple(name for name in SHOWN_MEASURES if any(_is_layer(row, name) for row in record.rows))
    places = dict.fromkeys((row.position, row.layer) for row in record.rows if row.layer)
    framework = _title(FRAMEWORKS, record.framework)
    return Layers(
        framework=framework,
        n=record.n,
        resolution=record.resolution,
        measures=tuple(PROFILE_MEASURES[measure].title for measure in measures),
        models=tuple(_title(DEFENCES, model) for model in models),
        rows=tuple(
            (layer, tuple(tuple(_reading(record, model, layer, measure) for model in models) for measure in measures))
            for _, layer in sorted(places)
        ),
        sentence=_said_of_layers(record, models),
        notes=record.notes,
        figures=tuple(_profile_figure(record, name, framework, salt=f"{salt}-{name}") for name in measures if drawing),
    )


def _is_layer(row: ProfileRow, measure: str) -> bool:
    return row.measure == measure and bool(row.layer) and row.value is not None and math.isfinite(float(row.value))


def _per_unit(row: ProfileRow) -> float:
    return math.nan if row.value is None else float(row.value) / row.units


def _reading(record: ProfileRecord, model: str, layer: str, measure: str) -> str:
    found = [row for row in record.rows if (row.model, row.layer, row.measure) == (model, layer, measure)]
    return f"{_per_unit(found[0]):.3g}" if found and found[0].value is not None else "-"


def _said_of_layers(record: ProfileRecord, models: Sequence[str]) -> str:
    """What reaches the decision, in one sentence."""
    parts = []
    for model in models:
        rows = [row for row in record.rows if row.model == model and _is_layer(row, SHOWN_MEASURES[-1])]
        if rows:
            deepest = max(rows, key=lambda row: row.position)
            parts.append(f"{_title(DEFENCES, model)} {float(deepest.value or 0):.3g}")
    said = "Nats at the logits, were the perturbations that aim at the rivals a Gaussian signal of the same covariance"
    return f"{said}: {', '.join(parts)}." if parts else ""


def _profile_figure(record: ProfileRecord, measure: str, framework: str, *, salt: str) -> Figure:
    axes, figure = _axes()
    models = tuple(dict.fromkeys(row.model for row in record.rows))
    plot_layers(axes, record.rows, measure, {model: colour(model) for model in models})
    axes.set_title(f"{framework}: {PROFILE_MEASURES[measure].title}", loc="left", fontsize=10, color=INK)
    caption = f"{PROFILE_MEASURES[measure].title}, nats per unit through the layers, {framework}"
    lines = []
    for model in models:
        rows = [row for row in record.rows if row.model == model and _is_layer(row, measure)]
        lines.append(f"{_title(DEFENCES, model)} " + ", ".join(f"{_per_unit(row):.3g} in {row.layer}" for row in rows))
    return Figure(caption, _inline_svg(figure, f"{caption}: {'; '.join(lines)}", salt))


def _leads_with(value: float, digits: tuple[int, ...]) -> bool:
    return round(value / 10 ** math.floor(math.log10(value))) in digits


def _axes() -> tuple[Any, Any]:
    from matplotlib.figure import Figure as Canvas

    figure = Canvas(figsize=(4.9, 3.5), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.grid(color=INK, alpha=0.14, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("bottom", "left"):
        axes.spines[side].set_color(INK)
    axes.tick_params(colors=INK, which="both", labelsize=9)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    return axes, figure


def _inline_svg(figure: Any, alt: str, salt: str) -> str:
    """A matplotlib figure as an <svg> element that takes colour and font from the page it stands in."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.S)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", svg)  # figure_1 and the like would repeat from figure to figure
    svg = re.sub(r"font(?:-family)?: ?([^;\"]*?)'[^;\"]*", lambda hit: _font(hit.group(1)), svg)
    svg = svg.replace(INK, "currentColor")
    size = re.search(r'viewBox="([^"]*)"', svg)
    if size is None:
        raise ValueError("matplotlib wrote an SVG without a viewBox")
    body = svg[svg.index(">") + 1 :]
    return f'<svg role="img" viewBox="{size.group(1)}"><title>{_escaped(alt)}</title>{body}'


def _font(shorthand: str) -> str:
    size = re.search(r"[\d.]+px", shorthand)
    return f"font-size: {size.group()}" if size else "font-family: inherit"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


# ------------------------------------------------------------------------------------------------------------- gallery


@dataclass(frozen=True)
class Tile:
    """One picture of the gallery."""

    source: str  # data URI
    alt: str
    caption: str


@dataclass(frozen=True)
class Strip:
    """The examples of one defence: clean pictures, and below each what an attack made of it."""

    title: str
    clean: tuple[Tile, ...]
    attacked: tuple[Tile, ...]


@dataclass(frozen=True)
class Gallery:
    """The strips of one framework."""

    framework: str
    strips: tuple[Strip, ...]


def galleries(section: Section) -> list[Gallery]:
    """One gallery a framework whose evaluations kept examples."""
    found = []
    for framework in section.frameworks:
        rows = [row for row in section.rows if row.framework == framework and row.shown and row.shown.examples]
        chosen = [row for row in rows if row.defence in GALLERY_DEFENCES and not row.variant] or rows
        if chosen:
            strips = tuple(_strip(row.defence_title, row.shown) for row in chosen if row.shown is not None)
            found.append(Gallery(_title(FRAMEWORKS, framework), strips))
    return found


def _strip(defence: str, evaluation: EvaluationRecord) -> Strip:
    robust = evaluation.robust
    examples = evaluation.examples[:GALLERY_COLUMNS]
    return Strip(
        f"{defence}: {robust.n - robust.correct} of {robust.n} points are wrong under attack",
        tuple(_clean_tile(example) for example in examples),
        tuple(_attacked_tile(defence, example) for example in examples),
    )


def _clean_tile(example: AttackedExample) -> Tile:
    alt = f"test point {example.index}, label {example.label}, clean"
    return Tile(png(example.clean, example.shape), alt, _said(example.clean_prediction, example.label))


def _attacked_tile(defence: str, example: AttackedExample) -> Tile:
    alt = (
        f"test point {example.index}, label {example.label}, attacked: {defence} says {example.clean_prediction} "
        f"on the clean point and {example.attacked_prediction} on this one"
    )
    return Tile(png(example.attacked, example.shape), alt, _said(example.attacked_prediction, example.label))


def _said(prediction: int, label: int) -> str:
    return f"{prediction} {'✓' if prediction == label else '✗'}"


def png(pixels: Sequence[float], shape: Sequence[int]) -> str:
    """A picture as a PNG data URI.

    Args:
        pixels: row by row in [0, 1].
        shape: (height, width, channels), 1 or 3 channels.
    Raises:
        ValueError: another number of channels.
    """
    from PIL import Image

    if shape[-1] not in (1, 3):
        raise ValueError(f"`shape` must end in 1 or 3 channels, got {tuple(shape)!r}")
    levels = np.rint(255 * np.clip(np.asarray(pixels, dtype=np.float64), 0, 1)).astype(np.uint8).reshape(shape)
    buffer = io.BytesIO()
    Image.fromarray(levels[..., 0] if shape[-1] == 1 else levels).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


# -------------------------------------------------------------------------------------------------------------- output


def write_report(folder: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Build ``report.md`` and ``report.html`` from the ``records.jsonl`` of a folder.

    Returns:
        Paths of the Markdown and of the HTML file.
    Raises:
        FileNotFoundError: the folder has no ``records.jsonl``.
        ValueError: it holds no record, or one of an unknown schema.
    """
    import jinja2

    home = Path(folder)
    records = load(home)
    comparisons = sections(records)
    drawing = importlib.util.find_spec("matplotlib") is not None
    views = [
        {
            "section": section,
            "summary": summary(section),
            "figures": figures(section, salt=f"s{number}") if drawing else [],
            "information": information(section, records, salt=f"s{number}", drawing=drawing),
            "galleries": galleries(section),
            "legend": _legend(section),
            "notes": _notes(section),
            "busy": busy_note(section),
            "failures": _failures(section),
        }
        for number, section in enumerate(comparisons)
    ]
    context = {
        "title": "Robustness report: " + ", ".join(dict.fromkeys(section.title for section in comparisons)),
        "views": views,
        "origin": origin(records),
        "no_figures": None if drawing else NO_FIGURES,
        "seconds_note": SECONDS_NOTE,
        "curve_battery": CURVE_BATTERY,
    }
    paths = home / "report.md", home / "report.html"
    for path in paths:
        environment = jinja2.Environment(
            loader=jinja2.PackageLoader("art_entropic"),
            autoescape=path.suffix == ".html",
            finalize=_as_text if path.suffix == ".md" else None,
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=jinja2.StrictUndefined,
        )
        environment.filters |= {"percent": percent, "cell": _markdown_cell, "seconds": duration}
        text = environment.get_template(f"{path.name}.j2").render(context)
        write_whole(path, text.encode())
    return paths


def _as_text(value: object) -> object:
    """Texts of the user's in Markdown, which hands HTML on as it is, and makes links and pictures of brackets."""
    if not isinstance(value, str) or hasattr(value, "__html__"):  # a command, which stands in a block of code
        return value
    return value.replace("<", "&lt;").replace("](", "]\\(").replace("]:", "]\\:").replace("\n", " ")


def load(folder: Path) -> list[RunRecord]:
    """What a run's folder knows of trainings, evaluations, checks and profiles, in order.

    Raises:
        FileNotFoundError: the folder has no ``records.jsonl``.
        ValueError: it holds none.
    """
    path = folder / RECORDS
    if not path.exists():
        raise FileNotFoundError(f"`folder` must hold a {RECORDS} that `art-entropic benchmark` wrote, got {folder}")
    records = [record for record in read_records(path) if not isinstance(record, MeasurementRecord)]
    if not records:
        raise ValueError(f"{path} holds no record of a training or an evaluation: nothing was finished in this folder")
    return records


def _legend(section: Section) -> dict[str, list[dict[str, str]]]:
    defences = {row.defence_title: row.css_colour for row in section.rows if row.robust is not None}
    return {
        "defences": [{"title": title, "colour": shade} for title, shade in defences.items()],
        "frameworks": [
            {
                "title": _title(FRAMEWORKS, name),
                "dash": {"-": "none", "--": "5 3"}.get(_stroke(name)[0], "1 3"),
                "marker": _stroke(name)[1],
            }
            for name in section.frameworks
        ],
    }


def _notes(section: Section) -> list[tuple[str, tuple[str, ...]]]:
    """What could not be made equal, by defence and framework."""
    return [(f"{row.defence_title}, {row.framework_title}", row.notes) for row in section.rows if row.notes]


def _failures(section: Section) -> list[str]:
    """Attacks that stopped with an error: they broke nothing, which must not pass for robustness."""
    return [
        f"{_title(ATTACKS, outcome.attack)} against {row.defence_title} on {row.framework_title}: {outcome.error}"
        for row in section.rows
        for outcome in row.attacks
        if outcome.error
    ]


def _markdown_cell(text: object) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")


def print_table(records: Iterable[AnyRecord], stream: TextIO) -> None:
    """Print the comparison as a table for a terminal: numbers, then what has none, then how they were measured."""
    from rich.console import Console
    from rich.table import Table

    width = None if stream.isatty() else 120
    console = Console(file=stream, width=width, highlight=False, emoji=False, markup=False)
    for section in sections(records):
        table = Table(title=f"{section.title}, {section.radius}", title_justify="left", title_style="bold")
        for heading in ("defence", "framework"):
            table.add_column(heading)
        spread = "[95 % interval]" if len(section.seeds) == 1 else "[low, high seed]"
        shares = [f"{share} %\n{spread}" for share in ("clean", "robust", "certified")]
        for heading in (*shares, "training\nseconds", "x natural"):
            table.add_column(heading, justify="right")
        for row in section.rows:
            if row.robust is not None or row.diverged:
                table.add_row(*_table_cells(row))
        console.print(table)
        for row in section.rows:
            if row.remark:
                console.print(f"  {row.defence_title}, {row.framework_title}: {row.remark}", soft_wrap=True)
        console.print(f"{section.caption}\n{SECONDS_NOTE}", soft_wrap=True)
        if note := busy_note(section):
            console.print(note, soft_wrap=True)
        for sentence in summary(section):
            console.print(sentence, soft_wrap=True)
        for row in section.rows:
            if row.verdict:
                console.print(f"{row.defence_title}, {row.framework_title}: {row.verdict}", soft_wrap=True)


def _table_cells(row: Row) -> tuple[str, ...]:
    if row.diverged:
        return (row.defence_title, row.framework_title, "diverged", "-", "-", "-", "-")
    return (
        row.defence_title,
        row.framework_title,
        *("-" if estimate is None else str(estimate) for estimate in (row.clean, row.robust, row.certified)),
        "-" if row.seconds is None else duration(row.seconds),
        "-" if row.ratio is None else f"{row.ratio:.2f}",
    )


__all__ = ["Estimate", "Row", "Section", "load", "print_table", "sections", "summary", "write_report"]
