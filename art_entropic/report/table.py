"""One table as data, and its writers: terminal and Markdown here, HTML in templates/table.html.j2."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TextIO

NOTHING = "-"  # stands where there is no number
UNBROKEN = 10_000  # characters of a line, more than any table has


@dataclass(frozen=True)
class Entry:
    """One text, as its reader sees it: every writer does its own escaping.

    Attributes:
        text: what the cell says.
        detail: what belongs to it but matters less, such as an interval.
        colour: in CSS, of a key before the text; empty for none. HTML alone draws it.
        strong: whether it stands out.
        mark: a sign before the text. In HTML it stands for the text where there is little room.
    """

    text: str
    detail: str = ""
    colour: str = ""
    strong: bool = False
    mark: str = ""

    def __str__(self) -> str:
        return " ".join(filter(None, (self.mark, self.text, self.detail)))


@dataclass(frozen=True)
class Column:
    """What stands above the cells of a column; numbers stand to the right."""

    heading: str
    number: bool = True


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
        columns: from left to right.
        rows: the cells of each row. In a row that is shorter than `columns`, the last cell takes the rest of the line: it says
            why there are no numbers.
        title: without a level, which the page knows.
        notes: what a reader has to know of the numbers, one paragraph each.
        details: what else there is to know. HTML folds them away, a terminal leaves them out.
    """

    columns: tuple[Column, ...]
    rows: tuple[tuple[Entry, ...], ...]
    title: str = ""
    notes: tuple[str, ...] = ()
    details: tuple[str, ...] = ()


def table_of(
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    words: Collection[str] = (),
    title: str = "",
    notes: Iterable[str] = (),
) -> Table:
    """A table of plain texts.

    Args:
        headings: one a column.
        rows: texts of each row.
        words: headings of the columns that hold words, beside the first, which always does. All others hold numbers.
        title: of the table.
        notes: below the table.
    """
    columns = tuple(Column(heading, number=place > 0 and heading not in words) for place, heading in enumerate(headings))
    return Table(columns, tuple(tuple(map(Entry, row)) for row in rows), title, tuple(notes))


def grouped(table: Table) -> list[tuple[str, Table]]:
    """The table in parts, one for each run of equal texts in its first column, without that column."""
    return [
        (text, replace(table, columns=table.columns[1:], rows=tuple(row[1:] for row in rows)))
        for text, rows in groupby(table.rows, key=lambda row: row[0].text)
    ]


def markdown(table: Table) -> str:
    """The table and its notes; the title belongs to the page, which knows the level of a heading."""
    lines = [
        [_markdown_cell(column.heading) for column in table.columns],
        ["---:" if column.number else "---" for column in table.columns],
        *([*map(_markdown_entry, row), *[""] * (len(table.columns) - len(row))] for row in table.rows),
    ]
    grid = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n\n".join([grid, *map(markdown_text, (*table.notes, *table.details))])


def _markdown_entry(entry: Entry) -> str:
    text, detail = _markdown_cell(entry.text), _markdown_cell(entry.detail)
    return " ".join(filter(None, (entry.mark, f"**{text}**" if entry.strong else text, detail)))


def _markdown_cell(text: str) -> str:
    return markdown_text(text).replace("|", "\\|")


def markdown_text(text: str) -> str:
    """Text as text in Markdown, which hands HTML on as it is, and makes links and pictures of brackets."""
    return text.replace("<", "&lt;").replace("](", "]\\(").replace("]:", "]\\:").replace("\n", " ")


def print_on(stream: TextIO, table: Table) -> None:
    """Write a table for a terminal: title, numbers, then the rows that have none, then notes; without details.

    In a file no line is broken.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table as Grid
    from rich.text import Text

    width = None if stream.isatty() else UNBROKEN
    console = Console(file=stream, width=width, highlight=False, emoji=False, markup=False)
    grid = Grid(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in table.columns:
        grid.add_column(column.heading, justify="right" if column.number else "left", overflow="fold")
    whole = [row for row in table.rows if len(row) == len(table.columns)]
    for row in whole:
        grid.add_row(*(Text(str(cell), style="bold" if cell.strong else "") for cell in row))
    if table.title:
        console.print(table.title, style="bold", soft_wrap=True)
    if whole:
        console.print(grid)
    for row in table.rows:
        if len(row) < len(table.columns):
            console.print(f"{', '.join(map(str, row[:-1]))}: {row[-1]}", soft_wrap=True)
    for note in table.notes:
        console.print(note, soft_wrap=True)
