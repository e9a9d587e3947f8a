"""Two runs of one plan, cell by cell."""

import msgspec
import numpy as np
import pytest
from made import evaluation

from art_entropic.benchmark.changes import compare_runs
from art_entropic.cli.main import main
from art_entropic.records import PointsRecord, append_record, pack
from art_entropic.statistics import accuracy


def runs():
    """Two runs of three cells on 40 points: one falls, one stays, one is missing from the other."""

    def cell(defence, right, **changes):
        points = np.arange(40) < right
        share = accuracy(points)
        record = PointsRecord(clean=pack(np.ones(40, bool)), robust=pack(points))
        facts = {"clean": share, "robust": share, "points": record, **changes}
        return msgspec.structs.replace(evaluation(defence, 0.5), **facts)

    old = [cell("entropic", 30), cell("madry_pgd", 20), cell("fbf", 7)]
    return old, [cell("entropic", 12), cell("madry_pgd", 20), cell("trades", 9)]


def test_runs_are_compared_cell_by_cell(tmp_path, capsys):
    old, new = runs()
    changes = compare_runs(old, new)
    assert [(change.verdict, round(change.points)) for change in changes.cells] == [("fell", -45), ("no clear change", 0)]
    assert changes.cells[0].difference.value == -18 / 40
    assert [name.split()[0] for name in (*changes.only_old, *changes.only_new)] == ["fbf", "trades"]
    assert compare_runs(new, old).cells[0].verdict == "rose"
    for folder, records in (("old", old), ("new", new)):
        for record in records:
            append_record(tmp_path / folder / "records.jsonl", record)
    words = ["compare", str(tmp_path / "old"), str(tmp_path / "new" / "records.jsonl")]
    assert main(words) == 0
    assert main([*words, "--fail"]) == 1
    assert main(["compare", words[2], words[1], "--fail"]) == 0
    out = capsys.readouterr().out
    assert "robust accuracy fell in 1 of 2 cells" in out and "only in the old run: fbf on pytorch" in out
    assert main(["compare", str(tmp_path), words[1]]) == 2
    assert "must be folders of a benchmark or files of records" in capsys.readouterr().err


def test_runs_without_points_are_compared_by_their_intervals():
    old, new = ([msgspec.structs.replace(record, points=None) for record in records] for records in runs())
    changes = compare_runs(old, new)
    assert [(change.verdict, change.difference) for change in changes.cells] == [("fell", None), ("no clear change", None)]
    with pytest.raises(ValueError, match="`old` and `new` must have a cell in common"):
        compare_runs(old[2:], new)
