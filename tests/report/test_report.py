"""The report says what the records say, in Markdown, in one self-contained HTML file and on a terminal."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import re
import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from made import PROVENANCE, N, comparison, curve, evaluation, profile, training
from markupsafe import escape
from PIL import Image

from art_entropic import statistics
from art_entropic.benchmark.defences import DEFENCES
from art_entropic.evaluation.result import UPPER_BOUND
from art_entropic.extras import install_command
from art_entropic.records import (
    AnyRecord,
    AttackOutcome,
    CheckOutcome,
    ChecksRecord,
    MeasurementRecord,
    PointsRecord,
    ProfileRecord,
    append_record,
    pack,
)
from art_entropic.report.gallery import png
from art_entropic.report.page import write_report
from art_entropic.report.sections import INK, busy_note, colour, sections
from art_entropic.report.sentences import summary
from art_entropic.report.settings import unusual
from art_entropic.report.table import Column, Entry, Table, grouped, markdown, print_on, table_of
from art_entropic.report.tables import print_table, results


def written(folder: Path, records: list[AnyRecord]) -> tuple[str, str]:
    for record in records:
        append_record(folder / "records.jsonl", record)
    markdown, page = write_report(folder)
    return markdown.read_text(encoding="utf-8"), page.read_text(encoding="utf-8")


class _Page(HTMLParser):
    """Collects what a page loads and whether its elements are closed in order."""

    VOID = frozenset({"meta", "img", "br", "link", "hr", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.references: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset")]
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_self_contained_and_well_formed(tmp_path: Path) -> None:
    _, html = written(tmp_path, comparison())
    page = _Page(html)
    assert page.open == []
    assert not {"script", "link", "iframe", "object", "base"} & set(page.tags)
    assert all(reference.startswith(("data:image/png;base64,", "#")) for reference in page.references)
    assert not re.search(r"https?:|@import|@font-face|url\((?!#)", html)
    assert 'name="viewport"' in html
    assert "prefers-color-scheme: dark" in html


def test_every_image_says_what_it_shows(tmp_path: Path) -> None:
    _, html = written(tmp_path, comparison())
    page = _Page(html)
    # 6 points, clean and attacked, for each of the 3 defences of the gallery, on 2 frameworks
    assert len(page.images) == 6 * 2 * 3 * 2
    assert all(image.get("alt") for image in page.images)
    assert "test point 2, label 2, attacked: " in html
    # for each framework a curve and two readings of its layers, and the cost figure
    figures = re.findall(r'<svg role="img"[^>]*><title>(.*?)</title>', html)
    assert len(figures) == 7
    assert "80.0 % at 0.15" in figures[0]


def test_svg_identifiers_are_unique_on_the_page(tmp_path: Path) -> None:
    _, html = written(tmp_path, comparison())
    identifiers = re.findall(r'\bid="([^"]+)"', html)
    assert len(identifiers) == len(set(identifiers))
    references = set(re.findall(r'(?:href="#|url\(#)([^")]+)', html))
    assert references <= set(identifiers)


@pytest.mark.parametrize(
    ("entropic", "madry", "said"),
    [
        (0.85, 0.70, "ahead of MadryPGD by 15.0 points (85.0 and 70.0 % robust)"),
        (0.60, 0.75, "behind MadryPGD by 15.0 points (60.0 and 75.0 % robust)"),
        (0.69, 0.70, "level with MadryPGD (69.0 and 70.0 % robust)"),
    ],
)
def test_one_sentence_a_framework_tells_where_entropic_stands_and_at_what_cost(
    entropic: float, madry: float, said: str
) -> None:
    (section,) = sections(comparison(entropic, madry))
    assert summary(section) == [f"{name}: Entropic is {said}, at 0.30 of its time." for name in ("PyTorch", "TensorFlow")]


def surviving(defence: str, points: Sequence[int], seed: int = 0) -> list[AnyRecord]:
    """A training and its evaluation, which tells which of the points survived."""
    robust = np.isin(np.arange(N), points)
    known = PointsRecord(clean=pack(np.ones(N, bool)), robust=pack(robust))
    return [training(defence, seed=seed), evaluation(defence, float(robust.mean()), seed=seed, points=known)]


def test_a_tie_is_told_as_level() -> None:
    # 1 point in 100 less, where 3 points are won and 5 lost.
    (section,) = sections([*surviving("entropic", range(5, 138)), *surviving("trades", range(135))])
    assert summary(section) == ["Entropic is level with TRADES (66.5 and 67.5 % robust), at 1.00 times its time."]


def test_a_difference_on_the_same_points_counts_although_the_intervals_overlap() -> None:
    (section,) = sections([*surviving("entropic", range(147)), *surviving("madry_pgd", range(135))])
    entropic, madry_pgd = section.rows
    assert entropic.robust is not None and madry_pgd.robust is not None and entropic.robust.overlaps(madry_pgd.robust)
    assert "is ahead of MadryPGD by 6.0 points" in summary(section)[0]


def test_the_summary_is_about_entropic_the_best_rival_and_madry_pgd_alone() -> None:
    cells = [("natural", 0.1), ("entropic", 0.7), ("entropic_pure", 0.99), ("uniform_noise", 0.99), ("fbf", 0.6)]
    cells += [("trades", 0.9), ("madry_pgd", 0.5)]
    records = [record for name, robust in cells for record in (training(name), evaluation(name, robust))]
    (section,) = sections(records)
    (said,) = summary(section)
    assert "is behind TRADES by 20.0 points" in said and "and ahead of MadryPGD by 20.0 points" in said
    assert not any(name in said for name in ("pure", "noise", "FBF", "Natural"))


def test_variants_and_controls_are_folded_away(tmp_path: Path) -> None:
    names = ("natural", "uniform_noise", "entropic", "entropic_activation", "trades")
    records = [record for name in names for record in (training(name), evaluation(name, 0.5))]
    markdown, html = written(tmp_path, records)
    visible, _, folded = markdown.partition("### Variants and controls")
    folded = folded.partition("###")[0]
    for name in names:
        assert (f"| {DEFENCES[name].title} |" in folded.replace("**", "")) == (name in ("uniform_noise", "entropic_activation"))
    assert "| Uniform noise |" not in visible
    assert "<summary>Variants and controls (2)</summary>" in html
    only = [training("entropic_pure"), evaluation("entropic_pure", 0.5), training("natural"), evaluation("natural", 0.1)]
    assert "Variants and controls" not in written(tmp_path / "only", only)[0]  # of ours there is no other


def test_the_best_of_each_column_stands_out() -> None:
    (section,) = sections(comparison(0.85, 0.70))
    table = results(section)
    strong = {
        (row[1].text, column.heading)
        for row in table.rows[:3]
        for cell, column in zip(row, table.columns, strict=True)
        if cell.strong
    }
    best = {("Entropic", name) for name in ("defence", "clean %", "robust %", "certified %", "training seconds")}
    assert strong == best | {(name, "clean %") for name in ("Natural", "MadryPGD (ART)")}


TITLE = "Chance finds nothing that gradients miss"  # as older verdicts have it, where newer ones say what was seen
SEEN = "suspicious: 2.0 % of 200 points fall to random noise and not to PGD"


def verdict(defence: str, words: str, status: Any, framework: str = "pytorch") -> ChecksRecord:
    check = CheckOutcome(
        check="random", title=TITLE, status=status, value=0.02, threshold=0.01, n=200,
        meaning="share of <points>", advice="do not trust the gradients",
    )  # fmt: skip
    return ChecksRecord(
        key=f"c-{defence}", evaluation_key=f"e-{framework}-{defence}-0", problem="digits", framework=framework, defence=defence,
        seed=0, eps=0.15, verdict=words, checks=[check], seconds=1.0, provenance=PROVENANCE,
    )  # fmt: skip


def test_verdicts_stand_beside_their_networks_with_what_was_seen_and_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clear = "no symptom found (1 check passed, 12 skipped)"
    records = [
        *comparison(),
        verdict("madry_pgd", "no symptom found in 1 of 13 checks", "pass"),
        verdict("entropic", f"suspicious: not so: {TITLE}", "flag"),
    ]
    markdown, html = written(tmp_path, records)
    for text in (markdown, html):
        assert "Can this be believed?" in text and clear in text and SEEN in text and "not so" not in text
        assert text.count("What to do about Entropic, PyTorch: do not trust the gradients.") == 1
    assert "| PyTorch | **Entropic** | ! suspicious |" in markdown and "| PyTorch | MadryPGD (ART) | ✓ no symptom |" in markdown
    assert 'aria-hidden="true">!</span> <span class="said">suspicious</span>' in html  # a screen reader gets the word
    (section,) = sections(records)
    found = {(row.framework, row.defence): row.verdict for row in section.rows}
    assert found["pytorch", "entropic"] == SEEN and found["tensorflow", "entropic"] is None
    assert summary(section)[0].endswith(" Its checks found symptoms, see its verdict.")
    print_table(records, sys.stdout)
    printed = capsys.readouterr().out
    assert f"Entropic, PyTorch: {SEEN}" in printed and clear not in printed
    without, _ = written(tmp_path / "without", comparison())
    assert "Can this be believed?" not in without


def test_information_stands_layer_by_layer(tmp_path: Path) -> None:
    earlier = profile("pytorch", key="before", rows=[], n=7)
    other = profile("pytorch", key="elsewhere", eps=0.3, n=8)
    fresh = profile("pytorch", key="fresh", first_example=100, n=9)
    markdown, html = written(tmp_path, [earlier, *comparison(), other, fresh])
    said = "read as a Gaussian of the same covariance: Natural 4, MadryPGD (ART) 2, Entropic 1."
    for text in (markdown, html):
        assert text.count(said) == 2 and "n = 50" in text
        # Overtaken, of another comparison, of other points.
        assert not any(f"n = {n};" in text or f"n = {n}." in text for n in (7, 8, 9))
    assert "| logits | 2 | 1 | 0.5 | 2 | 1 | 0.5 |" in markdown
    assert "a &lt;note&gt;" in html
    drawn = [title for title in re.findall(r'<svg role="img"[^>]*><title>(.*?)</title>', html) if "nats per unit" in title]
    assert len(drawn) == 4 and all("Entropic 0.5 in input, 0.5 in logits" in title for title in drawn)
    without, _ = written(tmp_path / "without", [record for record in comparison() if not isinstance(record, ProfileRecord)])
    assert "Where the information goes" not in without


def test_layers_of_older_profiles_get_the_names_of_their_network(tmp_path: Path) -> None:
    old = profile("pytorch", network="small")
    names = ("input", "0", "2", "5", "7")
    rows = [
        msgspec.structs.replace(old.rows[0], layer=layer, position=place, depth=place / 4, model=model, measure=measure)
        for place, layer in enumerate(names)
        for model in ("natural", "entropic")
        for measure in ("interval", "rivals")
    ]
    records = [
        record
        for name in ("natural", "entropic")
        for record in (training(name, network="small"), evaluation(name, 0.5, network="small"))
    ]
    markdown, html = written(tmp_path, [*records, msgspec.structs.replace(old, rows=rows)])
    table = markdown.partition("### Where the information goes")[2]
    assert [line.split(" | ")[0] for line in table.splitlines() if line.startswith("| ")][2:7] == [
        "| input", "| conv1", "| conv2", "| dense 64", "| logits",
    ]  # fmt: skip
    assert ">dense 64</text>" in html


def test_a_retraining_that_gains_nothing_is_told() -> None:
    (section,) = sections(comparison(entropic=0.08))
    assert all("and level with Natural (8.0 and 10.0 % robust)" in said for said in summary(section))
    (section,) = sections(comparison())
    assert all("Natural" not in said for said in summary(section))


def test_seconds_of_a_busy_machine_are_called_unsure(tmp_path: Path) -> None:
    quiet, loud = {"other_load": 0.05}, {"other_load": 0.2}
    records: list[AnyRecord] = []
    for defence, robust, settings in (("entropic", 0.8, quiet), ("madry_pgd", 0.7, loud)):
        records += [training(defence, settings=settings), evaluation(defence, robust)]
    (section,) = sections(records)
    assert "at about 1.00 times its time" in summary(section)[0]
    for text in written(tmp_path, records):
        assert "1 training shared the machine with other programs: its seconds are unsure." in text
        assert f"10 to 25 % of the machine during the training of {DEFENCES['madry_pgd'].title} on PyTorch." in text
    (section,) = sections(comparison())
    assert busy_note(section) is None


@pytest.mark.parametrize("crowded", ["natural", "entropic", "madry_pgd"])
def test_seconds_are_not_compared_where_others_used_a_quarter_of_the_machine(crowded: str) -> None:
    records: list[AnyRecord] = []
    for defence, robust in (("natural", 0.1), ("entropic", 0.7), ("madry_pgd", 0.7)):
        settings = {"other_load": 0.26 if defence == crowded else 0.25}
        records += [training(defence, settings=settings), evaluation(defence, robust)]
    (section,) = sections(records)
    ratios = {row.defence for row in section.rows if row.ratio is not None}
    assert ratios == (set() if crowded == "natural" else {"natural", "entropic", "madry_pgd"} - {crowded})
    said = summary(section)[0]
    assert ("its time" in said) == (crowded == "natural")
    notes = results(section).notes
    assert any("1 training ran on a busy machine: its seconds are not compared." in note for note in notes)


@pytest.mark.parametrize(
    "change", [{"processor": "another"}, {"platform": "Linux-another"}, {"cores": 64}, {"device": "cuda:0 (another)"}]
)
def test_seconds_of_two_machines_are_not_compared(change: dict[str, Any]) -> None:
    elsewhere = msgspec.structs.replace(PROVENANCE, **change)
    records: list[AnyRecord] = []
    for defence, robust, source in (("natural", 0.1, elsewhere), ("entropic", 0.7, elsewhere), ("madry_pgd", 0.6, PROVENANCE)):
        records += [training(defence, provenance=source, seconds=20.0), evaluation(defence, robust)]
    records += [training("fbf", seconds=1.0), evaluation("fbf", 0.7)]
    (section,) = sections(records)
    natural, entropic, madry_pgd, fbf = section.rows
    assert (natural.ratio, entropic.ratio, madry_pgd.ratio, fbf.ratio) == (1.0, 1.0, None, None)
    assert (entropic.times(natural), entropic.times(madry_pgd), madry_pgd.times(fbf)) == (1.0, None, 20.0)
    said = summary(section)[0]
    assert "its time" not in said
    assert "Seconds are not compared where networks trained on different machines." in results(section).notes
    (alone,) = sections(comparison())
    assert not any("different machines" in note for note in results(alone).notes)


def test_table_shows_numbers_intervals_and_ratio(tmp_path: Path) -> None:
    markdown, html = written(tmp_path, comparison())
    row = next(line for line in markdown.splitlines() if line.startswith("| PyTorch | **Entropic** |"))
    assert row.endswith("| **95.0** [90.0, 100.0] | **80.0** [75.0, 85.0] | **60.0** [55.0, 65.0] | **12.0** | 2.40 |")
    assert f"n = {N} test points, seed 0" in markdown
    assert UPPER_BOUND in markdown
    assert "80.0<small>[75.0, 85.0]</small>" in html
    assert UPPER_BOUND in html


def test_unavailable_and_diverged_defences_keep_their_row(tmp_path: Path) -> None:
    records = [*comparison(), training("fbf", status="diverged", reason="training diverged in epoch 1 <step> 3")]
    markdown, html = written(tmp_path, records)
    assert "ART 1.20.1 has no TRADES for TensorFlow" in markdown
    assert "ART 1.20.1 has no TRADES for TensorFlow" in html
    assert "training diverged in epoch 1 &lt;step&gt; 3" in html
    assert "<step>" not in html


def test_notes_failures_and_provenance_are_told(tmp_path: Path) -> None:
    broken = AttackOutcome(attack="square", attacked=10, broken=0, seconds=0.1, error="it crashed")
    records = [*comparison(), evaluation("entropic", 0.80, attacks=[broken])]
    for text in written(tmp_path, records):
        assert "takes no validation data" in text
        assert "it crashed" in text
        assert "art-entropic benchmark --problem digits" in text
        assert "ab" * 32 in text
        assert "torch 2.13.0" in text
        assert "2 cores" in text


def test_seeds_are_pooled_as_mean_and_spread() -> None:
    records: list[AnyRecord] = []
    for seed, robust in enumerate((0.70, 0.80, 0.75)):
        records += [training("natural", seed=seed, seconds=4.0), evaluation("natural", 0.1, seed=seed)]
        records += [training("entropic", seed=seed, seconds=8.0 + seed), evaluation("entropic", robust, seed=seed)]
    (section,) = sections(records)
    row = next(row for row in section.rows if row.defence == "entropic")
    assert row.robust is not None
    np.testing.assert_allclose([row.robust.value, row.robust.low, row.robust.high], [0.75, 0.70, 0.80])
    assert row.robust.n_seeds == 3
    assert row.seconds is not None and row.ratio is not None
    np.testing.assert_allclose([row.seconds, row.ratio], [9.0, 2.25])
    assert "Mean over 3 seeds; brackets: lowest and highest seed." in section.caption


def test_a_row_says_which_of_its_seeds_are_missing() -> None:
    records: list[AnyRecord] = [
        training("entropic", seed=0), evaluation("entropic", 0.8, seed=0),
        training("entropic", seed=1, status="diverged", reason="NaN"),
        training("entropic", seed=2),
    ]  # fmt: skip
    (section,) = sections(records)
    told = "numbers of seed 0 alone; its brackets are a Wilson 95 % interval"
    assert section.rows[0].remark == f"NaN (1 of 3 seeds); trained, not attacked yet (1 of 3 seeds); {told}"


def attacked(defence: str, robust: int, seed: int = 0, **changes: Any) -> list[AnyRecord]:
    """A training and an evaluation that tells which of 1,000 points survived: the first so many."""
    survived = np.arange(1000) < robust
    points = PointsRecord(clean=pack(np.ones(1000, bool)), robust=pack(survived))
    share = statistics.accuracy(survived)
    facts = {"clean": statistics.accuracy(1000, 1000), "robust": share, "points": points, **changes}
    return [training(defence, seed=seed), msgspec.structs.replace(evaluation(defence, 0.5, seed=seed), **facts)]


def test_rows_of_other_seeds_are_compared_over_those_that_both_have() -> None:
    ours = [record for seed, robust in enumerate((700, 790, 800)) for record in attacked("entropic", robust, seed)]
    records = [*ours, *attacked("madry_pgd", 840, seed=2), *attacked("fbf", 850, seed=1)]
    (section,) = sections(records)
    told = [
        "FBF by 6.0 points (79.0 and 85.0 % robust over seed 1",
        "MadryPGD by 4.0 points (80.0 and 84.0 % robust over seed 2",
    ]
    (sentence,) = summary(section)
    fbf, madry = (f"behind {words}, which both have), at 1.00 times its time" for words in told)
    assert sentence == f"Entropic is {fbf}, and {madry}."
    robust = [column.heading for column in results(section).columns].index("robust %")
    assert not any(row[robust].strong for row in results(section).rows), "their means are over other seeds"
    assert "numbers of seed 1 alone" in (next(row for row in section.rows if row.defence == "fbf").remark or "")


def test_rows_without_a_seed_in_common_are_not_compared() -> None:
    (section,) = sections([*attacked("entropic", 700, seed=0), *attacked("madry_pgd", 840, seed=1)])
    assert summary(section) == ["Entropic is not compared with MadryPGD, with which it has no seed in common."]


def test_a_seed_that_proved_nothing_counts_in_the_mean_of_certificates() -> None:
    records: list[AnyRecord] = []
    for seed, proved in enumerate((0, 0, 30)):
        trained, tested = attacked("madry_pgd", 800, seed)
        points = msgspec.structs.replace(tested.points, certified=pack(np.arange(1000) < proved))
        share = statistics.accuracy(proved, 1000) if proved else None
        records += [trained, msgspec.structs.replace(tested, points=points, certified=share)]
    (row,) = sections(records)[0].rows
    assert row.certified is not None and row.certified.n_seeds == 3
    np.testing.assert_allclose([row.certified.value, row.certified.low, row.certified.high], [0.01, 0.0, 0.03])
    (row,) = sections(records[:4])[0].rows
    assert row.certified is None, "as for one seed"


def test_attacks_that_never_ran_are_named_as_such() -> None:
    def outcomes(*failed: str) -> list[AttackOutcome]:
        facts = {"Square": {"skipped": "it attacks images"}, "PGD": {"error": "it failed"}}
        return [
            AttackOutcome(attack=name, attacked=9, broken=1, seconds=1.0, **(facts[name] if name in failed else {}))
            for name in ("APGD", "PGD", "Square")
        ]

    records = [
        *attacked("entropic", 700, attacks=outcomes("Square")), *attacked("madry_pgd", 690, attacks=outcomes("PGD", "Square"))
    ]  # fmt: skip
    (section,) = sections(records)
    assert (
        "Attack battery standard (APGD; PGD), " in section.caption and "Not run: Square: it attacks images." in section.caption
    )


def test_points_of_other_data_are_never_paired() -> None:
    other = msgspec.structs.replace(PROVENANCE, data_sha256="cd" * 32)
    records = [*attacked("entropic", 700), *(msgspec.structs.replace(one, provenance=other) for one in attacked("fbf", 600))]
    assert [[row.defence for row in section.rows] for section in sections(records)] == [["entropic"], ["fbf"]]


def test_four_points_against_none_are_level() -> None:
    """The bootstrap alone would say ahead; the exact test has p = 0.125."""
    (section,) = sections([*attacked("entropic", 804), *attacked("madry_pgd", 800)])
    assert summary(section)[0].startswith("Entropic is level with MadryPGD (80.4 and 80.0 % robust)")


def test_what_is_shown_alike_is_marked_alike() -> None:
    records = [
        record
        for defence, shares in (("madry_pgd", (601, 607, 613)), ("trades", (613, 601, 607)), ("fbf", (600, 600, 600)))
        for seed, robust in enumerate(shares)
        for record in attacked(defence, robust, seed)
    ]
    table = results(sections(records)[0])
    robust = [column.heading for column in table.columns].index("robust %")
    assert [row[robust].strong for row in table.rows] == [True, False, True]


def test_the_latest_settings_of_a_cell_win() -> None:
    def run(name: str, robust: float, nb_epochs: int) -> list[AnyRecord]:
        trained = training("entropic", key=f"t-{name}", nb_epochs=nb_epochs)
        return [trained, evaluation("entropic", robust, key=f"e-{name}", training_key=f"t-{name}")]

    old, new = run("old", 0.2, 1), run("new", 0.8, 20)
    for records, robust, epochs in ((old + new, 0.8, 20), (new + old, 0.2, 1)):
        (section,) = sections(records)
        (row,) = section.rows
        assert row.robust is not None and row.training is not None
        np.testing.assert_allclose(row.robust.value, robust)
        assert row.training.nb_epochs == epochs


def test_radii_and_batteries_are_not_mixed() -> None:
    records = [
        training("entropic"), evaluation("entropic", 0.8),
        evaluation("entropic", 0.85, key="quick", battery="quick"),
        training("entropic", key="wide", eps=0.3), evaluation("entropic", 0.5, key="far", training_key="wide", eps=0.3),
    ]  # fmt: skip
    found = [(section.eps, section.battery) for section in sections(records)]
    assert found == [(0.15, "standard"), (0.15, "quick"), (0.3, "standard")]


def test_measured_costs_are_no_part_of_a_comparison(tmp_path: Path) -> None:
    cost = MeasurementRecord(key="m", name="step", values={"ratio": 2.5}, provenance=PROVENANCE)
    assert sections([cost, *comparison()]) == sections(comparison())
    with pytest.raises(ValueError, match="no record of a training"):
        written(tmp_path, [cost])


def test_variants_are_rows_below_their_defence_with_colours_of_their_own(tmp_path: Path) -> None:
    records = [record for record in comparison() if record.framework == "pytorch"]
    for number, name in enumerate(("zeta", "alpha")):
        key = f"variant-{number}"
        records += [
            training("entropic", key=key, variant=name, seconds=7.0, settings={"start": "natural", "measure.beta": 0.0}),
            evaluation("entropic", 0.6, key=f"e-{key}", training_key=key, variant=name, curve=curve(0.6)),
        ]
    (section,) = sections(records)
    titles = [row.defence_title for row in section.rows]
    assert titles == ["Natural", "Entropic", "Entropic: zeta", "Entropic: alpha", "MadryPGD (ART)"]  # in the order of the plan
    assert len({row.colour for row in section.rows}) == 5
    assert [row.ratio for row in section.rows if row.variant] == [1.4, 1.4]
    sentences = summary(section)
    assert len(sentences) == 1 and "zeta" not in sentences[0]
    markdown, html = written(tmp_path, records)
    assert "| PyTorch | **Entropic: zeta** | 95.0 [90.0, 100.0] | 60.0 [55.0, 65.0] |" in markdown
    assert "measure.beta 0.0" in markdown and "start natural" not in markdown
    assert html.count("Entropic: alpha</li>") == 0  # not in the figures
    assert "Entropic: alpha: " not in html  # not in the gallery


def test_networks_and_numbers_of_training_points_are_not_mixed(tmp_path: Path) -> None:
    grounds = [{}, {"network": "small"}, {"network": "large"}, {"network": "large", "n_train_limit": 500}]
    records: list[AnyRecord] = []
    for number, ground in enumerate(grounds):
        records.append(training("natural", key=f"t{number}", **ground))
        records.append(evaluation("natural", 0.1, key=f"e{number}", training_key=f"t{number}", **ground))
    records.append(training("fbf", key="t", status="diverged", reason="NaN", network="large"))
    found = sections(records)
    digits = "Digits (scikit-learn, 8x8)"
    assert [section.title for section in found] == [
        digits, f"{digits}, network small", f"{digits}, network large",
        f"{digits}, network large, first 500 training points",
    ]  # fmt: skip
    assert [len(section.rows) for section in found] == [1, 1, 2, 1]
    markdown, _ = written(tmp_path, records)
    assert markdown.startswith("# Robustness report\n")
    assert "## Digits, network large, first 500 training points: Linf, eps 0.15" in markdown


def test_the_title_of_a_plan_is_the_title_of_its_table() -> None:
    titled = {"title": "A table"}
    records = [training("natural", settings=titled, network="small"), training("entropic", settings=titled, network="small")]
    (section,) = sections(records)
    assert section.title == "A table, network small"
    assert section.rows[0].settings == "" and section.headline == "A table, network small: Linf, eps 0.15"
    (section,) = sections([*records, training("fbf", settings={"title": "Another"}, network="small")])
    assert section.title == "Digits (scikit-learn, 8x8), network small"


def test_a_title_is_text_in_both_reports(tmp_path: Path) -> None:
    title = "<script>a()</script> ![b](http://c) [d](e)\n\n# f\n[g]: h"
    settings = {"title": title}
    command = "art-entropic report 'a\n# <b>'"
    at = msgspec.structs.replace(PROVENANCE, command=command)
    markdown, html = written(tmp_path, [training("natural", settings=settings, provenance=at)])
    assert markdown.startswith("# &lt;script>a()&lt;/script> ![b]\\(http://c) [d]\\(e)  # f [g]\\: h: Linf, eps 0.15\n")
    assert "    art-entropic report 'a\n    # <b>'\n" in markdown
    assert "&lt;script&gt;a()&lt;/script&gt; ![b](http://c)" in html


def test_passes_of_a_training_are_told(tmp_path: Path) -> None:
    records = [training("natural", forward_passes=1200, backward_passes=600), training("entropic", "tensorflow")]
    for text, cell in zip(written(tmp_path, records), ("| 1200 / 600 |", ">1200 / 600</td>"), strict=True):
        assert cell in text
        assert "0 / 0" not in text


def test_records_from_before_networks_and_variants_still_read() -> None:
    whole = json.loads(msgspec.json.encode(training("natural")))
    for name in ("network", "variant", "n_train_limit", "forward_passes", "backward_passes"):
        del whole[name]
    assert msgspec.json.decode(json.dumps(whole), type=AnyRecord) == training("natural")


def test_a_diverged_row_stands_in_the_terminal_table() -> None:
    records = [*comparison(), training("fbf", status="diverged", reason="training diverged in epoch 1")]
    stream = io.StringIO()
    print_table(records, stream)
    row = next(line for line in stream.getvalue().splitlines() if DEFENCES["fbf"].title in line)
    assert "diverged" in row
    assert "training diverged in epoch 1" in stream.getvalue()


def test_an_interrupted_run_has_a_report(tmp_path: Path) -> None:
    markdown, html = written(tmp_path, [training("natural")])
    for text in (markdown, html):
        assert "trained, not attacked yet" in text
        assert "no network has been attacked yet" in text


def test_without_matplotlib_the_report_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    missing = {"matplotlib"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in missing else find(name, *rest))
    markdown, html = written(tmp_path, comparison())
    assert f"matplotlib is not installed: {install_command('plot')}" in markdown
    assert f"matplotlib is not installed: {escape(install_command('plot'))}" in html
    assert '<svg role="img"' not in html
    assert len(_Page(html).images) == 72  # the gallery needs no matplotlib


def test_a_defence_has_one_colour_and_none_shares_it() -> None:
    colours = [colour(name) for name in DEFENCES]
    assert len(set(colours)) == len(colours)
    assert colour("natural") == INK


def test_png_decodes_to_its_pixels() -> None:
    data = base64.b64decode(png([0.0, 1.0, 0.5, 0.2, 2.0, -1.0], (2, 3, 1)).partition(",")[2])
    # 0.5 * 255 = 127.5 rounds to even, out of range is cut
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), [[0, 255, 128], [51, 255, 0]])


def test_png_agrees_with_matplotlib_on_colour() -> None:
    image = pytest.importorskip("matplotlib.image")
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 3)) / 255
    data = base64.b64decode(png(pixels.ravel().tolist(), pixels.shape).partition(",")[2])
    np.testing.assert_allclose(image.imread(io.BytesIO(data), format="png"), pixels, atol=1e-6)


def test_png_refuses_other_channels() -> None:
    with pytest.raises(ValueError, match="1 or 3 channels"):
        png([0.0] * 8, (2, 2, 2))


def test_terminal_table_has_every_number_and_the_missing_rows() -> None:
    stream = io.StringIO()
    print_table(comparison(), stream)
    text = stream.getvalue()
    for wanted in ("80.0 [75.0, 85.0]", "60.0 [55.0, 65.0]", "2.40", "has no TRADES for TensorFlow", "n = 200"):
        assert wanted in text
    assert UPPER_BOUND in text


def test_folder_without_records_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path))):
        write_report(tmp_path)
    (tmp_path / "records.jsonl").touch()
    with pytest.raises(ValueError, match="no record"):
        write_report(tmp_path)


PLAIN = Table(
    columns=(Column("network", number=False), Column("robust %")),
    rows=((Entry("first", strong=True), Entry("80.0", "[75.0, 85.0]")), (Entry("a|b\nc"), Entry("-")), (Entry("why not"),)),
    title="A title",
    notes=("a <note>",),
)


def test_markdown_of_a_table_keeps_texts_as_texts() -> None:
    assert markdown(PLAIN).splitlines() == [
        "| network | robust % |",
        "| --- | ---: |",
        "| **first** | 80.0 [75.0, 85.0] |",
        "| a\\|b c | - |",
        "| why not |  |",
        "",
        "a &lt;note>",
    ]


def test_a_terminal_shows_rows_without_numbers_below_and_breaks_no_line_of_a_file() -> None:
    stream, text = io.StringIO(), "a remark " * 40
    print_on(stream, table_of(["network", "points", "remark"], [["first", "1", text]], words=["remark"], title="[red]"))
    title, headings, _, row = stream.getvalue().splitlines()
    assert title == "[red]" and headings.split() == ["network", "points", "remark"] and text in row
    short = Table((Column("network", number=False), Column("clean %"), Column("robust %")), ((Entry("fbf"), Entry("no <b>")),))
    print_on(stream := io.StringIO(), short)
    assert stream.getvalue() == "fbf: no <b>\n"


def test_parts_of_a_table_keep_every_row() -> None:
    (section,) = sections(comparison())
    whole = results(section)
    parts = grouped(whole)
    assert [name for name, _ in parts] == ["PyTorch", "TensorFlow"]
    assert [(Entry(name), *row) for name, part in parts for row in part.rows] == list(whole.rows)


def test_every_writer_shows_every_number_and_note_of_the_comparison(tmp_path: Path) -> None:
    records = comparison()
    (section,) = sections(records)
    pages = written(tmp_path, records)
    print_table(records, stream := io.StringIO())
    for row in results(section).rows:
        for cell in row:
            for text in (*pages, stream.getvalue()):
                assert cell.text in text and cell.detail in text
    for note in results(section).notes:
        assert all(note in text for text in (*pages, stream.getvalue()))
    for detail in results(section).details:
        assert all(detail in text for text in pages)


def test_settings_are_told_where_they_are_not_the_usual_ones() -> None:
    facts = {"trainer.measure": "channel", "trainer.eps": 0.15, "trainer.k": 0.5, "trainer.beta": 0.5, "trainer.ramp": 0.2}
    usual = {"data": "d", "learning_rate": 0.002, "validation_share": 0.1, "trainer.learning_rates": "[0.0020000000949949026]"}
    trained = training("entropic", settings={**usual, **facts})
    assert unusual(trained) == {"measure": "channel"}
    changed = training("entropic", settings={**usual, **facts, "trainer.beta": 0.1, "learning_rate": 0.01})
    assert unusual(changed) == {
        "measure": "channel",
        "beta": 0.1,
        "learning_rate": 0.01,
        "learning_rates": "[0.0020000000949949026]",
    }
