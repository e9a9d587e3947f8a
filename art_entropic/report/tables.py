"""Tables on a terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TextIO

from art_entropic.records import AnyRecord
from art_entropic.report.sections import SECONDS_NOTE, ComparisonRow, busy_note, duration, sections
from art_entropic.report.sentences import summary


def markdown_cell(text: object) -> str:
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


def _table_cells(row: ComparisonRow) -> tuple[str, ...]:
    if row.diverged:
        return (row.defence_title, row.framework_title, "diverged", "-", "-", "-", "-")
    return (
        row.defence_title,
        row.framework_title,
        *("-" if estimate is None else str(estimate) for estimate in (row.clean, row.robust, row.certified)),
        "-" if row.seconds is None else duration(row.seconds),
        "-" if row.ratio is None else f"{row.ratio:.2f}",
    )
