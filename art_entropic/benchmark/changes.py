"""Two runs of one plan, cell by cell: what got better or worse."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from art_entropic.evaluation.compare import points_in
from art_entropic.records import (
    Accuracy,
    AnyRecord,
    CellKey,
    ComparisonKey,
    EvaluationRecord,
    TrainingRecord,
    cell_of,
    comparison_of,
    current,
)
from art_entropic.statistics import Difference, holm, paired_difference


@dataclass(frozen=True)
class Change:
    """One cell in two runs.

    Attributes:
        title: of the cell.
        difference: robust accuracy of the new run less that of the old, paired by point where both records tell.
        p: p-value of the difference, corrected for the number of cells (Holm 1979); NaN without a difference.
    """

    title: str
    old: Accuracy
    new: Accuracy
    difference: Difference | None
    p: float = math.nan

    @property
    def points(self) -> float:
        """By which the robust accuracy rose, in percent."""
        return 100 * (self.new.value - self.old.value)

    @property
    def verdict(self) -> str:
        """ "fell" or "rose" where the change lies beyond its 95 % interval and `p` is at most 0.05, else "no clear change"."""
        if self.difference is None:
            sign = (self.new.low > self.old.high) - (self.new.high < self.old.low)
        else:
            sign = 0 if self.p > 0.05 else self.difference.sign
        return ("no clear change", "rose", "fell")[sign]


@dataclass(frozen=True)
class Changes:
    """Two runs, cell by cell."""

    cells: tuple[Change, ...]
    only_old: tuple[str, ...]  # with the reason, where the new run tells one
    only_new: tuple[str, ...]

    @property
    def fell(self) -> tuple[Change, ...]:
        return tuple(change for change in self.cells if change.verdict == "fell")


def compare_runs(old: Iterable[AnyRecord], new: Iterable[AnyRecord]) -> Changes:
    """What changed between two runs: cells of the same problem, network, radius, framework, defence, seed and test points.

    The training may differ in all else: another version, other settings, more epochs. Without a record of what became of
    each point, intervals are compared, which sees less.

    Raises:
        ValueError: the runs share no cell.
    """
    old, new = list(old), list(new)
    befores, afters = _by_cell(old), _by_cell(new)
    shared = [cell for cell in befores if cell in afters]
    if not shared:
        raise ValueError(f"`old` and `new` must have a cell in common, got {_cells(befores)} and {_cells(afters)}")
    cells = [_change(befores[cell], afters[cell]) for cell in shared]
    corrected = iter(holm([change.difference.p for change in cells if change.difference is not None]))
    failures = _failures(new)
    only_old = (
        _named(record) + failures.get((comparison_of(record), cell_of(record)), "")
        for cell, record in befores.items()
        if cell not in afters
    )
    only_new = (_named(record) for cell, record in afters.items() if cell not in befores)
    cells = [change if change.difference is None else replace(change, p=next(corrected)) for change in cells]
    return Changes(tuple(cells), tuple(only_old), tuple(only_new))


def _failures(records: Iterable[AnyRecord]) -> dict[tuple[ComparisonKey, CellKey], str]:
    """Why a cell has no evaluation, where its training tells."""
    return {
        (comparison_of(one), cell_of(one)): f" ({one.status}{f': {one.reason}' if one.reason else ''})"
        for one in records
        if isinstance(one, TrainingRecord) and one.status != "done"
    }


def _by_cell(records: Iterable[AnyRecord]) -> dict[tuple[Any, ...], EvaluationRecord]:
    """The last evaluation of each cell."""
    return {
        (comparison_of(one), cell_of(one), one.battery, one.first_example, one.clean.n, one.provenance.data_sha256): one
        for one in current(records)
        if isinstance(one, EvaluationRecord)
    }


def _change(before: EvaluationRecord, after: EvaluationRecord) -> Change:
    difference = None
    if before.points is not None and after.points is not None:
        difference = paired_difference(points_in("new", after), points_in("old", before))
    return Change(_named(after), before.robust, after.robust, difference)


def _named(record: EvaluationRecord) -> str:
    variant = f": {record.variant}" if record.variant else ""
    where = f"{record.problem}, {record.network}" if record.network else record.problem
    return f"{record.defence}{variant} on {record.framework}, {where}, L{record.norm} eps {record.eps:g}, seed {record.seed}"


def _cells(found: Mapping[tuple[Any, ...], EvaluationRecord]) -> str:
    return "; ".join(map(_named, found.values())) or "no evaluation"
