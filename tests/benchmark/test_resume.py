"""What a second start does, whatever ended the first one."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
from world import SMALL, World

from art_entropic.backends.registry import FRAMEWORKS
from art_entropic.benchmark.costs import costs_like
from art_entropic.benchmark.defences import DEFENCES
from art_entropic.benchmark.plan import BenchmarkPlan, resolved
from art_entropic.benchmark.problems import load_data
from art_entropic.benchmark.run import cell_status
from art_entropic.cli.main import main
from art_entropic.files import replacing
from art_entropic.records import (
    TrainingRecord,
    read_records,
)


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


def test_a_new_title_reaches_the_records_without_new_work(world: World, tmp_path: Path) -> None:
    from art_entropic.report.page import load
    from art_entropic.report.sections import sections

    for title in ("First", None, "Second"):
        world.run(tmp_path, msgspec.structs.replace(SMALL, title=title))
        (section,) = sections(load(tmp_path))
        assert section.title == f"{title or 'Digits (scikit-learn, 8x8)'}, network small"
    assert len(world.trained) == 5


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


def test_the_default_comparison_knows_its_length_before_anything_is_done(tmp_path: Path) -> None:
    plan = resolved(BenchmarkPlan())
    costs = costs_like(plan)
    # After a change of the default plan, `benchmarks/first_command.py` measures it again.
    assert costs is not None and costs.n_examples == plan.n_examples
    assert costs.epochs == {defence: plan.epochs_of(defence) for defence in plan.defences}
    double = BenchmarkPlan(
        nb_epochs=2 * plan.nb_epochs, nb_epochs_natural=2 * plan.nb_epochs_natural, n_examples=2 * plan.n_examples
    )
    cells = cell_status(BenchmarkPlan(), tmp_path)
    once, twice = ([cell.seconds for cell in found] for found in (cells, cell_status(double, tmp_path)))
    assert None not in once and max(once) > 0
    missing = ["TensorFlow" in cell.title and ("FBF" in cell.title or "TRADES" in cell.title) for cell in cells]
    assert [cell.state for cell in cells] == np.where(missing, "unavailable", "train").tolist()
    np.testing.assert_allclose(twice, 2 * np.array(once, float))


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
    assert cells[1].state == "train"
    np.testing.assert_allclose(cells[1].seconds, 2 * seconds["entropic"] + 2 * 0.5)
    assert (tmp_path / "run" / "records.jsonl").read_bytes() == before
    words = resolved(plan, world).command.split()[1:]
    for folder, told in (("run", "0 of 3 cells to do"), ("new", "3 of 3 cells to do; how long they take is not known")):
        assert main([*words, "--out", str(tmp_path / folder), "--dry-run"]) == 0
        assert capsys.readouterr().out.splitlines()[-1] == told


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


def test_a_run_killed_at_twenty_moments_loses_the_cell_in_flight_at_most(tmp_path: Path) -> None:
    command = [sys.executable, Path(__file__).with_name("victim.py"), tmp_path / "run"]
    file = tmp_path / "run" / "records.jsonl"
    rng = np.random.default_rng(0)
    done = 0
    for _ in range(20):
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as victim:
            assert victim.stdout is not None and victim.stdout.readline() == "ready\n"
            time.sleep(rng.uniform(0.0, 0.25))
            victim.kill()
        whole = file.read_bytes().count(b"\n") if file.exists() else 0
        assert whole >= done  # nothing that was finished is lost
        done = whole
    last = subprocess.run(command, capture_output=True, text=True, check=True)
    assert last.stdout.split() == ["ready", str(2 * 4 * 40)]
    records = list(read_records(file))
    assert len(records) == len({record.key for record in records}) == 2 * 4 * 40  # no cell was done twice, none is torn
    left = [path.name for path in (tmp_path / "run" / "weights").iterdir() if not path.name.startswith(".")]
    assert len(left) == 4 * 40


def test_a_dry_run_tells_what_a_run_does_of_published_records(world: World, tmp_path: Path) -> None:
    """Natural training is done again where a new row needs its weights, and checks that are new are missing."""
    results, copy = tmp_path / "results.jsonl", tmp_path / "copy.jsonl"
    world.run(tmp_path / "first", results=results)
    copy.write_bytes(results.read_bytes())
    more = msgspec.structs.replace(SMALL, defences=("entropic", "trades", "fbf"), frameworks=("pytorch",))
    told = {cell.title: cell.state for cell in world.status(tmp_path / "other", more, results)}
    world.forget()
    world.run(tmp_path / "other", more, results=copy)
    done = {f"{DEFENCES[name].title} on {FRAMEWORKS[framework].title}, seed 0" for name, framework, _, _ in world.trained}
    assert {title for title, state in told.items() if state == "train"} == done
    assert len(done) == 2 and set(told.values()) == {"train", "done"}
    checked = msgspec.structs.replace(SMALL, checks=True)
    assert {cell.state for cell in world.status(tmp_path / "first", checked, results)} == {"check", "done"}
