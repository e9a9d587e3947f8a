"""Records, pooled over seeds: one section for each data set, network, number of training points, radius and battery."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from art_entropic.backends.registry import FRAMEWORKS
from art_entropic.benchmark.defences import DEFENCES
from art_entropic.benchmark.problems import PROBLEMS
from art_entropic.benchmark.provenance import OTHER_LOAD
from art_entropic.benchmark.store import TITLE
from art_entropic.evaluation.checks import retold
from art_entropic.evaluation.result import UPPER_BOUND, missing_of
from art_entropic.palette import NATURAL, PALETTE
from art_entropic.records import (
    Accuracy,
    AnyRecord,
    AttackOutcome,
    CellKey,
    CheckOutcome,
    ChecksRecord,
    ComparisonKey,
    EvaluationRecord,
    MeasurementRecord,
    ProfileRecord,
    TrainingRecord,
    cell_of,
    comparison_of,
    current,
    unpack,
)
from art_entropic.report.settings import unusual
from art_entropic.statistics import Difference, accuracy, paired_difference

RunRecord = TrainingRecord | EvaluationRecord | ChecksRecord | ProfileRecord
BUSY = 0.1  # share of its machine that others used while a network trained: its seconds are unsure
CROWDED = 0.25  # and from here on no ratio is made of them
INK = "#010203"  # stands for the page's own text colour in a figure, see `inline_svg`


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


@dataclass(frozen=True)
class ComparisonRow:
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
    busy: int = 0  # of its trainings, those during which others used the machine
    crowded: int = 0  # and those during which they used so much that its seconds are not compared
    machines: frozenset[tuple[str, str, int, str | None]] = frozenset()  # processor, system, cores and device of its trainings
    diverged: bool = False  # in every seed
    verdicts: tuple[tuple[int, str], ...] = ()  # of the sanity checks, one a seed, behind the seed
    checks: tuple[CheckOutcome, ...] = ()  # of all seeds
    colour: str = ""  # in figures: its defence's, for a variant one of its own

    @property
    def framework_title(self) -> str:
        return title_of(FRAMEWORKS, self.framework)

    @property
    def defence_title(self) -> str:
        title = title_of(DEFENCES, self.defence)
        return f"{title}: {self.variant}" if self.variant else title

    @property
    def title(self) -> str:
        return f"{self.defence_title}, {self.framework_title}"

    @property
    def ours(self) -> bool:
        return self.defence in DEFENCES and DEFENCES[self.defence].ours

    @property
    def css_colour(self) -> str:
        return self.colour.replace(INK, "currentColor")

    @property
    def certified_by(self) -> str:
        """How many points each method proved, over all seeds; empty where that was not recorded."""
        points = [(test.points, test.clean.n) for test in self.tests if test.points is not None and test.certified is not None]
        methods = dict.fromkeys(method for one, _ in points for method in one.certified_by)
        counts = {
            method: sum(int(unpack(one.certified_by[method], n).sum()) for one, n in points if method in one.certified_by)
            for method in methods
        }
        return ", ".join(f"{count} points by {method}" for method, count in counts.items() if count)

    @property
    def shown(self) -> EvaluationRecord | None:
        """Of the first seed, for the gallery."""
        return self.tests[0] if self.tests else None

    @property
    def main(self) -> bool:
        """Whether it is one of the defences that are compared by default, not a variant or a control."""
        return not self.variant and self.defence in DEFENCES and DEFENCES[self.defence].default

    @property
    def verdict(self) -> str | None:
        """In words, with the seeds where they differ; None where nothing was checked."""
        seeds: dict[str, list[str]] = {}
        for seed, words in self.verdicts:
            seeds.setdefault(words, []).append(str(seed))
        if len(seeds) < 2:
            return next(iter(seeds), None)
        return "; ".join(f"seed{'s' * (len(which) > 1)} {', '.join(which)}: {words}" for words, which in seeds.items())

    @property
    def is_clear(self) -> bool:
        """Whether no seed has a symptom."""
        return all(words.startswith("no symptom") for _, words in self.verdicts)

    @property
    def settings(self) -> str:
        """What the training was told that is not usual, as one line."""
        return "" if self.training is None else ", ".join(f"{name} {value}" for name, value in unusual(self.training).items())

    @property
    def passes(self) -> str | None:
        """Forward and backward passes of one batch through the network over the whole training."""
        if self.training is None or not self.training.forward_passes:
            return None
        return f"{self.training.forward_passes} / {self.training.backward_passes}"

    def at(self, eps: float) -> Estimate | None:
        """The point of the security curve at a radius."""
        return dict(self.curve).get(eps)

    @property
    def attacked_seeds(self) -> frozenset[int]:
        return frozenset(test.seed for test in self.tests)

    def times(self, other: ComparisonRow) -> float | None:
        """Training seconds in those of another row; None where they cannot be compared: not known, too busy, other machines."""
        if not self.seconds or not other.seconds or self.crowded or other.crowded or self.machines != other.machines:
            return None
        return self.seconds / other.seconds


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
    rows: tuple[ComparisonRow, ...]
    name: str | None = None  # the title that its plan asked for

    @property
    def title(self) -> str:
        """Name of the comparison, with its network, and the number of training points where there were not all of them."""
        return self._named(self.name or title_of(PROBLEMS, self.problem))

    def _named(self, data: str) -> str:
        parts = [data]
        if self.network:
            parts.append(f"network {self.network}")
        if self.n_train_limit is not None:
            parts.append(f"first {self.n_train_limit} training points")
        return ", ".join(parts)

    @property
    def headline(self) -> str:
        """Data, network and ball, such as "Digits, network small: Linf, eps 0.15"."""
        data = self.name or title_of(PROBLEMS, self.problem).partition(" (")[0]
        return f"{self._named(data)}: L{self.norm}, eps {radius(self.eps)}"

    @property
    def radius(self) -> str:
        return f"L{self.norm} eps {self.eps:g}"

    @property
    def frameworks(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(row.framework for row in self.rows))

    @property
    def curve_eps(self) -> tuple[float, ...]:
        return tuple(sorted({eps for row in self.rows for eps, _ in row.curve}))

    @property
    def attacks(self) -> tuple[str, ...]:
        """Those that ran against a network, or would have if an earlier one had left anything."""
        ran = (attack for row in self.rows for attack in row.attacks if not attack.not_run)
        return tuple(dict.fromkeys(attack.attack for attack in ran))

    @property
    def not_run(self) -> tuple[str, ...]:
        """The others of the battery, each with its reason."""
        names = self.attacks
        missing = [attack for row in self.rows for attack in row.attacks if attack.attack not in names]
        return tuple(dict.fromkeys(missing_of(missing)))

    @property
    def main_rows(self) -> tuple[ComparisonRow, ...]:
        """The defences that are compared; all rows where none of ours is among them."""
        rows = tuple(row for row in self.rows if row.main)
        return rows if any(row.ours for row in rows) else self.rows

    @property
    def other_rows(self) -> tuple[ComparisonRow, ...]:
        """Variants and controls."""
        main = self.main_rows
        return tuple(row for row in self.rows if row not in main)

    @property
    def points(self) -> str:
        """How many test points, and of how many trainings."""
        which = f" from number {self.first_example} on" if self.first_example else ""
        return f"{self.n} test points{which}, seed{'s' if len(self.seeds) > 1 else ''} {', '.join(map(str, self.seeds))}"

    @property
    def brackets(self) -> str:
        if len(self.seeds) == 1:
            return "Brackets: Wilson 95 % interval."
        return f"Mean over {len(self.seeds)} seeds; brackets: lowest and highest seed."

    @property
    def caption(self) -> str:
        if self.battery is None:
            return f"{self.radius}: no network has been attacked yet."
        attacks = f" ({'; '.join(name for name in self.attacks)})" if self.attacks else ""
        not_run = f"Not run: {'; '.join(self.not_run)}. " if self.not_run else ""
        return (
            f"Attack battery {self.battery}{attacks}, {self.radius}, n = {self.points}. {not_run}{self.brackets} "
            f"Robust accuracy is {UPPER_BOUND}."
        )


def headlines(found: Sequence[Section]) -> list[str]:
    """One title a section, none of them twice."""
    titles = [section.headline for section in found]
    return [
        title if titles.count(title) == 1 else f"{title}, battery {section.battery}, {section.points}"
        for title, section in zip(titles, found, strict=True)
    ]


def busy_note(section: Section) -> str | None:
    """How many trainings took seconds that are not to be trusted, None where all are."""
    crowded = sum(row.crowded for row in section.rows)
    unsure = sum(row.busy for row in section.rows) - crowded
    parts = []
    if crowded:
        parts.append(f"{_trainings(crowded)} ran on a busy machine: {_their(crowded)} seconds are not compared.")
    if unsure:
        parts.append(f"{_trainings(unsure)} shared the machine with other programs: {_their(unsure)} seconds are unsure.")
    return " ".join(parts) or None


def _trainings(count: int) -> str:
    return f"{count} training{'s' * (count > 1)}"


def _their(count: int) -> str:
    return "their" if count > 1 else "its"


def busy_details(section: Section) -> str | None:
    """Which trainings these are, and what to do about it; None where all seconds are sure."""
    busy, crowded = (
        ", ".join(f"{row.defence_title} on {row.framework_title}" for row in rows)
        for rows in ([row for row in section.rows if row.busy > row.crowded], [row for row in section.rows if row.crowded])
    )
    parts = []
    if crowded:
        parts.append(f"Other programs used more than {100 * CROWDED:.0f} % of the machine during the training of {crowded}.")
    if busy:
        parts.append(
            f"Other programs used {100 * BUSY:.0f} to {100 * CROWDED:.0f} % of the machine during the training of {busy}."
        )
    return " ".join([*parts, "Run them again, in a new folder, with nothing else running."]) if parts else None


def machines_note(section: Section) -> str | None:
    """Why there is no ratio of seconds between some rows, None where all trained on one machine."""
    if len({row.machines for row in section.rows if row.seconds}) < 2:
        return None
    return "Seconds are not compared where networks trained on different machines."


def radius(eps: float) -> str:
    """A radius as its field writes it: 0.3, or 8/255.

    >>> radius(0.3), radius(8 / 255), radius(0.0123)
    ('0.3', '8/255', '0.0123')
    """
    pixels = eps * 255
    in_pixels = abs(100 * eps - round(100 * eps)) > 1e-9 and abs(pixels - round(pixels)) < 1e-6
    return f"{pixels:.0f}/255" if in_pixels else f"{eps:g}"


def percent(share: float) -> str:
    """A share as a percentage with one decimal, without its sign."""
    return f"{100 * share:.1f}"


def duration(seconds: float) -> str:
    """Seconds with a precision that fits their size."""
    return f"{seconds:.2g}" if seconds < 1 else f"{seconds:.1f}" if seconds < 100 else f"{seconds:.0f}"


def title_of(table: Any, name: str) -> str:
    row = table.get(name)
    return name if row is None else str(row.title)


def rank(table: Any, name: str) -> tuple[int, str]:
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


def paired(row: ComparisonRow, rival: ComparisonRow) -> Difference | None:
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

    Evaluations belong together where problem, network, training points, eps, norm, data, battery and test points agree. A
    training that has no evaluation (unavailable, diverged, interrupted) shows in every section of its comparison.
    """
    trainings: dict[str, TrainingRecord] = {}
    latest: dict[tuple[ComparisonKey, str], dict[CellKey, TrainingRecord]] = {}
    evaluations: dict[tuple[ComparisonKey, str, str | None, int, int], dict[CellKey, EvaluationRecord]] = {}
    checks: dict[str, ChecksRecord] = {}
    for record in current(records):
        if isinstance(record, (MeasurementRecord, ProfileRecord)):
            continue
        if isinstance(record, ChecksRecord):
            checks[record.evaluation_key] = record
            continue
        place, cell = (comparison_of(record), record.provenance.data_sha256), cell_of(record)
        if isinstance(record, TrainingRecord):
            trainings[record.key] = record
            latest.setdefault(place, {})[cell] = record
        else:
            points = record.clean.n, record.first_example
            evaluations.setdefault((*place, record.battery, *points), {})[cell] = record
    attacked = {(comparison, data) for comparison, data, *_ in evaluations}
    for place in latest:
        if place not in attacked:
            evaluations[(*place, None, 0, 0)] = {}
    return [
        _section(comparison, battery, n, first, tests, latest.get((comparison, data), {}), trainings, checks)
        for (comparison, data, battery, n, first), tests in evaluations.items()
    ]


def _section(
    comparison: ComparisonKey,
    battery: str | None,
    n: int,
    first_example: int,
    evaluations: dict[CellKey, EvaluationRecord],
    latest: dict[CellKey, TrainingRecord],
    by_key: dict[str, TrainingRecord],
    checks: dict[str, ChecksRecord],
) -> Section:
    trained = dict(latest)
    for cell, evaluation in evaluations.items():
        training = by_key.get(evaluation.training_key)
        if training is not None:
            trained[cell] = training
    cells = dict.fromkeys([*trained, *evaluations])
    variants = list(dict.fromkeys(cell.variant for cell in cells))
    places = {(rank(FRAMEWORKS, s.framework), rank(DEFENCES, s.defence), variants.index(s.variant), s[:3]) for s in cells}
    seeds = tuple(sorted({cell.seed for cell in cells}))
    rows = [_row(*place, seeds, trained, evaluations, checks) for *_, place in sorted(places)]
    names = {training.settings.get(TITLE) for training in trained.values()}
    name = str(names.pop()) if len(names) == 1 and None not in names else None
    return Section(*comparison, battery=battery, n=n, first_example=first_example, seeds=seeds, rows=_coloured(rows), name=name)


def _coloured(rows: Sequence[ComparisonRow]) -> tuple[ComparisonRow, ...]:
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
    trained: dict[CellKey, TrainingRecord],
    evaluations: dict[CellKey, EvaluationRecord],
    checks: dict[str, ChecksRecord],
) -> ComparisonRow:
    cells = [CellKey(framework, defence, variant, seed) for seed in seeds]
    runs = [trained[cell] for cell in cells if cell in trained]
    tests = [evaluations[cell] for cell in cells if cell in evaluations]
    done = [run for run in runs if run.status == "done"]
    starts = [trained.get(CellKey(framework, NATURAL, "", seed)) for seed in seeds]
    natural = [run for run in starts if run is not None and run.status == "done"]
    seconds = _mean([run.seconds for run in done])
    base = _mean([run.seconds for run in natural if run.seed in {one.seed for one in done}])
    certified = [found for test in tests if (found := _proved(test)) is not None]
    checked = [checks[test.key] for test in tests if test.key in checks]
    return ComparisonRow(
        framework=framework,
        defence=defence,
        variant=variant,
        clean=pool([test.clean for test in tests]),
        robust=pool([test.robust for test in tests]),
        certified=pool(certified) if any(test.certified is not None for test in tests) else None,
        certified_reason=next((test.certified_reason for test in tests if test.certified_reason), None),
        seconds=seconds,
        ratio=seconds / base if seconds is not None and base and _comparable(done, natural) else None,
        remark=_remark(runs, tests, seeds),
        notes=tuple(dict.fromkeys(note for run in runs for note in run.notes)),
        curve=_pool_curves(tests),
        attacks=tuple(outcome for test in tests for outcome in test.attacks),
        tests=tuple(tests),
        training=done[0] if done else None,
        busy=_count_above(BUSY, done),
        crowded=_count_above(CROWDED, done),
        machines=_machines(done),
        diverged=bool(runs) and all(run.status == "diverged" for run in runs),
        verdicts=tuple((record.seed, retold(record.verdict, record.checks)) for record in checked),
        checks=tuple(check for record in checked for check in record.checks),
    )


def _proved(test: EvaluationRecord) -> Accuracy | None:
    """None where no certificate could be had; where one was tried, a share of 0 counts as one, though it is not shown alone."""
    if test.certified is not None or test.points is None or test.points.certified is None:
        return test.certified
    return accuracy(unpack(test.points.certified, test.clean.n))


def _comparable(runs: Sequence[TrainingRecord], others: Sequence[TrainingRecord]) -> bool:
    """Whether their seconds may be compared."""
    return not _count_above(CROWDED, [*runs, *others]) and _machines(runs) == _machines(others)


def _machines(runs: Sequence[TrainingRecord]) -> frozenset[tuple[str, str, int, str | None]]:
    """What tells machines apart; the name of a processor alone may stand for several generations, one twice as fast."""
    sources = [run.provenance for run in runs]
    return frozenset((source.processor, source.platform, source.cores, source.device) for source in sources)


def _count_above(share: float, runs: Sequence[TrainingRecord]) -> int:
    """How many trained while others used more than a share of the machine."""
    return sum(_other_load(run) > share for run in runs)


def _other_load(run: TrainingRecord) -> float:
    load = run.settings.get(OTHER_LOAD)
    return float(load) if isinstance(load, (int, float)) else 0.0


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _remark(runs: Sequence[TrainingRecord], tests: Sequence[EvaluationRecord], seeds: Sequence[int]) -> str | None:
    """Why numbers are missing, in the words of the record, and of which seeds they are; None where none is missing."""
    parts = []
    for status in ("unavailable", "diverged"):
        failed = [run for run in runs if run.status == status]
        if failed:
            which = "" if len(failed) == len(runs) else f" ({len(failed)} of {len(runs)} seeds)"
            parts.append(f"{failed[0].reason or f'{status}, no reason recorded'}{which}")
    waiting = sum(run.status == "done" for run in runs) - len(tests)
    if waiting > 0:
        parts.append("trained, not attacked yet" + (f" ({waiting} of {len(runs)} seeds)" if len(runs) > 1 else ""))
    if 0 < len(tests) < len(seeds):
        shown = ", ".join(str(test.seed) for test in tests)
        brackets = "; its brackets are a Wilson 95 % interval" if len(tests) == 1 else ""
        parts.append(f"numbers of seed{'s' * (len(tests) > 1)} {shown} alone{brackets}")
    return "; ".join(parts) or None


def _pool_curves(tests: Sequence[EvaluationRecord]) -> tuple[tuple[float, Estimate], ...]:
    points: dict[float, list[Accuracy]] = {}
    for test in tests:
        for point in test.curve:
            points.setdefault(point.eps, []).append(point.robust)
    pooled = ((eps, pool(points[eps])) for eps in sorted(points))
    return tuple((eps, estimate) for eps, estimate in pooled if estimate is not None)


def colour(defence: str) -> str:
    """The one colour of a defence in all figures; natural training has the colour of the text."""
    if defence == NATURAL:
        return INK
    names = sorted((name for name in DEFENCES if name != NATURAL), key=lambda name: not DEFENCES[name].default)
    position = names.index(defence) if defence in names else len(names)
    return PALETTE[position % len(PALETTE)]
