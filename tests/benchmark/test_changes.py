"""Two runs of one plan, cell by cell."""

import msgspec
import numpy as np
import pytest
from made import evaluation, training

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
    assert main(["compare", words[2], words[1], "--fail"]) == 1  # what is not there cannot be said to have held
    assert main(["compare", words[1], words[1], "--fail"]) == 0
    out = capsys.readouterr().out
    assert "robust accuracy fell in 1 of 2 cells" in out and "only in the old run: fbf on pytorch" in out
    assert main(["compare", str(tmp_path), words[1]]) == 2
    assert "must be folders of a benchmark or files of records" in capsys.readouterr().err


def test_a_cell_that_diverged_fails_and_says_so(tmp_path, capsys):
    (old, kept, _), _ = runs()
    gone = training("entropic", status="diverged", reason="loss = nan")
    for folder, records in (("old", [old, kept]), ("new", [gone, kept])):
        for record in records:
            append_record(tmp_path / folder / "records.jsonl", record)
    assert main(["compare", str(tmp_path / "old"), str(tmp_path / "new"), "--fail"]) == 1
    out = capsys.readouterr().out
    assert "only in the old run: entropic on pytorch, digits, Linf eps 0.15, seed 0 (diverged: loss = nan)" in out
    assert "robust accuracy fell in 0 of 1 cells" in out


def test_a_few_points_and_many_cells_are_no_fall():
    """Four points against none have p = 0.125; six have 0.03, which is nothing unusual among twenty cells."""

    def run(lost, cells=1):
        kept = np.arange(1000) < 900 - lost
        share, points = accuracy(kept), PointsRecord(clean=pack(np.ones(1000, bool)), robust=pack(kept))
        return [
            msgspec.structs.replace(evaluation("entropic", 0.5, seed=seed), clean=share, robust=share, points=points)
            for seed in range(cells)
        ]

    def verdicts(lost, cells):
        others = run(0, cells)[1:]
        return [change.verdict for change in compare_runs(run(0, cells), [*run(lost), *others]).cells]

    assert verdicts(4, 1) == ["no clear change"] and verdicts(6, 1) == ["fell"]
    assert verdicts(6, 20) == ["no clear change"] * 20 and verdicts(12, 20)[0] == "fell"


def test_runs_without_points_are_compared_by_their_intervals():
    old, new = ([msgspec.structs.replace(record, points=None) for record in records] for records in runs())
    changes = compare_runs(old, new)
    assert [(change.verdict, change.difference) for change in changes.cells] == [("fell", None), ("no clear change", None)]
    with pytest.raises(ValueError, match="`old` and `new` must have a cell in common"):
        compare_runs(old[2:], new)
