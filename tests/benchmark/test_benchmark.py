"""The runner: what it trains from what, what it keeps, what a second start does. Networks and attacks are stand-ins."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import shlex
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from world import N_TRAIN, PICTURE, SMALL, World

from art_entropic.backends.errors import MissingFrameworkError
from art_entropic.benchmark.cells import PROFILED, hold_out, plan_jobs
from art_entropic.benchmark.plan import BenchmarkPlan, Variant, default_folder, read_plan, resolved
from art_entropic.benchmark.problems import PROBLEMS, load_data
from art_entropic.benchmark.provenance import Moment, Stopwatch
from art_entropic.benchmark.run import run_benchmark
from art_entropic.benchmark.upgrade import upgrade
from art_entropic.cli.main import main
from art_entropic.fields import field_specs
from art_entropic.files import replacing
from art_entropic.measures import MEASURES, Channel, Interval, Schedule
from art_entropic.records import (
    ChecksRecord,
    EvaluationRecord,
    ProfileRecord,
    TrainingRecord,
    pack,
    read_records,
)


def test_every_defence_starts_from_the_natural_weights_of_its_framework_and_seed(world: World, tmp_path: Path) -> None:
    world.run(tmp_path, msgspec.structs.replace(SMALL, seeds=(0, 1)))
    assert [(name, framework, start) for name, framework, start, _ in world.trained] == [
        ("natural", "pytorch", ["init-0"]),
        ("entropic", "pytorch", ["init-0", "natural"]),
        ("trades", "pytorch", ["init-0", "natural"]),
        ("natural", "pytorch", ["init-1"]),
        ("entropic", "pytorch", ["init-1", "natural"]),
        ("trades", "pytorch", ["init-1", "natural"]),
        ("natural", "tensorflow", ["init-0"]),
        ("entropic", "tensorflow", ["init-0", "natural"]),
        ("natural", "tensorflow", ["init-1"]),
        ("entropic", "tensorflow", ["init-1", "natural"]),
    ]


def test_all_defences_see_the_same_points_and_hold_out_the_same(world: World, tmp_path: Path) -> None:
    world.run(tmp_path, msgspec.structs.replace(SMALL, frameworks=("pytorch",)))
    first = world.trained[0][3]
    assert len(first["x"]) == 45
    assert len(first["validation_data"][0]) == 5
    for _, _, _, told in world.trained:
        np.testing.assert_array_equal(told["x"], first["x"])
        np.testing.assert_array_equal(told["y"], first["y"])
        np.testing.assert_array_equal(told["validation_data"][0], first["validation_data"][0])
    assert {told["x"].shape[1:] for _, _, _, told in world.trained} == {(1, 8, 8)}  # channels first
    both = np.concatenate([first["x"], first["validation_data"][0]]).reshape(N_TRAIN, -1)
    np.testing.assert_array_equal(np.unique(both, axis=0), np.unique(world.data.x_train.reshape(N_TRAIN, -1), axis=0))


def test_weights_of_another_network_are_attacked_in_that_network(world: World, tmp_path: Path) -> None:
    world.run(tmp_path, msgspec.structs.replace(SMALL, frameworks=("pytorch",), defences=("entropic", "entropic_smooth")))
    assert world.adapted == [False, False, True]


def test_a_defence_that_cannot_change_the_network_is_refused_before_any_training() -> None:
    plan = BenchmarkPlan(problem="mnist", network="small_silu", defences=("entropic_smooth",), frameworks=("pytorch",))
    wanted = "`defences`, 'entropic_smooth' on the network 'small_silu': `classifier` must have layers with ReLU"
    with pytest.raises(ValueError, match=wanted):
        resolved(plan)


def test_epochs_and_options_reach_trainers_and_attacks(world: World, tmp_path: Path) -> None:
    world.run(tmp_path, msgspec.structs.replace(SMALL, frameworks=("tensorflow",), eps=0.2, seeds=(7,)))
    assert [(name, told["nb_epochs"], told["eps"], told["seed"]) for name, _, _, told in world.trained] == [
        ("natural", 2, 0.2, 7),
        ("entropic", 3, 0.2, 7),
    ]
    for _, x, told in world.evaluated:
        np.testing.assert_array_equal(x, world.data.x_test[:10])
        assert (told["eps"], told["battery"], told["seeds"]) == (0.2, "quick", 7)


def test_points_from_the_middle_are_attacked_told_and_another_evaluation(world: World, tmp_path: Path) -> None:
    from art_entropic.report.sections import sections

    world.n_pictures = 1
    plan = msgspec.structs.replace(SMALL, frameworks=("tensorflow",), defences=("entropic",))
    world.run(tmp_path, plan)
    records = world.run(tmp_path, msgspec.structs.replace(plan, first_example=8))
    assert len(world.trained) == 2, "the networks are those that there are"
    for _, x, _ in world.evaluated[2:]:
        np.testing.assert_array_equal(x, world.data.x_test[8:18])
    evaluations = [record for record in records if isinstance(record, EvaluationRecord)]
    assert {(record.first_example, record.clean.n) for record in evaluations} == {(8, 10)}
    assert {example.index for record in evaluations for example in record.examples} == {PICTURE.index + 8}
    whole, middle = sections(read_records(tmp_path / "records.jsonl"))
    assert "n = 10 test points, seed 0" in whole.caption
    assert "n = 10 test points from number 8 on, seed 0" in middle.caption


def test_records_hold_what_was_done(world: World, tmp_path: Path) -> None:
    returned = world.run(tmp_path)
    records = list(read_records(tmp_path / "records.jsonl"))
    assert records == returned
    trainings = [record for record in records if isinstance(record, TrainingRecord)]
    evaluations = [record for record in records if isinstance(record, EvaluationRecord)]
    assert [(t.framework, t.defence, t.status) for t in trainings] == [
        ("pytorch", "natural", "done"), ("pytorch", "entropic", "done"), ("pytorch", "trades", "done"),
        ("tensorflow", "natural", "done"), ("tensorflow", "entropic", "done"), ("tensorflow", "trades", "unavailable"),
    ]  # fmt: skip
    assert trainings[-1].reason == "no trades here"
    assert [e.training_key for e in evaluations] == [t.key for t in trainings if t.status == "done"]
    assert len({record.key for record in records}) == len(records)
    assert trainings[1].notes == ("a note of entropic",)
    assert trainings[1].n_train == 45
    assert (trainings[1].forward_passes, trainings[1].backward_passes) == (20, 30)
    assert trainings[1].settings["trainer.measure"] == "chosen"
    assert {(record.network, record.variant, record.n_train_limit) for record in records} == {("small", "", None)}
    source = trainings[0].provenance
    assert source.data_sha256 == "feed"
    assert source.command.startswith("art-entropic benchmark --problem digits --network small --framework pytorch,tensorflow")
    assert str(tmp_path) not in (tmp_path / "records.jsonl").read_text()
    packages = {"art-entropic", "adversarial-robustness-toolbox", "torch", "tensorflow", "keras", "numpy"}
    assert packages <= set(source.versions)


def test_weights_are_named_after_their_cell(world: World, tmp_path: Path) -> None:
    world.run(tmp_path)
    trainings = [record for record in read_records(tmp_path / "records.jsonl") if isinstance(record, TrainingRecord)]
    files = {f"weights/{path.name}" for path in (tmp_path / "weights").iterdir()}
    assert files == {training.weights for training in trainings if training.weights}
    for training in trainings:
        if training.weights:
            expected = f"weights/{training.key[:12]}-{training.framework}-{training.defence}-seed0.fake"
            assert training.weights == expected


def test_second_start_does_nothing(world: World, tmp_path: Path) -> None:
    first = world.run(tmp_path)
    before = (tmp_path / "records.jsonl").read_bytes()
    world.forget()
    assert world.run(tmp_path) == first
    assert (world.trained, world.evaluated) == ([], [])
    assert (tmp_path / "records.jsonl").read_bytes() == before


def test_interrupted_run_goes_on_where_it_was(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world.failure["trades"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        world.run(tmp_path)
    assert len(list(read_records(tmp_path / "records.jsonl"))) == 4  # natural and entropic, trained and attacked
    assert not list((tmp_path / "weights").glob(".*"))
    world.failure.clear()
    world.trained.clear()
    world.run(tmp_path, verbose=True)
    assert world.trained[0][:3] == ("trades", "pytorch", ["init-0", "natural"])  # reloaded from the file
    assert f"resuming in {tmp_path}: 2 of 6 cells are done" in capsys.readouterr().err.replace("\n", "")


def test_interrupt_between_training_and_attack_keeps_the_training(world: World, tmp_path: Path) -> None:
    world.failure["evaluate"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        world.run(tmp_path)
    world.failure.clear()
    world.trained.clear()
    world.run(tmp_path)
    assert ("natural", "pytorch") not in [entry[:2] for entry in world.trained]


SPLIT = msgspec.structs.replace(SMALL, frameworks=("tensorflow",), defences=("entropic",), points_per_shard=4, first_example=3)


def test_shards_of_points_are_attacked_one_by_one_with_seeds_of_their_own(world: World, tmp_path: Path) -> None:
    world.n_pictures = 1
    records = world.run(tmp_path, msgspec.structs.replace(SPLIT, seeds=(7,), checks=True))
    for number, (_, x, told) in enumerate(world.evaluated):
        start = 4 * (number % 3)
        np.testing.assert_array_equal(x, world.data.x_test[3 + start : 3 + min(start + 4, 10)])
        assert (told["seeds"] == 7) == (start == 0)
    assert len({told["seeds"] for _, _, told in world.evaluated}) == 3
    evaluations = [record for record in records if isinstance(record, EvaluationRecord)]
    for record in evaluations:
        assert (record.clean.correct, record.clean.n, record.first_example, record.seconds) == (10, 10, 3, 1.5)
        assert [example.index for example in record.examples] == [3]
    assert len(world.checked) == len(evaluations) == 2  # once for each network, on all points
    assert not (tmp_path / "attacks").exists() or not list((tmp_path / "attacks").iterdir())


def test_one_shard_for_all_points_is_the_evaluation_without_shards(world: World, tmp_path: Path) -> None:
    whole = world.run(tmp_path, msgspec.structs.replace(SPLIT, points_per_shard=None))
    asked = len(world.evaluated)
    for size in (10, 11):
        assert world.run(tmp_path, msgspec.structs.replace(SPLIT, points_per_shard=size)) == whole
    assert len(world.evaluated) == asked


def test_shards_of_weights_that_were_trained_again_are_done_again(world: World, tmp_path: Path) -> None:
    world.stops_after = 4
    with pytest.raises(KeyboardInterrupt):
        world.run(tmp_path, SPLIT)
    (shard,) = (tmp_path / "attacks").glob("*/shard-*.json")
    (weights,) = (tmp_path / "weights").glob("*-entropic-*.fake")
    told = weights.read_text()
    world.stops_after, world.evaluated = None, []
    weights.write_text(told.replace("]", ', "other"]'))
    world.run(tmp_path, SPLIT)
    assert len(world.evaluated) == 3
    assert not shard.exists()


def test_interrupt_between_shards_keeps_those_that_are_finished(world: World, tmp_path: Path) -> None:
    plan = msgspec.structs.replace(SPLIT, seeds=(0, 1))
    world.stops_after = 11
    with pytest.raises(KeyboardInterrupt):
        world.run(tmp_path, plan)
    *done, last = world.status(tmp_path, plan)
    assert ([cell.state for cell in done], last.state) == (["done"] * 3, "attack")
    np.testing.assert_allclose(last.seconds or 0, 1.5 * 2 / 10)  # of 1.5 seconds for 10 points, for the last shard of 2
    world.stops_after, world.evaluated = None, []
    records = world.run(tmp_path, plan)
    assert [len(x) for _, x, _ in world.evaluated] == [2]
    assert [record.clean.n for record in records if isinstance(record, EvaluationRecord)] == [10] * 4


@pytest.mark.parametrize("size", [None, 4])
def test_many_workers_give_the_records_of_one_process_with_and_without_shards(
    world: World, tmp_path: Path, size: int | None
) -> None:
    def told(records: list[Any]) -> list[Any]:
        timeless = {"seconds": 0.0, "provenance": None}
        return [
            msgspec.structs.replace(record, **timeless, **({"settings": {}} if isinstance(record, TrainingRecord) else {}))
            for record in records
        ]

    plan = msgspec.structs.replace(
        SMALL, points_per_shard=size, seeds=(0, 1), checks=True,
        variants=(Variant("from scratch", "entropic_interval", start="random"),),
    )  # fmt: skip
    alone = world.run(tmp_path / "alone", plan)
    tally = [len(world.trained), len(world.evaluated), len(world.checked)]
    with ThreadPoolExecutor(4) as pool:
        records = world.run(tmp_path / "pool", plan, executor=pool)
        assert [len(world.trained), len(world.evaluated), len(world.checked)] == [2 * number for number in tally]
        assert world.run(tmp_path / "pool", plan, executor=pool) == records
    assert told(records) == told(alone)
    assert [len(world.trained), len(world.evaluated), len(world.checked)] == [2 * number for number in tally]
    # The checks of every network had the natural one to transfer from, that which started from random weights too.
    asked = [repr((weights, sources)) for weights, _, _, sources in world.checked]
    assert sorted(asked[: tally[2]]) == sorted(asked[tally[2] :])


def test_the_shards_of_one_network_are_attacked_at_the_same_time(
    tmp_path: Path,
) -> None:
    meeting = threading.Barrier(3, timeout=30)

    class Meeting(World):
        def evaluate(self, *given: Any, **options: Any) -> Any:
            meeting.wait()  # fails unless three of them come together
            return super().evaluate(*given, **options)

    world = Meeting()
    with ThreadPoolExecutor(3) as pool:
        world.run(tmp_path, SPLIT, executor=pool)
    assert len(world.evaluated) == 6


def test_a_damaged_shard_is_refused_by_name(world: World, tmp_path: Path) -> None:
    world.stops_after = 1
    with pytest.raises(KeyboardInterrupt):
        world.run(tmp_path, SPLIT)
    (shard,) = (tmp_path / "attacks").glob("*/shard-*.json")
    whole = shard.read_bytes()
    for damaged, wanted in (
        (whole[:-20], "not a shard of an evaluation, remove it and it is done again"),
        (whole.replace(b'"schema":2', b'"schema":7'), "shard of schema 7, this version reads schema 2"),
    ):
        shard.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"^{re.escape(str(shard))}: {wanted}"):
            world.run(tmp_path, SPLIT)


def test_torn_last_line_is_dropped_and_its_cell_done_again(world: World, tmp_path: Path) -> None:
    world.run(tmp_path)
    path = tmp_path / "records.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    world.run(tmp_path)
    assert len(list(read_records(path))) == whole.count(b"\n")


def test_lost_weights_are_trained_again(world: World, tmp_path: Path) -> None:
    records = world.run(tmp_path)
    trainings = [record for record in records if isinstance(record, TrainingRecord)]
    weights = next(str(record.weights) for record in trainings if record.defence == "entropic")
    (tmp_path / weights).unlink()
    world.trained.clear()
    world.run(tmp_path)
    assert [entry[:2] for entry in world.trained] == [("entropic", "pytorch")]
    assert (tmp_path / weights).exists()


def test_other_settings_are_other_cells(world: World, tmp_path: Path) -> None:
    world.run(tmp_path)
    world.forget()
    world.run(tmp_path, msgspec.structs.replace(SMALL, nb_epochs=4))
    assert [entry[0] for entry in world.trained] == ["entropic", "trades", "entropic"]  # natural training stays
    world.forget()
    world.run(tmp_path, msgspec.structs.replace(SMALL, nb_epochs=4, n_examples=12))
    assert world.trained == []
    assert len(world.evaluated) == 5


def test_earlier_settings_are_the_latest_again_when_asked_for_again(world: World, tmp_path: Path) -> None:
    from art_entropic.report.page import load
    from art_entropic.report.sections import sections

    for epochs in (3, 4, 3):
        world.run(tmp_path, msgspec.structs.replace(SMALL, nb_epochs=epochs))
        (section,) = sections(load(tmp_path))
        trained = {row.training.nb_epochs for row in section.rows if row.defence == "entropic" and row.training}
        assert trained == {epochs}
    assert len(world.trained) == 5 + 3


def test_diverged_training_is_a_record_and_the_others_go_on(world: World, tmp_path: Path) -> None:
    from art_entropic.trainer import TrainingDivergedError

    world.failure["entropic"] = TrainingDivergedError(2, 7, {"loss": float("nan")}, "epoch 1")
    records = world.run(tmp_path)
    diverged = [record for record in records if isinstance(record, TrainingRecord) and record.status == "diverged"]
    assert [record.framework for record in diverged] == ["pytorch", "tensorflow"]
    assert all("epoch 2, step 7" in str(record.reason) for record in diverged)
    assert not any(isinstance(record, EvaluationRecord) and record.defence == "entropic" for record in records)
    assert any(isinstance(record, EvaluationRecord) and record.defence == "trades" for record in records)


def test_nothing_starts_from_a_diverged_natural_training(world: World, tmp_path: Path) -> None:
    from art_entropic.trainer import TrainingDivergedError

    world.failure["natural"] = TrainingDivergedError(1, 1, {"loss": float("inf")}, "the start")
    records = world.run(tmp_path)
    assert world.trained == []
    statuses = [record.status for record in records if isinstance(record, TrainingRecord)]
    assert statuses == ["diverged", "unavailable", "unavailable"] * 2


def test_failed_save_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "weights.fake"
    with pytest.raises(RuntimeError), replacing(path, ".fake") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with replacing(path, ".fake") as temporary:
        assert temporary.name.endswith(".fake")
        temporary.write_text("whole")
    assert [file.name for file in tmp_path.iterdir()] == ["weights.fake"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"problem": "imagenet"}, "`problem` must be one of"),
        ({"frameworks": ("jax",)}, "`frameworks` must be one of"),
        ({"frameworks": ()}, "`frameworks` must name at least one"),
        ({"defences": ("magic",)}, "`defences` must be one of"),
        ({"battery": "tank"}, "`battery` must be one of"),
        ({"eps": 0.0}, "`eps` must be positive"),
        ({"eps": float("nan")}, "`eps` must be finite"),
        ({"eps": 8.0}, "did you mean 8/255"),
        ({"seeds": (-1,)}, "`seeds` must be whole numbers from 0"),
        ({"seeds": ()}, "`seeds` must name at least one"),
        ({"n_examples": 0}, "`n_examples` must be a whole number of at least 1, got 0"),
        ({"first_example": -1}, "`first_example` must be a whole number of at least 0, got -1"),
        ({"first_example": 20}, "`first_example` must be below the 20 test points, got 20"),
        ({"first_example": 11}, "`n_examples` must be at most the 9 test points from number 11 on, got 10"),
        ({"n_examples": 21}, "`n_examples` must be at most the 20 test points, got 21"),
        ({"points_per_shard": 0}, "`points_per_shard` must be a whole number of at least 1, got 0"),
        ({"nb_epochs": 0}, "`nb_epochs` must be a whole number of at least 1, got 0"),
        ({"network": "huge"}, "`network` must be one of 'small', got 'huge'"),
        ({"n_train": 1}, "`n_train` must be a whole number of at least 2, one point to train on and one to hold out, got 1"),
        ({"n_train": 51}, "`n_train` must be at most the 50 training points, got 51"),
        ({"variants": (Variant("a", "fbf"),)}, "`variants[0].defence` must be one of 'entropic', 'entropic_smooth'"),
        ({"variants": (Variant(" ", "entropic"),)}, "`variants[0].name` must not be empty, got ' '"),
        ({"variants": (Variant("a", "entropic"), Variant("a", "entropic"))}, "`variants[1].name` must be one that no other"),
        (
            {"variants": (Variant("a", "entropic", nb_epochs=0),)},
            "`variants[0].nb_epochs` must be a whole number of at least 1, got 0",
        ),
        ({"variants": (Variant("a", "entropic", start="warm"),)}, "`variants[0].start` must be one of 'natural', 'random'"),
        (
            {"variants": (Variant("a", "entropic", Interval(eps_factor=10.0)),)},
            "`variants[0].measure`, of 'a': `eps_factor` takes `eps` too far",
        ),
    ],
)
def test_bad_plans_are_refused_before_anything_is_written(
    world: World, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        world.run(tmp_path / "out", msgspec.structs.replace(SMALL, **changes))
    assert not (tmp_path / "out").exists()


def test_no_framework_at_all_is_one_line_with_the_command() -> None:
    class Bare(World):
        def installed_frameworks(self) -> tuple[str, ...]:
            return ()

    with pytest.raises(MissingFrameworkError, match=re.escape("pip install 'art-entropic[torch]'")) as caught:
        Bare().run("nowhere")
    assert "\n" not in str(caught.value)


def test_command_asks_for_the_same_cells(world: World, tmp_path: Path) -> None:
    world.data = dataclasses.replace(world.data, sha256=load_data("digits").sha256)
    world.run(tmp_path, msgspec.structs.replace(SMALL, seeds=(0, 3), eps=8 / 255, points_per_shard=6))
    done = (tmp_path / "records.jsonl").read_bytes()
    command = next(read_records(tmp_path / "records.jsonl")).provenance.command
    assert main([*command.split()[1:], "--out", str(tmp_path), "--quiet"]) == 0
    assert (tmp_path / "records.jsonl").read_bytes() == done


def test_information_is_read_once_from_the_first_seed(world: World, tmp_path: Path) -> None:
    plan = msgspec.structs.replace(SMALL, profile=True, seeds=(3, 4), defences=("entropic", "madry_pgd", "fbf"))
    results = tmp_path / "results.jsonl"
    records = world.run(tmp_path / "here", plan, results=results)
    expected = {name: ["init-3", "natural", *([name] if name != "natural" else [])] for name in PROFILED}
    assert world.profiled == [(expected, 10, resolved(plan, world).eps)] * 2
    profiles = [record for record in records if isinstance(record, ProfileRecord)]
    assert [(record.framework, record.seed, record.defence) for record in profiles] == [
        ("pytorch", 3, ""),
        ("tensorflow", 3, ""),
    ]
    assert world.run(tmp_path / "here", plan) == records
    # Elsewhere the records come along without their weights, and the profiles with them.
    again = world.run(tmp_path / "there", plan, results=results)
    assert [record.key for record in again] == [record.key for record in records]
    assert len(world.profiled) == 2
    without = msgspec.structs.replace(plan, profile=False)
    assert not any(isinstance(record, ProfileRecord) for record in world.run(tmp_path / "here", without))
    assert "--no-profile" in resolved(without, world).command


def test_each_network_gets_a_verdict_once(world: World, tmp_path: Path) -> None:
    plan = msgspec.structs.replace(SMALL, checks=True, frameworks=("pytorch",), defences=("entropic",))
    world.failure["check"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        world.run(tmp_path, plan)
    world.failure.clear()
    world.checked.clear()
    records = world.run(tmp_path, plan)
    assert len(world.trained) == len(world.evaluated) == 2  # the interruption cost neither training nor attack
    (natural, entropic) = world.checked
    assert natural[0] == ["init-0", "natural"] and natural[3] == {}
    assert entropic[0] == ["init-0", "natural", "entropic"] and entropic[3] == {"natural": ["init-0", "natural"]}
    np.testing.assert_array_equal(entropic[1], np.arange(10) < 5)
    verdicts = [record for record in records if isinstance(record, ChecksRecord)]
    evaluations = [record for record in records if isinstance(record, EvaluationRecord)]
    assert [record.evaluation_key for record in verdicts] == [record.key for record in evaluations]
    assert {record.verdict for record in verdicts} == {"suspicious: not so: Many steps beat one"}
    assert world.run(tmp_path, plan) == records
    assert len(world.checked) == 2
    without = world.run(tmp_path, msgspec.structs.replace(plan, checks=False))
    assert [record.key for record in without] == [record.key for record in records if not isinstance(record, ChecksRecord)]
    assert "--no-checks" in resolved(msgspec.structs.replace(plan, checks=False), world).command


def test_stopwatch_tells_others_work_from_its_own() -> None:
    moments = iter([Moment(wall=0.0, own=10.0, busy=100.0, cores=2), Moment(wall=10.0, own=19.0, busy=115.0, cores=2)])
    # 15 s of work on two cores over 10 s, 9 s of it our own: others had 6 of 20 core seconds
    np.testing.assert_allclose(Stopwatch(lambda: next(moments)).stop(), (10.0, 0.3))
    moments = iter([Moment(wall=0.0, own=10.0, busy=None, cores=2), Moment(wall=10.0, own=19.0, busy=None, cores=2)])
    assert Stopwatch(lambda: next(moments)).stop() == (10.0, None)


# ------------------------------------------------------------------------------------------------------------ variants

ABLATION = msgspec.structs.replace(
    SMALL,
    frameworks=("pytorch",),
    defences=("entropic",),
    variants=(
        Variant("no information", "entropic", Interval(beta=0.0, layers=("a", "b"), schedule=Schedule(ramp=0.2))),
        Variant("from scratch", "entropic_channel", start="random", nb_epochs=9),
    ),
)


def test_variants_are_rows_with_options_and_starts_of_their_own(world: World, tmp_path: Path) -> None:
    records = world.run(tmp_path, msgspec.structs.replace(ABLATION, seeds=(3,)))
    assert [(name, start, told["measure"], told["nb_epochs"]) for name, _, start, told in world.trained] == [
        ("natural", ["init-3"], None, 2),
        ("entropic", ["init-3", "natural"], None, 3),
        ("entropic", ["init-3", "natural"], ABLATION.variants[0].measure, 3),
        ("entropic_channel", ["init-3"], None, 9),
    ]
    trainings = [record for record in records if isinstance(record, TrainingRecord)]
    assert [(t.defence, t.variant, t.nb_epochs) for t in trainings][2:] == [
        ("entropic", "no information", 3), ("entropic_channel", "from scratch", 9),
    ]  # fmt: skip
    wanted = {"start": "natural", "measure.type": "interval", "measure.beta": 0.0, "measure.layers": '["a", "b"]'}
    wanted |= {"measure.schedule.ramp": 0.2, "trainer.measure": "chosen"}
    assert wanted.items() <= trainings[2].settings.items()
    assert trainings[3].settings["start"] == "random"
    assert [e.variant for e in records if isinstance(e, EvaluationRecord)] == ["", "", "no information", "from scratch"]
    assert len({record.key for record in records}) == 8


def test_all_that_makes_a_variant_is_part_of_its_key(world: World, tmp_path: Path) -> None:
    changes = [
        {"measure": Interval(beta=0.0)}, {"measure": Interval(beta=0.2)}, {"measure": Interval()}, {"start": "random"},
        {"defence": "entropic_channel"}, {"nb_epochs": 4}, {"measure": Interval(schedule=Schedule(ramp=0.2))},
    ]  # fmt: skip
    variants = [Variant(**{"name": "one", "defence": "entropic", **change}) for change in changes]
    plans = [msgspec.structs.replace(ABLATION, variants=(variant,)) for variant in variants]
    plans.append(msgspec.structs.replace(plans[0], n_train=40))
    plans.append(msgspec.structs.replace(plans[0], problem="mnist", network="large"))
    plans.append(msgspec.structs.replace(plans[0], problem="mnist", network="small_silu"))
    keys = [job.training_key for plan in plans for job in plan_jobs(resolved(plan, world), "feed") if job.variant]
    assert len(set(keys)) == len(plans)


def test_a_variant_that_is_renamed_finds_its_records_again(world: World, tmp_path: Path) -> None:
    world.run(tmp_path, ABLATION)
    asked = len(world.trained), len(world.evaluated)
    first, second = ABLATION.variants
    renamed = msgspec.structs.replace(ABLATION, variants=(msgspec.structs.replace(first, name="beta 0"), second))
    records = world.run(tmp_path, renamed)
    assert (len(world.trained), len(world.evaluated)) == asked
    assert {record.variant for record in records} == {"", "beta 0", "from scratch"}
    assert world.run(tmp_path, renamed) == records


@pytest.mark.parametrize(
    "twin", [Variant("the same", "entropic", nb_epochs=3), Variant("again", "entropic_channel", Channel())]
)
def test_rows_that_ask_for_the_same_training_are_refused(world: World, tmp_path: Path, twin: Variant) -> None:
    plan = msgspec.structs.replace(ABLATION, defences=("entropic", "entropic_channel"), variants=(twin,))
    with pytest.raises(ValueError, match=f"`variants` must differ from the other rows, got .*{twin.name}"):
        world.run(tmp_path / "out", plan)


def test_other_defaults_of_a_measure_are_another_training(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def keys() -> list[str]:
        return [job.training_key for job in plan_jobs(resolved(ABLATION, world), "feed")]

    before = keys()

    class Other(Interval, frozen=True, kw_only=True, tag="interval"):
        beta: float = 0.123

    monkeypatch.setitem(MEASURES, "interval", Other)
    # natural and what names its measure stay; entropic, which may choose the measure, does not
    assert [one == other for one, other in zip(before, keys(), strict=True)] == [True, False, True, True]


def test_a_plan_takes_the_network_and_the_training_points_it_names(world: World, tmp_path: Path) -> None:
    plan = msgspec.structs.replace(SMALL, problem="mnist", network="large", n_train=20, frameworks=("pytorch",))
    records = world.run(tmp_path, plan)
    assert set(map(repr, world.networks)) == {repr(PROBLEMS["mnist"].networks["large"])}
    for _, _, _, told in world.trained:
        together = np.concatenate([told["x"], told["validation_data"][0]]).reshape(20, -1)
        np.testing.assert_array_equal(np.unique(together, axis=0), np.unique(world.data.x_train[:20].reshape(20, -1), axis=0))
    assert {(record.network, record.n_train_limit) for record in records} == {("large", 20)}


def test_weights_that_are_not_finite_are_a_divergence(world: World, tmp_path: Path) -> None:
    world.breaks = {"entropic"}
    records = world.run(tmp_path, msgspec.structs.replace(SMALL, frameworks=("pytorch",)))
    (broken,) = [record for record in records if isinstance(record, TrainingRecord) and record.defence == "entropic"]
    assert (broken.status, broken.reason) == ("diverged", "weights are NaN or infinite after training")
    assert not any(isinstance(record, EvaluationRecord) and record.defence == "entropic" for record in records)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_diverged_retraining_is_a_row_with_its_reason_from_end_to_end(tmp_path: Path) -> None:
    from art_entropic.report.page import write_report
    from art_entropic.report.tables import print_table

    variant = Variant("far too much", "entropic_interval", Interval(beta=1e39, schedule=Schedule(ramp=0.0)))
    plan = BenchmarkPlan(
        frameworks=("pytorch",), defences=("natural",), variants=(variant,), battery="quick", n_examples=5, n_train=70,
        nb_epochs=1, nb_epochs_natural=1,
    )  # fmt: skip
    records = run_benchmark(plan, tmp_path, verbose=False)
    (diverged,) = [record for record in records if isinstance(record, TrainingRecord) and record.variant]
    assert diverged.status == "diverged"
    assert "training diverged in epoch 1, step 1" in str(diverged.reason)
    markdown = write_report(tmp_path)[0].read_text()
    assert "| PyTorch | Entropic, interval: far too much | training diverged in epoch 1, step 1" in markdown
    stream = io.StringIO()
    print_table(records, stream)
    assert "Entropic, interval: far too much" in stream.getvalue() and "diverged" in stream.getvalue()


# ----------------------------------------------------------------------------------------------------- files of results


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
    with pytest.raises(ValueError, match=r"`results` must be new or hold records of this plan's .* they would be lost"):
        world.run(tmp_path / "other", msgspec.structs.replace(SMALL, eps=0.05), results=results)
    with pytest.raises(ValueError, match=r"`results` must be another file than the run's own"):
        world.run(tmp_path / "run", SMALL, results=tmp_path / "run" / "records.jsonl")
    assert results.read_bytes() == content and len(world.trained) == trained


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
    results.write_bytes(b"".join(lines[:6]))  # all of seed 0, the natural training of seed 1
    world.forget()
    records = world.run(tmp_path / "there", plan, results=results)
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


# -------------------------------------------------------------------------------------------------------- files of plans

WHOLE = """checks = false
device = "cpu"
profile = false
title = "A table"
problem = "cifar10"
network = "six_dense"
frameworks = ["pytorch"]
defences = ["entropic", "fbf"]
battery = "quick"
eps = "8/255"
seeds = [0, 4]
n_examples = 7
first_example = 3
points_per_shard = 5
n_train = 100
nb_epochs = 2
nb_epochs_natural = 1

[[variants]]
name = "no information"
defence = "entropic_interval"
measure = { type = "interval", beta = 0.0, layers = "dense" }

[[variants]]
name = "from scratch"
defence = "entropic_channel"
start = "random"
nb_epochs = 5
"""


def test_a_plan_file_says_all_that_a_plan_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plans").mkdir()
    file = tmp_path / "plans" / "table one.toml"
    file.write_text(WHOLE)
    plan = read_plan(file)
    assert plan == BenchmarkPlan(
        problem="cifar10", network="six_dense", frameworks=("pytorch",), defences=("entropic", "fbf"), battery="quick",
        eps=8 / 255, seeds=(0, 4), n_examples=7, first_example=3, points_per_shard=5, n_train=100, nb_epochs=2,
        nb_epochs_natural=1, checks=False, profile=False, device="cpu",
        title="A table",
        variants=(
            Variant("no information", "entropic_interval", Interval(beta=0.0, layers="dense")),
            Variant("from scratch", "entropic_channel", start="random", nb_epochs=5),
        ),
        source="plans/table one.toml",
    )  # fmt: skip
    assert all(f"{name} = " in WHOLE for name in field_specs(BenchmarkPlan) if name not in ("source", "overrides", "variants"))
    assert resolved(plan).command == "art-entropic benchmark --plan 'plans/table one.toml'"
    assert default_folder(plan) == Path("runs/table one")
    assert default_folder(BenchmarkPlan()) == Path("runs/digits")


def test_an_empty_plan_file_is_the_default_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("all.toml").touch()
    assert read_plan("all.toml") == BenchmarkPlan(source="all.toml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("eps = ", "plan.toml: a plan must be written in TOML: "),
        ("epochs = 3", "plan.toml: `epochs` is unknown: a key must be one of title, problem, "),
        ('seeds = "0"', "plan.toml: `seeds` must be whole numbers from 0 to 2**31 - 1, such as 0,1,2, got '0'"),
        ("seeds = [0, 1.5]", "plan.toml: `seeds` must be whole numbers from 0 to 2**31 - 1, such as 0,1,2, got [0, 1.5]"),
        ("nb_epochs = true", "plan.toml: `nb_epochs` must be a whole number of at least 1, got True"),
        ('eps = "8/0"', "plan.toml: `eps` must be a number, or a fraction such as \"8/255\", got '8/0'"),
        ('eps = "much"', "plan.toml: `eps` must be a number, or a fraction such as \"8/255\", got 'much'"),
        ('problem = "imagenet"', "plan.toml: `problem` must be one of 'digits', 'mnist', 'cifar10', got 'imagenet'"),
        ('network = "huge"', "plan.toml: `network` must be one of 'small', got 'huge'"),
        ('battery = "tank"', "plan.toml: `battery` must be one of "),
        ('defences = ["magic"]', "plan.toml: `defences` must be one of "),
        ('frameworks = ["jax"]', "plan.toml: `frameworks` must be one of 'pytorch', 'tensorflow', got 'jax'"),
        ('variants = "none"', "plan.toml: `variants` must be tables [[variants]], got 'none'"),
        ('[[variants]]\nname = "a"', "plan.toml: `variants[0].defence` must be the name of one of our defences, got nothing"),
        ('[[variants]]\nbeta = 1', "plan.toml: `variants[0].beta` is unknown: a key must be one of name, defence, "),
        ('[[variants]]\nname = "a"\ndefence = "fbf"', "plan.toml: `variants[0].defence` must be one of 'entropic', "),
        ("[[variants]]\nname = 1", "plan.toml: `variants[0].name` must be a text, got 1"),
        ("[[variants]]\noptions = { beta = 0 }", "plan.toml: `variants[0].options` is no longer a key: hyperparameters belong"),
        ("[[variants]]\nmeasure = { beta = 0.0 }", "`variants[0].measure.type` must be one of 'interval', 'channel', "),
        ('[[variants]]\nmeasure = { type = "coding", k = 1 }', "`variants[0].measure.k` is unknown: a key must be one of "),
        ('[[variants]]\nmeasure = { type = "interval", k = 2 }', "`variants[0].measure.k` must be a number in [0, 1], got 2"),
    ],
)  # fmt: skip
def test_bad_plan_files_are_refused_by_file_key_wish_and_value(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "plan.toml"
    file.write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        read_plan(file)


def test_values_of_a_plan_file_are_refused_with_its_name_before_anything_is_written(world: World, tmp_path: Path) -> None:
    file = tmp_path / "plan.toml"
    for text, message in [
        ("eps = 8", "plan.toml: `eps` must not exceed the range"),
        ("n_examples = 21", "plan.toml: `n_examples` must be at most the 20 test points, got 21"),
        ("seeds = [-1]", "plan.toml: `seeds` must be whole numbers from 0"),
        (
            '[[variants]]\nname = "a"\ndefence = "entropic"\nmeasure = { type = "interval", eps_factor = 10 }',
            "plan.toml: `variants[0].measure`, of 'a': `eps_factor` takes `eps` too far",
        ),
    ]:
        file.write_text(text)
        with pytest.raises(ValueError, match=re.escape(message)):
            world.run(tmp_path / "out", read_plan(file))
    assert world.trained == [] and not (tmp_path / "out").exists()
    with pytest.raises(FileNotFoundError, match="`plan` must be a TOML file"):
        read_plan(tmp_path / "none.toml")


def test_a_new_title_reaches_the_records_without_new_work(world: World, tmp_path: Path) -> None:
    from art_entropic.report.page import load
    from art_entropic.report.sections import sections

    for title in ("First", None, "Second"):
        world.run(tmp_path, msgspec.structs.replace(SMALL, title=title))
        (section,) = sections(load(tmp_path))
        assert section.title == f"{title or 'Digits (scikit-learn, 8x8)'}, network small"
    assert len(world.trained) == 5


def test_a_plan_with_variants_but_no_file_has_a_command_too(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.run(tmp_path / "runs" / "digits", ABLATION)
    command = shlex.split(next(read_records(tmp_path / "runs" / "digits" / "records.jsonl")).provenance.command)
    assert command[:2] == ["python", "-c"]
    world.trained.clear()
    monkeypatch.chdir(tmp_path)
    imports, call = command[2].split("; ")
    names: dict[str, Any] = {}
    exec(imports, names)
    assert names["run_benchmark"] is run_benchmark
    exec(call, {**names, "run_benchmark": lambda plan: world.run(default_folder(plan), plan)})
    assert world.trained == []


PLANS = sorted((Path(__file__).parents[2] / "benchmarks" / "plans").glob("*.toml"))


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_published_plan_can_start(path: Path) -> None:
    plan = read_plan(path)
    assert plan.title
    settings = resolved(plan)
    assert len({job.training_key for job in plan_jobs(settings, "feed")}) > 1


def test_there_are_published_plans() -> None:
    assert {"ablation", "digits", "mnist-0.3"} <= {path.stem for path in PLANS}


def test_split_is_seeded_disjoint_and_complete() -> None:
    kept, held = hold_out(100, 0.1, seed=3)
    assert (len(kept), len(held)) == (90, 10)
    np.testing.assert_array_equal(np.sort(np.concatenate([kept, held])), np.arange(100))
    again = hold_out(100, 0.1, seed=3)
    np.testing.assert_array_equal(held, again[1])
    assert not np.array_equal(held, hold_out(100, 0.1, seed=4)[1])


def test_values_of_a_plan_file_can_be_set_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("plan.toml").write_text(WHOLE)
    asked = ("eps=4/255", "seeds=[7]", "variants.0.measure.beta=0.5", "variants.1.nb_epochs=9", "title=Mine", "battery = full")
    plan = read_plan("plan.toml", asked)
    assert (plan.eps, plan.seeds, plan.title, plan.battery) == (4 / 255, (7,), "Mine", "full")
    assert plan.variants[0].measure == Interval(beta=0.5, layers="dense") and plan.variants[1].nb_epochs == 9
    words = resolved(plan).command.split(" --set ")
    assert words[0] == "art-entropic benchmark --plan plan.toml" and words[3] == "variants.0.measure.beta=0.5"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("eps", "`set` must be KEY=VALUE such as beta=0.1 or schedule.ramp=0.2, got 'eps'"),
        ("epochs=3", "plan.toml: `epochs` is unknown"),
        ("variants.7.nb_epochs=3", "`set` 'variants.7.nb_epochs=3' leads nowhere: list index out of range"),
        ("variants.first.nb_epochs=3", "`set` 'variants.first.nb_epochs=3' leads nowhere"),
        ("eps.deep=3", "`set` 'eps.deep=3' leads nowhere"),
        ("nb_epochs=many", "`nb_epochs` must be a whole number of at least 1, got 'many'"),
    ],
)
def test_overrides_that_lead_nowhere_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("plan.toml").write_text(WHOLE)
    with pytest.raises(ValueError, match=re.escape(message)):
        read_plan("plan.toml", [override])


def test_a_dry_run_tells_what_is_missing_and_writes_nothing(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world.data = dataclasses.replace(world.data, sha256=load_data("digits").sha256)  # as the command line reads them
    plan = msgspec.structs.replace(SMALL, frameworks=("pytorch",), defences=("entropic", "fbf"))
    fresh = world.status(tmp_path / "new", plan)
    assert [(cell.state, cell.seconds) for cell in fresh] == [("train", None)] * 3
    assert not (tmp_path / "new").exists()
    world.failure["evaluate"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        world.run(tmp_path / "run", plan)
    world.failure.clear()
    half = world.status(tmp_path / "run", plan)
    assert [cell.state for cell in half] == ["attack", "train", "train"]
    records = world.run(tmp_path / "run", plan)
    before = (tmp_path / "run" / "records.jsonl").read_bytes()
    done = world.status(tmp_path / "run", plan)
    assert [(cell.state, cell.seconds) for cell in done] == [("done", 0.0)] * 3
    # Twice the epochs, twice the points: twice the seconds of training and of attacks.
    longer = msgspec.structs.replace(plan, nb_epochs=6, n_examples=20, seeds=(1,))
    seconds = {record.defence: record.seconds for record in records if isinstance(record, TrainingRecord)}
    cells = world.status(tmp_path / "run", longer)
    n = len(world.data.x_train)
    kept = next(record.n_train for record in records if isinstance(record, TrainingRecord))
    assert cells[1].state == "train"
    np.testing.assert_allclose(cells[1].seconds, 2 * seconds["entropic"] * n / kept + 2 * 0.5)
    assert (tmp_path / "run" / "records.jsonl").read_bytes() == before
    words = resolved(plan, world).command.split()[1:]
    assert main([*words, "--out", str(tmp_path / "run"), "--dry-run"]) == 0
    assert "0 of 3 cells to do, about 0 s" in capsys.readouterr().out


def test_a_second_run_in_the_same_folder_is_refused(world: World, tmp_path: Path) -> None:
    code = "import sys; from art_entropic.files import alone_in; from pathlib import Path\n"
    code += "with alone_in(Path(sys.argv[1])): print('mine', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "mine\n"
        with pytest.raises(ValueError, match="is in use by another run"):
            world.run(tmp_path)
        assert not (tmp_path / "records.jsonl").exists()
        other.kill()
    assert world.run(tmp_path)  # the lock dies with its process


# A run whose cells take no time, in a process of its own.
VICTIM = """
import os, sys, time
from pathlib import Path
from art_entropic.benchmark.plan import BenchmarkPlan
from art_entropic.benchmark.provenance import Spent
from art_entropic.benchmark.run import run_benchmark
from art_entropic.benchmark.runner import Runner
from art_entropic.files import replacing
from art_entropic.records import Accuracy, EvaluationRecord

def train(self, job):
    path = self.store.home / job.weights(".fake")
    path.parent.mkdir(exist_ok=True)
    with replacing(path, ".fake") as temporary:
        temporary.write_text(job.training_key)
    time.sleep(0.005)
    return self._training_record(job, "done", Spent(0.0, None), weights=job.weights(".fake"), n_train=1)

def attack(self, job):
    training = self._trained_cell(job)
    assert (self.store.home / training.weights).read_text() == job.training_key
    time.sleep(0.005)
    share = Accuracy(correct=1, n=2, low=0.1, high=0.9)
    return self._done(EvaluationRecord(key=job.evaluation_key, training_key=job.training_key, battery="quick", clean=share,
                                       robust=share, attacks=[], seconds=0.0, provenance=self.source, **self._cell(job)))

Runner._train, Runner._attack = train, attack
Runner._stamped = lambda self, framework: self.source  # without loading a framework to ask it for its device
plan = BenchmarkPlan(frameworks=("pytorch",), defences=("entropic", "fbf", "trades"), battery="quick", n_examples=10,
                     seeds=tuple(range(40)), checks=False, profile=False)
print("ready", flush=True)
records = run_benchmark(plan, sys.argv[1], verbose=False)
print(len(records), flush=True)
"""


def test_a_run_killed_at_twenty_moments_loses_the_cell_in_flight_at_most(tmp_path: Path) -> None:
    (tmp_path / "victim.py").write_text(VICTIM)
    file = tmp_path / "run" / "records.jsonl"
    rng = np.random.default_rng(0)
    done = 0
    for _ in range(20):
        with subprocess.Popen(
            [sys.executable, tmp_path / "victim.py", tmp_path / "run"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as victim:
            assert victim.stdout is not None and victim.stdout.readline() == "ready\n"
            time.sleep(rng.uniform(0.0, 0.25))
            victim.kill()
        whole = file.read_bytes().count(b"\n") if file.exists() else 0
        assert whole >= done  # nothing that was finished is lost
        done = whole
    last = subprocess.run(
        [sys.executable, tmp_path / "victim.py", tmp_path / "run"], capture_output=True, text=True, check=True
    )
    assert last.stdout.split() == ["ready", str(2 * 4 * 40)]
    records = list(read_records(file))
    assert len(records) == len({record.key for record in records}) == 2 * 4 * 40  # no cell was done twice, none is torn
    left = [path.name for path in (tmp_path / "run" / "weights").iterdir() if not path.name.startswith(".")]
    assert len(left) == 4 * 40


# A run in a process of its own, whose attacks take no time, and which dies in the attack that its second argument counts.
SPLIT_VICTIM = """
import os, signal, sys
from pathlib import Path
import numpy as np
from art_entropic.benchmark.plan import BenchmarkPlan
from art_entropic.benchmark.provenance import Spent
from art_entropic.benchmark.run import run_benchmark
from art_entropic.benchmark.runner import Runner
from art_entropic.records import Accuracy, Findings, PointsRecord, pack

def train(self, job):
    path = self.store.home / job.weights(".fake")
    path.parent.mkdir(exist_ok=True)
    path.write_text(job.training_key)
    return self._training_record(job, "done", Spent(0.0, None), weights=job.weights(".fake"), n_train=1)

asked = []
def findings(self, job, training, points, seed):
    asked.append(points)
    if len(asked) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    bits = np.arange(points.start, points.stop) % 3 == 0
    share = Accuracy(correct=int(bits.sum()), n=len(points), low=0.1, high=0.9)
    return Findings(clean=share, robust=share, attacks=[], distances=[], seconds=0.0,
                    points=PointsRecord(clean=pack(bits), robust=pack(bits)))

Runner._train, Runner._findings = train, findings
plan = BenchmarkPlan(frameworks=("pytorch",), defences=("natural",), battery="quick", n_examples=10, points_per_shard=3,
                     checks=False, profile=False)
records = run_benchmark(plan, sys.argv[1], verbose=False)
print([(points.start, points.stop) for points in asked], records[1].points.robust)
"""


def test_a_run_killed_between_shards_does_none_of_the_finished_ones_again(tmp_path: Path) -> None:
    (tmp_path / "victim.py").write_text(SPLIT_VICTIM)
    command = [sys.executable, tmp_path / "victim.py", tmp_path / "run"]
    killed = subprocess.run([*command, "3"], capture_output=True)
    assert killed.returncode < 0
    last = subprocess.run([*command, "0"], capture_output=True, text=True, check=True)
    assert last.stdout.strip() == f"[(6, 9), (9, 10)] {pack(np.arange(10) % 3 == 0)}"


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


def test_records_that_no_plan_explains_are_left_as_they_were(world: World, tmp_path: Path) -> None:
    world.run(tmp_path, ABLATION)  # whose command is a line of Python
    path = tmp_path / "records.jsonl"
    path.write_bytes(b"".join(msgspec.json.encode(as_schema_1(line)) + b"\n" for line in path.read_bytes().splitlines()))
    before = path.read_bytes()
    with pytest.raises(ValueError, match="a record must come from `art-entropic benchmark` to be rewritten, got 'python -c "):
        upgrade(path)
    assert path.read_bytes() == before


def test_a_dry_run_tells_what_a_run_does_of_published_records(world: World, tmp_path: Path) -> None:
    """Natural training is done again where a new row needs its weights, and checks that are new are missing."""
    results = tmp_path / "results.jsonl"
    run_benchmark(SMALL, tmp_path / "first", results=results, verbose=False)
    more = msgspec.structs.replace(SMALL, defences=("entropic", "trades", "fbf"), frameworks=("pytorch",))
    told = {cell.title: cell.state for cell in cell_status(more, tmp_path / "other", results)}
    world.trained.clear()
    run_benchmark(more, tmp_path / "other", results=_copy(results, tmp_path / "copy.jsonl"), verbose=False)
    done = {f"{name.title()} on {FRAMEWORKS[framework].title}, seed 0" for name, framework, _, _ in world.trained}
    assert {title for title, state in told.items() if state == "train"} == done
    assert len(done) == 2 and set(told.values()) == {"train", "done"}
    checked = msgspec.structs.replace(SMALL, checks=True)
    assert {cell.state for cell in cell_status(checked, tmp_path / "first", results)} == {"check", "done"}


def _copy(path: Path, other: Path) -> Path:
    other.write_bytes(path.read_bytes())
    return other
