"""Files of results, which hold what a plan found, and records of an earlier schema."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from world import ABLATION, SMALL, World

from art_entropic.benchmark.plan import Variant, read_plan
from art_entropic.benchmark.upgrade import main as rewrite
from art_entropic.benchmark.upgrade import upgrade
from art_entropic.records import (
    EvaluationRecord,
    TrainingRecord,
    read_records,
)


def test_results_hold_the_plan_in_its_order_without_pictures_and_weights(world: World, tmp_path: Path) -> None:
    results = tmp_path / "results" / "table.jsonl"
    world.run(tmp_path / "run", msgspec.structs.replace(SMALL, nb_epochs=9))  # another plan in the same folder
    world.n_pictures = 1
    records = world.run(tmp_path / "run", SMALL, results=results)
    published = list(read_records(results))
    assert [record.key for record in published] == [record.key for record in records]
    assert all(record.examples == [] for record in published if isinstance(record, EvaluationRecord))
    assert all(record.weights is None for record in published if isinstance(record, TrainingRecord))
    assert [file.name for file in results.parent.iterdir()] == ["table.jsonl"]


def test_results_of_something_else_are_refused_before_they_are_lost(world: World, tmp_path: Path) -> None:
    results = tmp_path / "table.jsonl"
    world.run(tmp_path / "run", SMALL, results=results)
    content, trained = results.read_bytes(), len(world.trained)
    with pytest.raises(ValueError, match=r"`results` must be new or hold records of this plan's .* would be lost"):
        world.run(tmp_path / "other", msgspec.structs.replace(SMALL, eps=0.05), results=results)
    for change, told in (({"battery": "standard"}, r"\('standard', 0\)"), ({"first_example": 3}, r"\('quick', 3\)")):
        with pytest.raises(ValueError, match=rf"this plan's battery and first_example {told}, got \('quick', 0\)"):
            world.run(tmp_path / "other", msgspec.structs.replace(SMALL, **change), results=results)
    data, world.data = world.data, dataclasses.replace(world.data, sha256="cd" * 32)
    with pytest.raises(ValueError, match="hold records of the same data, SHA-256 cdcdcdcdcdcd, got "):
        world.run(tmp_path / "other", SMALL, results=results)
    world.data = data
    with pytest.raises(ValueError, match=r"`results` must not be the run's own file"):
        world.run(tmp_path / "run", SMALL, results=tmp_path / "run" / "records.jsonl")
    assert results.read_bytes() == content and len(world.trained) == trained


def test_a_run_of_a_few_rows_keeps_the_others_of_the_file(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "table.jsonl"
    whole = world.run(tmp_path / "whole", msgspec.structs.replace(SMALL, profile=True), results=results)
    before = list(read_records(results))
    few = msgspec.structs.replace(SMALL, frameworks=("pytorch",), defences=("entropic",), n_examples=12)
    some = world.run(tmp_path / "few", few, results=results, verbose=True)
    after = list(read_records(results))
    assert [one.key for one in after[: len(some)]] == [one.key for one in some]
    replaced = {("pytorch", "natural"), ("pytorch", "entropic")}
    assert after[len(some) :] == [one for one in before if (one.framework, one.defence) not in replaced]
    kept = len({(one.framework, one.defence) for one in after[len(some) :]})
    assert f"table.jsonl keeps {kept} cells that this plan does not have" in capsys.readouterr().err
    again = world.run(tmp_path / "whole", msgspec.structs.replace(SMALL, profile=True), results=results)
    assert [one.key for one in again] == [one.key for one in whole] == [one.key for one in read_records(results)]


def test_a_variant_of_another_name_or_setting_is_replaced_in_the_results(world: World, tmp_path: Path) -> None:
    results = tmp_path / "table.jsonl"
    world.run(tmp_path / "run", ABLATION, results=results)
    renamed = Variant("beta 0", *msgspec.structs.astuple(ABLATION.variants[0])[1:])
    changed = msgspec.structs.replace(ABLATION.variants[1], nb_epochs=8)
    plan = msgspec.structs.replace(ABLATION, variants=(renamed, changed))
    records = world.run(tmp_path / "run", plan, results=results)
    assert [(one.key, one.variant) for one in read_records(results)] == [(one.key, one.variant) for one in records]


def test_what_the_results_hold_is_not_done_again_on_another_machine(world: World, tmp_path: Path) -> None:
    results = tmp_path / "table.jsonl"
    first = world.run(tmp_path / "here", SMALL, results=results)
    content = results.read_bytes()
    world.forget()
    again = world.run(tmp_path / "there", SMALL, results=results)
    assert (world.trained, world.evaluated) == ([], [])
    assert [record.key for record in again] == [record.key for record in first]
    assert results.read_bytes() == content
    assert world.run(tmp_path / "there") == again  # the folder needs the file no longer
    assert (world.trained, world.evaluated) == ([], [])


def test_a_table_goes_on_elsewhere_from_natural_weights_that_are_trained_again(world: World, tmp_path: Path) -> None:
    results = tmp_path / "table.jsonl"
    plan = msgspec.structs.replace(SMALL, seeds=(0, 1), frameworks=("pytorch",), defences=("entropic",))
    world.run(tmp_path / "here", plan, results=results)
    lines = results.read_bytes().splitlines(keepends=True)
    busy = re.sub(rb'"other_load":[^,}]*', b'"other_load":0.77', lines[4])  # which tells the repetition from the first
    results.write_bytes(b"".join([*lines[:4], busy, lines[5]]))  # all of seed 0, the natural training of seed 1
    world.forget()
    before = list(read_records(results))
    records = world.run(tmp_path / "there", plan, results=results)
    assert list(read_records(results))[:6] == before  # the natural training that was attacked, not the one that was repeated
    assert [(name, start) for name, _, start, _ in world.trained] == [
        ("natural", ["init-1"]),
        ("entropic", ["init-1", "natural"]),
    ]
    assert [weights for weights, _, _ in world.evaluated] == [["init-1", "natural", "entropic"]]
    assert [record.key for record in records] == [record.key for record in read_records(results)]
    assert len(records) == 8


def test_lost_natural_weights_are_trained_again_only_for_cells_that_start_there(world: World, tmp_path: Path) -> None:
    results = tmp_path / "table.jsonl"
    world.run(tmp_path / "here", ABLATION, results=results)
    world.trained.clear()
    scratch = Variant("again from scratch", "entropic", start="random")
    plan = msgspec.structs.replace(ABLATION, variants=(*ABLATION.variants, scratch))
    world.run(tmp_path / "there", plan, results=results)
    assert [(name, start) for name, _, start, _ in world.trained] == [("entropic", ["init-0"])]


def test_a_new_attack_of_adopted_cells_trains_them_again(world: World, tmp_path: Path) -> None:
    results = tmp_path / "table.jsonl"
    plan = msgspec.structs.replace(SMALL, frameworks=("pytorch",), defences=("entropic",))
    world.run(tmp_path / "here", plan, results=results)
    world.trained.clear()
    world.run(tmp_path / "there", msgspec.structs.replace(plan, n_examples=12), results=results)
    assert [name for name, *_ in world.trained] == ["natural", "entropic"]


def test_a_broken_file_of_results_stops_before_work_starts(world: World, tmp_path: Path) -> None:
    results = tmp_path / "table.jsonl"
    results.write_text('{"schema": 99}\n')
    with pytest.raises(ValueError, match="record of schema 99"):
        world.run(tmp_path / "run", SMALL, results=results)
    assert world.trained == [] and not (tmp_path / "run").exists()


def as_schema_1(line: bytes) -> dict[str, Any]:
    """A record with keys that nobody can make any more."""
    record: dict[str, Any] = json.loads(line)
    keys = {name: f"old-{record[name]}" for name in ("key", "training_key", "evaluation_key") if record.get(name)}
    return {**record, **keys, "schema": 1}


def test_records_of_schema_1_are_refused_with_the_command_that_rewrites_them(world: World, tmp_path: Path) -> None:
    world.run(tmp_path, msgspec.structs.replace(SMALL, checks=True, eps=8 / 255, first_example=2))
    path = tmp_path / "records.jsonl"
    now = path.read_bytes()
    old = [as_schema_1(line) for line in now.splitlines()]
    path.write_bytes(b"".join(msgspec.json.encode(record) + b"\n" for record in old))
    command = f"python -m art_entropic.benchmark.upgrade {path} rewrites it"
    with pytest.raises(ValueError, match=re.escape(f"{path}:1: record of schema 1, this version reads schema 2: {command}")):
        list(read_records(path))
    assert upgrade(path) == len(old)
    assert path.read_bytes() == now
    assert upgrade(path) == 0


def test_records_of_another_plan_than_the_one_of_that_name_now_are_not_rewritten(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = 'frameworks = ["pytorch"]\ndefences = ["natural"]\nn_examples = 10\nchecks = false\nprofile = false\n'
    Path("plan.toml").write_text(text)
    world.run(tmp_path / "out", read_plan("plan.toml"))
    path = tmp_path / "out" / "records.jsonl"
    old = b"".join(msgspec.json.encode(as_schema_1(line)) + b"\n" for line in path.read_bytes().splitlines())
    for change, message in [
        ("eps = 0.05", "eps 0.15 (plan: 0.05)"),
        ("nb_epochs_natural = 1", "nb_epochs "),
        ("n_train = 9", "n_train_"),
    ]:
        path.write_bytes(old)
        Path("plan.toml").write_text(f"{text}{change}\n")
        with pytest.raises(ValueError, match=re.escape(f"{path}:1: the record differs from the plan that")) as caught:
            upgrade(path)
        assert message in str(caught.value) and path.read_bytes() == old


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1]", "not a record: Expected `object`, got `array`"),
        ('{"schema": true, "kind": "training"}', "must be a record of schema 1 or 2, got schema True"),
        ('{"schema": 1}', "must be a record of schema 1 or 2"),
        ('{"schema": 1, "kind": "training"}', "not a record of a benchmark, KeyError: 'framework'"),
    ],
)
def test_what_is_no_record_is_one_line_and_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, message: str
) -> None:
    path = tmp_path / "some.jsonl"
    path.write_text(line + "\n")
    assert rewrite([str(path)]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"left unchanged: {path}:1: {message}") and err.count("\n") == 1
    assert path.read_text() == line + "\n"


def test_records_that_no_plan_explains_are_left_as_they_were(world: World, tmp_path: Path) -> None:
    world.run(tmp_path, ABLATION)  # whose command is a line of Python
    path = tmp_path / "records.jsonl"
    path.write_bytes(b"".join(msgspec.json.encode(as_schema_1(line)) + b"\n" for line in path.read_bytes().splitlines()))
    before = path.read_bytes()
    with pytest.raises(ValueError, match="a record must come from `art-entropic benchmark` to be rewritten, got 'python -c "):
        upgrade(path)
    assert path.read_bytes() == before


def test_checks_transfer_from_the_natural_network_though_only_its_record_came(world: World, tmp_path: Path) -> None:
    """The key of the checks names the natural training: without its weights they would be other checks under that key."""
    results = tmp_path / "natural.jsonl"
    plan = msgspec.structs.replace(SMALL, frameworks=("pytorch",), defences=("natural",), checks=True)
    world.run(tmp_path / "first", plan, results=results)
    world.forget()
    scratch = Variant("from scratch", "entropic_interval", start="random")
    world.run(tmp_path / "other", msgspec.structs.replace(plan, variants=(scratch,)), results=results)
    assert [name for name, *_ in world.trained] == ["natural", "entropic_interval"]
    (*_, sources) = world.checked[-1]
    assert sources == {"natural": ["init-0", "natural"]}
