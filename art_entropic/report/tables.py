"""The tables of a section. Every writer shows the same ones; their columns are declared once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TextIO

from art_entropic.evaluation.checks import alarms_of
from art_entropic.evaluation.result import CURVE_BATTERY, UPPER_BOUND
from art_entropic.palette import NATURAL
from art_entropic.records import AnyRecord
from art_entropic.report.sections import (
    ComparisonRow,
    Estimate,
    Section,
    busy_details,
    busy_note,
    duration,
    headlines,
    machines_note,
    percent,
    sections,
)
from art_entropic.report.sentences import summary
from art_entropic.report.table import NOTHING, Column, Entry, Table, print_on

SECONDS_NOTE = (
    "Training seconds are those of the defence alone, on top of the natural training that all of them start from; "
    "the ratio is to that natural training."
)
CHECKS_NOTE = (
    "Each network was checked for symptoms of attacks that fail for another reason than robustness. "
    "A check can show that something is wrong; none can show that all is well."
)
PASSES_NOTE = "Passes are those of one batch through the network, forward / backward, over all training steps."


@dataclass(frozen=True)
class Fact:
    """A column whose cells each follow from one row of a section.

    Attributes:
        worth: what is best where it is largest; None for a row that takes no part. Without it no cell is marked as the best.
    """

    heading: str
    cell: Callable[[ComparisonRow], Entry]
    number: bool = True
    worth: Callable[[ComparisonRow], float | None] | None = None


def estimate_cell(estimate: Estimate | None) -> Entry:
    if estimate is None:
        return Entry(NOTHING)
    return Entry(percent(estimate.value), f"[{percent(estimate.low)}, {percent(estimate.high)}]")


def seconds_cell(row: ComparisonRow) -> Entry:
    return _text(None if row.seconds is None else duration(row.seconds))


def _text(value: object) -> Entry:
    return Entry(NOTHING if value is None else str(value))


def _value(estimate: Estimate | None) -> float | None:
    """As it is shown: what looks alike is marked alike."""
    return None if estimate is None or not estimate.value else float(percent(estimate.value))


def _thrift(row: ComparisonRow) -> float | None:
    """Fewer seconds are better; natural training, from which all others start, takes no part."""
    return None if not row.seconds or row.defence == NATURAL else -row.seconds


# What a verdict begins with -> its mark, and in a word what it says; the worst first.
MARKS = {"broken": ("✗", "broken"), "suspicious": ("!", "suspicious"), "no symptom": ("✓", "no symptom")}


def verdict_cell(row: ComparisonRow) -> Entry:
    """The mark of the worst verdict of all seeds, and how many of them have it where not all do."""
    for words, (mark, said) in MARKS.items():
        count = sum(verdict.startswith(words) for _, verdict in row.verdicts)
        if count:
            detail = f"{count} of {len(row.verdicts)} seeds" if count < len(row.verdicts) else ""
            return Entry(said, detail, mark=mark)
    return Entry(NOTHING)


FRAMEWORK = Fact("framework", lambda row: Entry(row.framework_title), number=False)
DEFENCE = Fact("defence", lambda row: Entry(row.defence_title, colour=row.css_colour, strong=row.ours), number=False)
ROBUST = Fact("robust %", lambda row: estimate_cell(row.robust), worth=lambda row: _value(row.robust))
CERTIFIED = Fact("certified %", lambda row: estimate_cell(row.certified), worth=lambda row: _value(row.certified))
SHARES = (Fact("clean %", lambda row: estimate_cell(row.clean), worth=lambda row: _value(row.clean)), ROBUST, CERTIFIED)
SECONDS = Fact("training seconds", seconds_cell, worth=_thrift)
TIMES = Fact("times natural", lambda row: _text(None if row.ratio is None else f"{row.ratio:.2f}"))
VERDICT = Fact("verdict", verdict_cell, number=False)
RESULTS = (FRAMEWORK, DEFENCE, VERDICT, *SHARES, SECONDS, TIMES)
VERDICTS = (FRAMEWORK, DEFENCE, Fact("verdict", lambda row: _text(row.verdict), number=False))
TRAININGS = (
    FRAMEWORK,
    DEFENCE,
    Fact("epochs", lambda row: _text(row.training and row.training.nb_epochs)),
    Fact("batch", lambda row: _text(row.training and row.training.batch_size)),
    Fact("training points", lambda row: _text(row.training and row.training.n_train)),
    Fact("passes", lambda row: _text(row.passes)),
    Fact("settings other than the defaults", lambda row: _text(row.settings or None), number=False),
)


def table_of_rows(
    rows: Iterable[ComparisonRow], facts: Sequence[Fact], *, title: str = "", notes: Iterable[str | None] = ()
) -> Table:
    """One line a row. Where robust accuracies stand, a row that has none says why in place of its numbers."""
    words = tuple(fact for fact in facts if not fact.number and fact is not VERDICT)
    lines = []
    for row in rows:
        if row.robust is None and ROBUST in facts:
            lines.append((*(fact.cell(row) for fact in words), _text(row.remark)))
        else:
            lines.append(tuple(fact.cell(row) for fact in facts))
    return Table(tuple(Column(fact.heading, fact.number) for fact in facts), tuple(lines), title, tuple(filter(None, notes)))


def results(section: Section) -> Table:
    """Accuracies and costs of the defences that are compared, and all that a reader has to know before comparing them."""
    rows, facts = section.main_rows, _needed(RESULTS, section.rows)
    table = table_of_rows(rows, facts, title=section.headline, notes=_notes(section))
    return replace(table, rows=_marked(table.rows, rows, facts), details=_details(section))


def variants(section: Section) -> Table:
    """The same of variants and controls, and what their checks found."""
    rows = section.other_rows
    found = [f"{row.title}: {row.verdict}." for row in rows if row.verdict and not row.is_clear]
    return table_of_rows(rows, _needed(RESULTS, section.rows), title="Variants and controls", notes=found)


def _needed(facts: Sequence[Fact], rows: Sequence[ComparisonRow]) -> list[Fact]:
    """Without those columns in which nothing stands in any row; `_details` say why there is no certificate."""
    empty = [fact for fact in (CERTIFIED, TIMES, VERDICT) if all(fact.cell(row).text == NOTHING for row in rows)]
    return [fact for fact in facts if fact not in empty]


def _notes(section: Section) -> list[str | None]:
    if section.battery is None:
        return [section.caption]
    told = f"{section.points}, attack battery {section.battery}. {section.brackets}"
    return [f"n = {told} Robust accuracy is {UPPER_BOUND}.", busy_note(section), machines_note(section)]


def _details(section: Section) -> tuple[str, ...]:
    """How the numbers were made, and why some are missing."""
    remarks = [f"{row.title}: {row.remark}" for row in section.rows if row.remark and row.robust is not None]
    proved = [f"Certificates of {row.title}: {row.certified_by}." for row in section.rows if row.certified_by]
    attacks = [section.caption] if section.battery is not None else []
    found = [*attacks, SECONDS_NOTE, busy_details(section), *remarks, *_without_certificate(section), *proved]
    return tuple(filter(None, found))


def _without_certificate(section: Section) -> list[str]:
    """Each reason once."""
    reasons: dict[str, list[str]] = {}
    for row in section.rows:
        if row.certified is None and row.certified_reason:
            reasons.setdefault(row.certified_reason, []).append(row.title)
    return [f"No certificate for {'; '.join(titles)}: {reason}" for reason, titles in reasons.items()]


def _marked(
    lines: Sequence[tuple[Entry, ...]], rows: Sequence[ComparisonRow], facts: Sequence[Fact]
) -> tuple[tuple[Entry, ...], ...]:
    """The best value of each column stands out, framework by framework."""
    marked: list[tuple[Entry, ...]] = []
    for _, group in groupby(zip(lines, rows, strict=True), key=lambda pair: pair[1].framework):
        pairs = list(group)
        best = [_best(fact, [row for _, row in pairs]) for fact in facts]
        for line, row in pairs:
            whole = len(line) == len(facts)
            cells = zip(line, facts, best, strict=True) if whole else ()
            strong = [replace(cell, strong=cell.strong or _is_worth(fact, row, worth)) for cell, fact, worth in cells]
            marked.append(tuple(strong) if whole else line)
    return tuple(marked)


def _best(fact: Fact, rows: Sequence[ComparisonRow]) -> float | None:
    """None where there is nothing to choose from, or seconds that may not be compared."""
    if fact.worth is None:
        return None
    if fact is not SECONDS:  # means over other seeds are of other trainings
        seeds = max(len(row.tests) for row in rows)
        rows = [row for row in rows if len(row.tests) == seeds]
    worths = {worth: row for row in rows if (worth := fact.worth(row)) is not None}
    compared = fact is not SECONDS or all(row.times(other) for row in worths.values() for other in worths.values())
    return max(worths) if compared and worths and len(rows) > 1 else None


def _is_worth(fact: Fact, row: ComparisonRow, worth: float | None) -> bool:
    return worth is not None and fact.worth is not None and fact.worth(row) == worth


def verdicts(section: Section) -> Table:
    """What the sanity checks say of each network, where they were run, and what to do about each symptom."""
    rows = [row for row in section.main_rows if row.verdict]
    advice: dict[str, dict[str, None]] = {}
    for row in rows:
        for check in alarms_of(row.checks):
            advice.setdefault(check.advice, {})[row.title] = None
    told = [f"What to do about {'; '.join(titles)}: {words}." for words, titles in advice.items()]
    return table_of_rows(rows, VERDICTS, title="Can this be believed?", notes=[CHECKS_NOTE, *told])


def curves(section: Section) -> Table:
    """Robust accuracy at every radius of the security curve."""
    facts = [FRAMEWORK, DEFENCE, *map(_robust_at, section.curve_eps)]
    title = f"Robust accuracy (%) against eps, battery {CURVE_BATTERY}"
    return table_of_rows([row for row in section.rows if row.curve], facts, title=title)


def _robust_at(eps: float) -> Fact:
    return Fact(f"{eps:g}", lambda row: estimate_cell(row.at(eps)))


def trainings(section: Section) -> Table:
    """What each network was told that is not usual, and what its training took."""
    rows = [row for row in section.rows if row.training is not None]
    return table_of_rows(rows, TRAININGS, title="How each network was trained", notes=[PASSES_NOTE])


def print_table(records: Iterable[AnyRecord], stream: TextIO) -> None:
    """Print every comparison for a terminal: what it says in words, its tables, then what the checks found."""
    found = sections(records)
    for title, section in zip(headlines(found), found, strict=True):
        print_on(stream, Table((), (), title, tuple(summary(section))))
        print_on(stream, replace(results(section), title=""))
        if section.other_rows:
            print_on(stream, variants(section))
        for row in section.main_rows:
            if row.verdict and not row.is_clear:
                print(f"{row.title}: {row.verdict}", file=stream)
