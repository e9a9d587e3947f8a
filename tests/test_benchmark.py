"""The runner: what it trains from what, what it keeps, what a second start does. Networks and attacks are stand-ins."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from art_entropic import benchmark, problems
from art_entropic.backends import FRAMEWORKS, MissingFrameworkError
from art_entropic.benchmark import BenchmarkPlan, run_benchmark
from art_entropic.problems import Data
from art_entropic.records import Accuracy, EvaluationRecord, TrainingRecord, read_records

N_TRAIN, N_TEST = 50, 20


class FakeEstimator:
    """Its weights are the list of what has happened to it."""

    def __init__(self, framework: str, seed: int) -> None:
        self.framework, self.weights = framework, [f"init-{seed}"]


class FakeBackend:
    weights_suffix = ".fake"

    def __init__(self, estimator: FakeEstimator) -> None:
        self.estimator = estimator

    def save_weights(self, path: Path) -> None:
        assert path.name.endswith(self.weights_suffix)
        path.write_text(json.dumps(self.estimator.weights))

    def load_weights(self, path: Path) -> None:
        self.estimator.weights = json.loads(path.read_text())


class World:
    """Stands in for data, frameworks, defences and attacks, and keeps what was asked of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rng = np.random.default_rng(0)
        x = rng.random((N_TRAIN + N_TEST, 8, 8, 1), np.float32)
        y = rng.integers(0, 10, N_TRAIN + N_TEST)
        self.data = Data(x[:N_TRAIN], y[:N_TRAIN], x[N_TRAIN:], y[N_TRAIN:], "feed", "nowhere", "Noise")
        self.trained: list[tuple[str, str, list[str], dict[str, Any]]] = []
        self.evaluated: list[tuple[list[str], np.ndarray, dict[str, Any]]] = []
        self.failure: dict[str, BaseException] = {}
        monkeypatch.setattr(benchmark, "load_data", lambda name: self.data)
        monkeypatch.setattr(benchmark, "installed_frameworks", lambda: tuple(FRAMEWORKS))
        monkeypatch.setattr(problems, "framework_module", self.module)
        monkeypatch.setattr(benchmark, "backend_for", FakeBackend)
        monkeypatch.setattr(benchmark, "evaluate", self.evaluate)
        for name in benchmark.DEFENCES:
            monkeypatch.setitem(benchmark.DEFENCES, name, self.defence(name))

    def module(self, framework: str) -> Any:
        def build_classifier(architecture: Any, *, seed: int, **_: Any) -> FakeEstimator:
            return FakeEstimator(framework, seed)

        return SimpleNamespace(build_classifier=build_classifier)

    def defence(self, name: str) -> Any:
        def train(estimator: FakeEstimator, x: np.ndarray, y: np.ndarray, **options: Any) -> Any:
            if options.get("validation_data") is None:  # the warm-up
                return estimator, (), []
            if name in self.failure:
                raise self.failure[name]
            self.trained.append((name, estimator.framework, list(estimator.weights), {"x": x, "y": y, **options}))
            estimator.weights.append(name)
            return estimator, (f"a note of {name}",), []

        def unavailable(framework: str) -> str | None:
            return f"no {name} here" if (name, framework) == ("trades", "tensorflow") else None

        return SimpleNamespace(ours=False, title=name.title(), train=train, unavailable=unavailable)

    def evaluate(self, estimator: FakeEstimator, x: np.ndarray, y: np.ndarray, **options: Any) -> Any:
        self.evaluated.append((list(estimator.weights), x, options))
        if "evaluate" in self.failure:
            raise self.failure["evaluate"]
        share = Accuracy(correct=5, n=len(x), low=0.1, high=0.5)
        return SimpleNamespace(
            clean=share, robust=share, certified=None, certified_reason="none here", attacks=[], curve=[], examples=[],
            seconds=0.5,
        )  # fmt: skip


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


SMALL = BenchmarkPlan(defences=("entropic", "trades"), n_examples=10, nb_epochs=3, nb_epochs_natural=2, battery="quick")


def run(folder: Path, plan: BenchmarkPlan = SMALL) -> list[Any]:
    return run_benchmark(plan, folder, verbose=False)


def test_every_defence_starts_from_the_natural_weights_of_its_framework_and_seed(world: World, tmp_path: Path) -> None:
    run(tmp_path, dataclasses.replace(SMALL, seeds=(0, 1)))
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
    run(tmp_path, dataclasses.replace(SMALL, frameworks=("pytorch",)))
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


def test_epochs_and_options_reach_trainers_and_attacks(world: World, tmp_path: Path) -> None:
    run(tmp_path, dataclasses.replace(SMALL, frameworks=("tensorflow",), eps=0.2, seeds=(7,)))
    assert [(name, told["nb_epochs"], told["eps"], told["seed"]) for name, _, _, told in world.trained] == [
        ("natural", 2, 0.2, 7),
        ("entropic", 3, 0.2, 7),
    ]
    for _, x, told in world.evaluated:
        np.testing.assert_array_equal(x, world.data.x_test[:10])
        assert (told["eps"], told["battery"], told["seed"]) == (0.2, "quick", 7)


def test_records_hold_what_was_done(world: World, tmp_path: Path) -> None:
    returned = run(tmp_path)
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
    source = trainings[0].provenance
    assert source.data_sha256 == "feed"
    assert source.command.startswith("art-entropic benchmark --problem digits --framework pytorch,tensorflow")
    assert str(tmp_path) not in (tmp_path / "records.jsonl").read_text()
    packages = {"art-entropic", "adversarial-robustness-toolbox", "torch", "tensorflow", "keras", "numpy"}
    assert packages <= set(source.versions)


def test_weights_are_named_after_their_cell(world: World, tmp_path: Path) -> None:
    run(tmp_path)
    trainings = [record for record in read_records(tmp_path / "records.jsonl") if isinstance(record, TrainingRecord)]
    files = {f"weights/{path.name}" for path in (tmp_path / "weights").iterdir()}
    assert files == {training.weights for training in trainings if training.weights}
    for training in trainings:
        if training.weights:
            expected = f"weights/{training.key[:12]}-{training.framework}-{training.defence}-seed0.fake"
            assert training.weights == expected


def test_second_start_does_nothing(world: World, tmp_path: Path) -> None:
    first = run(tmp_path)
    before = (tmp_path / "records.jsonl").read_bytes()
    world.trained.clear()
    world.evaluated.clear()
    assert run(tmp_path) == first
    assert (world.trained, world.evaluated) == ([], [])
    assert (tmp_path / "records.jsonl").read_bytes() == before


def test_interrupted_run_goes_on_where_it_was(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world.failure["trades"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    assert len(list(read_records(tmp_path / "records.jsonl"))) == 4  # natural and entropic, trained and attacked
    assert not list((tmp_path / "weights").glob(".*"))
    world.failure.clear()
    world.trained.clear()
    run_benchmark(SMALL, tmp_path)
    assert world.trained[0][:3] == ("trades", "pytorch", ["init-0", "natural"])  # reloaded from the file
    assert f"resuming in {tmp_path}: 2 of 6 cells are done" in capsys.readouterr().err.replace("\n", "")


def test_interrupt_between_training_and_attack_keeps_the_training(world: World, tmp_path: Path) -> None:
    world.failure["evaluate"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    world.failure.clear()
    world.trained.clear()
    run(tmp_path)
    assert ("natural", "pytorch") not in [entry[:2] for entry in world.trained]


def test_torn_last_line_is_dropped_and_its_cell_done_again(world: World, tmp_path: Path) -> None:
    run(tmp_path)
    path = tmp_path / "records.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    run(tmp_path)
    assert len(list(read_records(path))) == whole.count(b"\n")


def test_lost_weights_are_trained_again(world: World, tmp_path: Path) -> None:
    records = run(tmp_path)
    trainings = [record for record in records if isinstance(record, TrainingRecord)]
    weights = next(str(record.weights) for record in trainings if record.defence == "entropic")
    (tmp_path / weights).unlink()
    world.trained.clear()
    run(tmp_path)
    assert [entry[:2] for entry in world.trained] == [("entropic", "pytorch")]
    assert (tmp_path / weights).exists()


def test_other_settings_are_other_cells(world: World, tmp_path: Path) -> None:
    run(tmp_path)
    world.trained.clear()
    world.evaluated.clear()
    run(tmp_path, dataclasses.replace(SMALL, nb_epochs=4))
    assert [entry[0] for entry in world.trained] == ["entropic", "trades", "entropic"]  # natural training stays
    world.trained.clear()
    world.evaluated.clear()
    run(tmp_path, dataclasses.replace(SMALL, nb_epochs=4, n_examples=12))
    assert world.trained == []
    assert len(world.evaluated) == 5


def test_earlier_settings_are_the_latest_again_when_asked_for_again(world: World, tmp_path: Path) -> None:
    from art_entropic.report import load, sections

    for epochs in (3, 4, 3):
        run(tmp_path, dataclasses.replace(SMALL, nb_epochs=epochs))
        (section,) = sections(load(tmp_path))
        trained = {row.training.nb_epochs for row in section.rows if row.defence == "entropic" and row.training}
        assert trained == {epochs}
    assert len(world.trained) == 5 + 3


def test_diverged_training_is_a_record_and_the_others_go_on(world: World, tmp_path: Path) -> None:
    from art_entropic.trainer import TrainingDivergedError

    world.failure["entropic"] = TrainingDivergedError(2, 7, {"loss": float("nan")}, "epoch 1")
    records = run(tmp_path)
    diverged = [record for record in records if isinstance(record, TrainingRecord) and record.status == "diverged"]
    assert [record.framework for record in diverged] == ["pytorch", "tensorflow"]
    assert all("epoch 2, step 7" in str(record.reason) for record in diverged)
    assert not any(isinstance(record, EvaluationRecord) and record.defence == "entropic" for record in records)
    assert any(isinstance(record, EvaluationRecord) and record.defence == "trades" for record in records)


def test_nothing_starts_from_a_diverged_natural_training(world: World, tmp_path: Path) -> None:
    from art_entropic.trainer import TrainingDivergedError

    world.failure["natural"] = TrainingDivergedError(1, 1, {"loss": float("inf")}, "the start")
    records = run(tmp_path)
    assert world.trained == []
    statuses = [record.status for record in records if isinstance(record, TrainingRecord)]
    assert statuses == ["diverged", "unavailable", "unavailable"] * 2


def test_failed_save_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "weights.fake"
    with pytest.raises(RuntimeError), benchmark.replacing(path, ".fake") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with benchmark.replacing(path, ".fake") as temporary:
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
        ({"n_examples": 0}, "`n_examples` must be at least 1"),
        ({"n_examples": 21}, "`n_examples` must be at most the 20 test points, got 21"),
        ({"nb_epochs": 0}, "`nb_epochs` must be at least 1"),
    ],
)
def test_bad_plans_are_refused_before_anything_is_written(
    world: World, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        run(tmp_path / "out", dataclasses.replace(SMALL, **changes))
    assert not (tmp_path / "out").exists()


def test_no_framework_at_all_is_one_line_with_the_command(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "installed_frameworks", tuple)
    with pytest.raises(MissingFrameworkError, match=re.escape("pip install 'art-entropic[torch]'")) as caught:
        run_benchmark(SMALL, "nowhere", verbose=False)
    assert "\n" not in str(caught.value)


def test_command_asks_for_the_same_cells(world: World, tmp_path: Path) -> None:
    from art_entropic import cli

    run(tmp_path, dataclasses.replace(SMALL, seeds=(0, 3), eps=8 / 255))
    command = next(read_records(tmp_path / "records.jsonl")).provenance.command
    world.trained.clear()
    world.evaluated.clear()
    assert cli.main([*command.split()[1:], "--out", str(tmp_path), "--quiet"]) == 0
    assert (world.trained, world.evaluated) == ([], [])


def test_stopwatch_tells_others_work_from_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = {"busy": 100.0, "own": 10.0, "wall": 0.0}
    monkeypatch.setattr(benchmark, "_busy_seconds", lambda: clock["busy"])
    monkeypatch.setattr(benchmark.time, "process_time", lambda: clock["own"])
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: clock["wall"])
    monkeypatch.setattr(benchmark, "available_cores", lambda: 2)
    watch = benchmark.Stopwatch()
    clock.update(busy=115.0, own=19.0, wall=10.0)
    # 15 s of work on two cores over 10 s, 9 s of it our own: others had 6 of 20 core seconds
    np.testing.assert_allclose(watch.stop(), (10.0, 0.3))
    monkeypatch.setattr(benchmark, "_busy_seconds", lambda: None)
    assert benchmark.Stopwatch().stop().other_load is None


def test_split_is_seeded_disjoint_and_complete() -> None:
    kept, held = benchmark.hold_out(100, 0.1, seed=3)
    assert (len(kept), len(held)) == (90, 10)
    np.testing.assert_array_equal(np.sort(np.concatenate([kept, held])), np.arange(100))
    again = benchmark.hold_out(100, 0.1, seed=3)
    np.testing.assert_array_equal(held, again[1])
    assert not np.array_equal(held, benchmark.hold_out(100, 0.1, seed=4)[1])
