"""The runner: what it trains from what, and what it keeps."""

from __future__ import annotations

import io
import platform
from pathlib import Path

import msgspec
import numpy as np
import pytest
from world import ABLATION, N_TRAIN, PICTURE, SMALL, World

from art_entropic.benchmark.cells import PROFILED, hold_out
from art_entropic.benchmark.changes import compare_runs
from art_entropic.benchmark.plan import BenchmarkPlan, Variant, resolved
from art_entropic.benchmark.problems import PROBLEMS
from art_entropic.benchmark.provenance import Moment, Stopwatch, processor_name
from art_entropic.benchmark.run import run_benchmark
from art_entropic.history import TrainingDivergedError
from art_entropic.measures import Interval, Schedule
from art_entropic.records import (
    ChecksRecord,
    EvaluationRecord,
    ProfileRecord,
    TrainingRecord,
    read_records,
)
from art_entropic.report.sections import sections


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


def test_diverged_training_is_a_record_and_the_others_go_on(world: World, tmp_path: Path) -> None:
    world.failure["entropic"] = TrainingDivergedError(2, 7, {"loss": float("nan")}, "epoch 1")
    records = world.run(tmp_path)
    diverged = [record for record in records if isinstance(record, TrainingRecord) and record.status == "diverged"]
    assert [record.framework for record in diverged] == ["pytorch", "tensorflow"]
    assert all("epoch 2, step 7" in str(record.reason) for record in diverged)
    assert not any(isinstance(record, EvaluationRecord) and record.defence == "entropic" for record in records)
    assert any(isinstance(record, EvaluationRecord) and record.defence == "trades" for record in records)


def test_nothing_starts_from_a_diverged_natural_training(world: World, tmp_path: Path) -> None:
    world.failure["natural"] = TrainingDivergedError(1, 1, {"loss": float("inf")}, "the start")
    records = world.run(tmp_path)
    assert world.trained == []
    statuses = [record.status for record in records if isinstance(record, TrainingRecord)]
    assert statuses == ["diverged", "unavailable", "unavailable"] * 2


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


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (
            "processor: 0\ncpu family\t: 23\nmodel\t\t: 1\nmodel name\t: AMD EPYC\n\nprocessor: 1\nmodel: 9\n",
            "AMD EPYC, family 23, model 1",
        ),
        ("processor: 0\nmodel name\t: AMD EPYC\n", "AMD EPYC"),
        ("processor\t: 0\nBogoMIPS\t: 50.00\nCPU part\t: 0xd0c\n", platform.processor() or platform.machine()),
    ],
)
def test_a_processor_is_told_with_its_generation(tmp_path: Path, text: str, name: str) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert processor_name(tmp_path / "cpuinfo") == name


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


def test_a_variant_that_is_renamed_finds_its_records_again(world: World, tmp_path: Path) -> None:
    world.run(tmp_path, ABLATION)
    asked = len(world.trained), len(world.evaluated)
    first, second = ABLATION.variants
    renamed = msgspec.structs.replace(ABLATION, variants=(msgspec.structs.replace(first, name="beta 0"), second))
    records = world.run(tmp_path, renamed)
    assert (len(world.trained), len(world.evaluated)) == asked
    assert {record.variant for record in records} == {"", "beta 0", "from scratch"}
    assert world.run(tmp_path, renamed) == records
    # Under its old name nothing is shown any more, and what other settings found of it has the new one too.
    fewer = msgspec.structs.replace(renamed, n_examples=6)
    world.run(tmp_path, fewer)
    world.run(tmp_path, msgspec.structs.replace(ABLATION, n_examples=6))
    lines = list(read_records(tmp_path / "records.jsonl"))
    assert {row.variant for section in sections(lines) for row in section.rows} == {"", "no information", "from scratch"}
    assert len(compare_runs(lines, lines).cells) == 2 * len(records) // 2


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
    assert "| PyTorch | **Entropic, interval: far too much** | training diverged in epoch 1, step 1" in markdown
    stream = io.StringIO()
    print_table(records, stream)
    assert "Entropic, interval: far too much" in stream.getvalue() and "diverged" in stream.getvalue()


def test_groups_stay_on_one_side_of_a_split() -> None:
    groups = np.repeat([3, 9, 4, 1, 7], [1, 30, 10, 20, 39])
    for seed in range(20):
        kept, held = hold_out(100, 0.1, seed, groups)
        assert sorted([*kept, *held]) == list(range(100)) and len(kept)
        assert not set(groups[kept]) & set(groups[held])
        # No more groups than the share needs.
        assert 10 <= len(held) < 10 + max(np.bincount(groups)[groups[held]])
    assert len({tuple(hold_out(100, 0.1, seed, groups)[1]) for seed in range(20)}) > 1
    assert len(hold_out(4, 0.9, 0, np.array([2, 5, 5, 5]))[0])  # a group is left to train on, however large the share
    with pytest.raises(ValueError, match="`groups` must split 3 points into at least 2 groups, got 1 of 3"):
        hold_out(3, 0.1, 0, np.zeros(3))


def test_split_is_seeded_disjoint_and_complete() -> None:
    kept, held = hold_out(100, 0.1, seed=3)
    assert (len(kept), len(held)) == (90, 10)
    np.testing.assert_array_equal(np.sort(np.concatenate([kept, held])), np.arange(100))
    again = hold_out(100, 0.1, seed=3)
    np.testing.assert_array_equal(held, again[1])
    assert not np.array_equal(held, hold_out(100, 0.1, seed=4)[1])
