"""Two runs of one plan, cell by cell: what got better or worse."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from art_entropic.evaluation.compare import points_in
from art_entropic.records import Accuracy, AnyRecord, EvaluationRecord, cell_of, comparison_of, current
from art_entropic.statistics import Difference, paired_difference


@dataclass(frozen=True)
class Change:
    """One cell in two runs.

    Attributes:
        title: of the cell.
        difference: robust accuracy of the new run less that of the old, paired by point where both records tell.
    """

    title: str
    old: Accuracy
    new: Accuracy
    difference: Difference | None

    @property
    def points(self) -> float:
        """By which the robust accuracy rose, in percent."""
        return 100 * (self.new.value - self.old.value)

    @property
    def verdict(self) -> str:
        """ "fell" or "rose" where the change lies beyond its 95 % interval, else "no clear change"."""
        if self.difference is None:
            low, high = self.new.low - self.old.high, self.new.high - self.old.low
        else:
            low, high = self.difference.low, self.difference.high
        return "fell" if high < 0 else "rose" if low > 0 else "no clear change"


@dataclass(frozen=True)
class Changes:
    """Two runs, cell by cell."""

    cells: tuple[Change, ...]
    only_old: tuple[str, ...]
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
    befores, afters = _by_cell(old), _by_cell(new)
    shared = [cell for cell in befores if cell in afters]
    if not shared:
        raise ValueError(f"`old` and `new` must have a cell in common, got {_cells(befores)} and {_cells(afters)}")
    cells = tuple(_change(befores[cell], afters[cell]) for cell in shared)
    only_old, only_new = (
        tuple(_named(record) for cell, record in some.items() if cell not in others)
        for some, others in ((befores, afters), (afters, befores))
    )
    return Changes(cells, only_old, only_new)


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
