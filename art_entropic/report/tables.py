"""The tables of a section. Every writer shows the same ones; their columns are declared once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TextIO

from art_entropic.evaluation.result import CURVE_BATTERY
from art_entropic.records import AnyRecord
from art_entropic.report.sections import (
    ComparisonRow,
    Estimate,
    Section,
    busy_note,
    crowded_note,
    duration,
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
    """A column whose cells each follow from one row of a section."""

    heading: str
    cell: Callable[[ComparisonRow], Entry]
    number: bool = True


def estimate_cell(estimate: Estimate | None) -> Entry:
    if estimate is None:
        return Entry(NOTHING)
    return Entry(percent(estimate.value), f"[{percent(estimate.low)}, {percent(estimate.high)}]")


def seconds_cell(row: ComparisonRow) -> Entry:
    return _text(None if row.seconds is None else duration(row.seconds))


def _text(value: object) -> Entry:
    return Entry(NOTHING if value is None else str(value))


FRAMEWORK = Fact("framework", lambda row: Entry(row.framework_title), number=False)
DEFENCE = Fact("defence", lambda row: Entry(row.defence_title, colour=row.css_colour, strong=row.ours), number=False)
ROBUST = Fact("robust %", lambda row: estimate_cell(row.robust))
SHARES = (
    Fact("clean %", lambda row: estimate_cell(row.clean)),
    ROBUST,
    Fact("certified %", lambda row: estimate_cell(row.certified)),
)
RESULTS = (
    FRAMEWORK,
    DEFENCE,
    *SHARES,
    Fact("training seconds", seconds_cell),
    Fact("x natural", lambda row: _text(None if row.ratio is None else f"{row.ratio:.2f}")),
)
VERDICTS = (FRAMEWORK, DEFENCE, Fact("verdict", lambda row: _text(row.verdict), number=False))
TRAININGS = (
    FRAMEWORK,
    DEFENCE,
    Fact("epochs", lambda row: _text(row.training and row.training.nb_epochs)),
    Fact("batch", lambda row: _text(row.training and row.training.batch_size)),
    Fact("training points", lambda row: _text(row.training and row.training.n_train)),
    Fact("passes", lambda row: _text(row.passes)),
    Fact("settings", lambda row: _text(row.settings or None), number=False),
)


def table_of_rows(
    rows: Iterable[ComparisonRow], facts: Sequence[Fact], *, title: str = "", notes: Iterable[str | None] = ()
) -> Table:
    """One line a row. Where robust accuracies stand, a row that has none says why in place of its numbers."""
    words = tuple(fact for fact in facts if not fact.number)
    lines = []
    for row in rows:
        if row.robust is None and ROBUST in facts:
            lines.append((*(fact.cell(row) for fact in words), _text(row.remark)))
        else:
            lines.append(tuple(fact.cell(row) for fact in facts))
    return Table(tuple(Column(fact.heading, fact.number) for fact in facts), tuple(lines), title, tuple(filter(None, notes)))


def results(section: Section) -> Table:
    """Accuracies and costs of every row, and all that a reader has to know before comparing them."""
    return table_of_rows(
        section.rows,
        RESULTS,
        title=", ".join([section.title, section.radius, *([f"battery {section.battery}"] if section.battery else [])]),
        notes=[
            f"{section.caption} {SECONDS_NOTE}",
            busy_note(section),
            crowded_note(section),
            machines_note(section),
            *(f"{row.title}: {row.remark}" for row in section.rows if row.remark and row.robust is not None),
            *(
                f"No certificate for {row.title}: {row.certified_reason}"
                for row in section.rows
                if row.certified is None and row.certified_reason
            ),
            *(f"Certificates of {row.title}: {row.certified_by}." for row in section.rows if row.certified_by),
        ],
    )


def verdicts(section: Section) -> Table:
    """What the sanity checks say of each network, where they were run, and what to do about each symptom."""
    rows = [row for row in section.rows if row.verdict]
    symptoms = [
        f"{row.title}: not so: {check.title} ({check.value:.3g}, more than {check.threshold:.3g}; n = {check.n}): "
        f"{check.meaning}. What to do: {check.advice}."
        for row in rows
        for check in row.checks
        if check.status in ("flag", "fail")
    ]
    return table_of_rows(rows, VERDICTS, title="Can this be believed?", notes=[CHECKS_NOTE, *symptoms])


def curves(section: Section) -> Table:
    """Robust accuracy at every radius of the security curve."""
    facts = [FRAMEWORK, DEFENCE, *map(_robust_at, section.curve_eps)]
    title = f"Robust accuracy (%) against eps, battery {CURVE_BATTERY}"
    return table_of_rows([row for row in section.rows if row.curve], facts, title=title)


def _robust_at(eps: float) -> Fact:
    return Fact(f"{eps:g}", lambda row: estimate_cell(row.at(eps)))


def trainings(section: Section) -> Table:
    """What each network was told, and what its training took."""
    rows = [row for row in section.rows if row.training is not None]
    return table_of_rows(rows, TRAININGS, title="How each network was trained", notes=[PASSES_NOTE])


def print_table(records: Iterable[AnyRecord], stream: TextIO) -> None:
    """Print every comparison for a terminal: its table, then what it says in words, and what the checks say of it."""
    for section in sections(records):
        print_on(stream, results(section))
        for sentence in summary(section):
            print(sentence, file=stream)
        for row in section.rows:
            if row.verdict:
                print(f"{row.title}: {row.verdict}", file=stream)
