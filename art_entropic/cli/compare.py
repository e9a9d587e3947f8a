"""`art-entropic compare`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from art_entropic.report.table import print_on, table_of


def add_compare_arguments(parser: argparse.ArgumentParser) -> None:
    for name in ("old", "new"):
        parser.add_argument(name, type=Path, help=f"folder of the {name} benchmark, or a file of its records")
    parser.add_argument(
        "--fail", action="store_true", help="exit with 1 if a robust accuracy fell, or the new run lacks a cell of the old one"
    )


def compare_command(options: argparse.Namespace) -> int:
    from art_entropic.benchmark.changes import compare_runs
    from art_entropic.records import read_records
    from art_entropic.report.sections import percent

    changes = compare_runs(*(read_records(_records_file(path)) for path in (options.old, options.new)))
    rows = []
    for change in changes.cells:
        one = change.difference
        interval = "" if one is None else f" [{100 * one.low:+.1f}, {100 * one.high:+.1f}]"
        shares = (percent(share.value) for share in (change.old, change.new))
        rows.append([change.title, str(change.new.n), *shares, f"{change.points:+.1f}{interval}", change.verdict])
    headings = ["cell", "n", "old %", "new %", "points [95 % interval]", "robust accuracy"]
    print_on(sys.stdout, table_of(headings, rows, words=["robust accuracy"]))
    for name, missing in (("old", changes.only_old), ("new", changes.only_new)):
        if missing:
            print(f"only in the {name} run: {'; '.join(missing)}")
    print(f"robust accuracy fell in {len(changes.fell)} of {len(changes.cells)} cells")
    return 1 if options.fail and (changes.fell or changes.only_old) else 0


def _records_file(path: Path) -> Path:
    """The records of a folder of a benchmark, or a file of records."""
    from art_entropic.benchmark.store import RECORDS

    file = path / RECORDS if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"`old` and `new` must be folders of a benchmark or files of records, got {path}")
    return file
