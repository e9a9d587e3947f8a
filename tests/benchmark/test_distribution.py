"""Cells on several processes: the same records as in one, whatever happens to a worker."""

import dataclasses
import hashlib
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from art_entropic.backends.registry import backend_for
from art_entropic.benchmark.cells import TrainTask, notice_of, plan_jobs, shards_of
from art_entropic.benchmark.data import for_framework
from art_entropic.benchmark.executors import InProcess, _shares, dask_cluster, process_pool, side_by_side
from art_entropic.benchmark.plan import BenchmarkPlan, resolved
from art_entropic.benchmark.problems import build_classifier, load_data
from art_entropic.benchmark.progress import EpochNotice, Notice, RunProgress
from art_entropic.benchmark.run import run_benchmark, run_with
from art_entropic.benchmark.tools import TOOLS, Tools
from art_entropic.benchmark.worker import _check_versions
from art_entropic.evaluation.curve import security_curve
from art_entropic.evaluation.evaluate import evaluate
from art_entropic.records import EvaluationRecord, ProfileRecord, TrainingRecord, read_records, unpack
from art_entropic.statistics import accuracy

PLAN = BenchmarkPlan(
    frameworks=("pytorch",), defences=("entropic", "fbf"), battery="quick", n_examples=30, n_train=200, nb_epochs=2,
    nb_epochs_natural=2, seeds=(0, 1), checks=False,
)  # fmt: skip


def outcome(records, home):
    """What a run found, without when, where and how fast: weights, points, profile."""
    found = {}
    for record in records:
        if isinstance(record, TrainingRecord):
            classifier = build_classifier(resolved(PLAN).problem_spec, "pytorch", record.seed)
            backend_for(classifier).load_weights(home / record.weights)
            arrays = backend_for(classifier).state().values()
            found[record.key] = hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()
        elif isinstance(record, EvaluationRecord):
            found[record.key] = (record.points, record.training_key)
        elif isinstance(record, ProfileRecord):
            found[record.key] = record.rows
    return found


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The threads of this process sum in the order in which the workers' processes do."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The plan in one process."""
    home = tmp_path_factory.mktemp("alone")
    return outcome(run_benchmark(PLAN, home, verbose=False), home)


SPLIT = msgspec.structs.replace(PLAN, defences=("natural",), points_per_shard=12, first_example=5, seeds=(0,), checks=True)


def timeless(record):
    """A record without when, where and how fast."""

    def without(value):
        if isinstance(value, dict):
            return {name: without(one) for name, one in value.items() if name not in ("provenance", "seconds", "settings")}
        return [without(one) for one in value] if isinstance(value, list) else value

    return without(msgspec.to_builtins(record))


def told(records):
    return [timeless(record) for record in records if not isinstance(record, TrainingRecord)]


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    """A plan with shards in one process: its folder and its records."""
    home = tmp_path_factory.mktemp("split")
    return home, run_benchmark(SPLIT, home, verbose=False)


def test_joined_shards_are_what_their_points_give_when_evaluated_apart(split):
    home, records = split
    training, record = (next(one for one in records if isinstance(one, kind)) for kind in (TrainingRecord, EvaluationRecord))
    problem, data = resolved(SPLIT).problem_spec, load_data("digits")
    classifier = build_classifier(problem, "pytorch", 0)
    backend_for(classifier).load_weights(home / training.weights)
    (job,) = plan_jobs(resolved(SPLIT), data.sha256)
    apart = []
    for shard in shards_of(resolved(SPLIT), job):
        points = slice(5 + shard.points.start, 5 + shard.points.stop)
        x, y = for_framework(data.x_test[points], "pytorch"), data.y_test[points]
        result = evaluate(classifier, x, y, problem.eps, battery="quick", seeds=shard.seed, checks=False, verbose=False)
        apart.append(result.with_curve(security_curve(classifier, x, y, problem.curve_eps, seed=shard.seed, verbose=False)))
    assert [len(one.survived) for one in apart] == [12, 12, 6]
    survived, clean = (np.concatenate([getattr(one, name) for one in apart]) for name in ("survived", "clean_correct"))
    np.testing.assert_array_equal(unpack(record.points.robust, 30), survived)
    assert (record.robust, record.clean) == (accuracy(survived), accuracy(clean))
    certified = np.concatenate([one.certified_points for one in apart])
    np.testing.assert_array_equal(unpack(record.points.certified, 30), certified)
    assert record.certified == (accuracy(certified) if certified.any() else None)
    for name, outcome, number in zip(("pgd_ce", "pgd_margin"), record.attacks, range(2), strict=True):
        broken = np.concatenate([one.broken_by[name] for one in apart])
        np.testing.assert_array_equal(unpack(record.points.broken_by[name], 30), broken)
        distance = np.concatenate([one.runs[name].distance for one in apart])
        assert outcome.distance == (float(np.nanmedian(distance)) if np.isfinite(distance).any() else None)
        assert outcome.broken == broken.sum()
        for count in ("attacked", "queries"):
            assert getattr(outcome, count) == sum(getattr(one.attacks[number], count) for one in apart)
    for number, point in enumerate(record.curve):
        assert point.robust == accuracy(sum(one.curve[number].robust.correct for one in apart), 30)
    shown = {example.index: example for example in record.examples}
    fallen = np.flatnonzero(clean & ~survived)
    first = [fallen[data.y_test[5 + fallen] == label][0] for label in np.unique(data.y_test[5 + fallen])][:6]
    assert sorted(shown) == sorted(5 + int(index) for index in first) and len(first) > 1
    for index, example in shown.items():
        np.testing.assert_allclose(example.clean, data.x_test[index].ravel(), rtol=1e-6)


def test_a_process_pool_finds_the_same_in_shards(split, tmp_path, capsys):
    with process_pool(2) as pool:
        records = run_benchmark(SPLIT, tmp_path, executor=pool, verbose=True)
    assert told(records) == told(split[1])
    said = capsys.readouterr().err
    assert said.count(", points ") == 3 and said.count(" s of checks") == 1
    assert run_benchmark(SPLIT, tmp_path, verbose=False) == records


def test_finished_shards_outlive_an_error_on_another_worker(split, tmp_path):
    asked = []
    attacked = for_framework(load_data("digits").x_test, "pytorch")[5:]

    class Unlucky(Tools):
        def evaluate(self, classifier, x, *given, **options):
            (start,) = np.flatnonzero((attacked == x[0]).all((1, 2, 3)))
            asked.append(start)
            if start == 24 and len(asked) == 3:
                raise RuntimeError("no such luck")
            return super().evaluate(classifier, x, *given, **options)

    tools = Unlucky()
    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(RuntimeError, match="no such luck"):
            run_with(tools, SPLIT, tmp_path, executor=pool, verbose=False)
        records = run_with(tools, SPLIT, tmp_path, executor=pool, verbose=False)
    assert asked == [0, 12, 24, 24]
    assert told(records) == told(split[1])


def test_other_tools_than_the_real_ones_stay_in_their_process():
    class Others(Tools):
        pass

    assert pickle.loads(pickle.dumps(TOOLS)) is TOOLS
    with pytest.raises((pickle.PicklingError, AttributeError), match="TOOLS"):
        pickle.dumps(Others())


@pytest.fixture
def two_workers():
    """A Dask scheduler with two workers, one of which has a resource."""
    from distributed import Scheduler, SpecCluster, Worker

    options = {"nthreads": 1, "dashboard": False}
    with SpecCluster(
        scheduler={"cls": Scheduler, "options": {"host": "127.0.0.1", "dashboard": False, "dashboard_address": "127.0.0.1:0"}},
        workers={
            "plain": {"cls": Worker, "options": options},
            "gpu": {"cls": Worker, "options": {**options, "resources": {"GPU": 1}}},
        },
        silence_logs=50,
    ) as cluster:
        yield cluster


def test_cells_that_need_a_resource_run_where_it_is(split, two_workers, tmp_path, monkeypatch):
    from distributed import get_worker

    ran_on = []
    real = _check_versions

    def check_versions(task):
        ran_on.append(get_worker().name)
        real(task)

    monkeypatch.setattr("art_entropic.benchmark.worker._check_versions", check_versions)
    with dask_cluster(two_workers.scheduler_address, resources={"GPU": 1}) as executor:
        records = run_benchmark(SPLIT, tmp_path, executor=executor, verbose=False)
    assert ran_on == ["gpu"] * 6  # a training, three shards, the checks, a profile
    assert told(records) == told(split[1])


def test_a_resource_that_no_worker_offers_is_refused_before_any_work(two_workers):
    address = two_workers.scheduler_address
    for wanted, shown in (({"TPU": 1}, "TPU=1"), ({"GPU": 2}, "GPU=2"), ({"GPU": 1, "TPU": 1}, "GPU=1 TPU=1")):
        said = f"`resources` must be offered by a worker of {address}, got {shown}: its 2 workers offer "
        with pytest.raises(ValueError, match=said), dask_cluster(address, resources=wanted):
            pass


def test_a_cluster_without_workers_may_get_them_later(capsys):
    from distributed import Scheduler, SpecCluster

    scheduler = {"cls": Scheduler, "options": {"host": "127.0.0.1", "dashboard": False, "dashboard_address": "127.0.0.1:0"}}
    resources = {"GPU": 1, "MEMORY": 2e9}
    with (
        SpecCluster(scheduler=scheduler, silence_logs=50) as cluster,
        dask_cluster(cluster.scheduler_address, timeout=0.5, resources=resources),
    ):
        pass
    assert "has no workers yet: cells wait until one with GPU=1 MEMORY=2e+09 joins it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("resources", "error", "said"),
    [
        ("GPU=1", TypeError, "`resources` must map names to amounts, such as {'GPU': 1}, got 'GPU=1'"),
        ({" ": 1}, ValueError, "`resources` must have non-empty names, such as 'GPU', got ' '"),
        ({"GPU": 0}, ValueError, "`resources['GPU']` must be positive, got 0"),
        ({"GPU": float("nan")}, ValueError, "`resources['GPU']` must be finite, got nan"),
        ({"GPU": "1"}, TypeError, "`resources['GPU']` must be a number, got '1'"),
    ],
)
def test_bad_resources_are_refused_before_anything_is_connected(resources, error, said):
    with pytest.raises(error, match=re.escape(said)), dask_cluster("tcp://127.0.0.1:1", resources=resources):
        pass


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system does not share out cores")
def test_a_process_pool_finds_the_same(alone, tmp_path, capsys):
    cores = sorted(os.sched_getaffinity(0))
    with process_pool(len(cores)) as pool:
        records = run_benchmark(PLAN, tmp_path, executor=pool, verbose=True)
        seen = [pool.submit(os.sched_getaffinity, 0).result() for _ in range(8)]
    assert all(len(share) == 1 for share in seen)
    assert outcome(records, tmp_path) == alone
    said = capsys.readouterr().err
    assert said.count("of attacks)") == 6 and "information in the networks" in said
    assert run_benchmark(PLAN, tmp_path, verbose=False) == records


def test_a_killed_worker_of_a_dask_cluster_costs_nothing_but_time(alone, tmp_path):
    from distributed import LocalCluster

    environment = {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH")])),
    }
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0", env=environment, silence_logs=50
    ) as cluster:
        killed = []

        def kill_one():
            records = tmp_path / "records.jsonl"
            while not records.exists() or records.read_bytes().count(b"\n") < 2:
                time.sleep(0.05)
            killed.append(next(iter(cluster.workers.values())).process.pid)
            os.kill(killed[0], signal.SIGKILL)

        killer = threading.Thread(target=kill_one, daemon=True)
        killer.start()
        with dask_cluster(cluster.scheduler_address) as executor:
            records = run_benchmark(PLAN, tmp_path, executor=executor, verbose=False)
        killer.join(timeout=5)
    assert killed
    assert outcome(records, tmp_path) == alone


def test_an_unreachable_scheduler_is_named():
    said = "`scheduler` must be the address of a running Dask scheduler, got 'tcp://127.0.0.1:1'"
    with pytest.raises(ValueError, match=said), dask_cluster("tcp://127.0.0.1:1", timeout=0.2):
        pass


def test_a_worker_with_other_versions_or_data_is_refused(tmp_path, monkeypatch):
    with ThreadPoolExecutor(1) as pool:
        monkeypatch.setattr("art_entropic.benchmark.worker.package_versions", lambda frameworks: {"torch": "0.1"})
        with pytest.raises(ValueError, match=r"the worker on .* must have the package versions .*torch 0.1 \(client: "):
            run_benchmark(PLAN, tmp_path, executor=pool, verbose=False)
        monkeypatch.undo()
        data = load_data("digits")
        monkeypatch.setattr("art_entropic.benchmark.worker._data", lambda *_: dataclasses.replace(data, sha256="feed"))
        with pytest.raises(ValueError, match="has different data for 'digits': SHA-256 feed, the client has "):
            run_benchmark(PLAN, tmp_path, executor=pool, verbose=False)


@pytest.mark.parametrize("executor", [InProcess, lambda: ThreadPoolExecutor(1)], ids=["in process", "threads"])
def test_an_error_keeps_what_others_have_finished(tmp_path, executor):
    plan = msgspec.structs.replace(PLAN, seeds=(0,), profile=False)
    (fbf,) = (job for job in plan_jobs(resolved(plan), load_data("digits").sha256) if job.defence == "fbf")

    class Unlucky(Tools):
        def evaluate(self, *given, **options):
            if options["folder"] == tmp_path / fbf.attacks:
                raise RuntimeError("no such luck")
            return super().evaluate(*given, **options)

    with executor() as pool, pytest.raises(RuntimeError, match="no such luck"):
        run_with(Unlucky(), plan, tmp_path, executor=pool, verbose=False)
    kept = [(type(record).__name__, record.defence) for record in read_records(tmp_path / "records.jsonl")]
    assert ("EvaluationRecord", "entropic") in kept and ("EvaluationRecord", "fbf") not in kept
    assert ("TrainingRecord", "fbf") in kept
    again = run_benchmark(plan, tmp_path, verbose=False)
    assert len([record for record in again if isinstance(record, EvaluationRecord)]) == 3


def test_a_narrow_terminal_shows_bar_count_and_where_a_task_stands(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("art_entropic.benchmark.progress._REFRESH", 0.01)
    notice = Notice(tmp_path / "notice.txt")
    progress = RunProgress(3, True)
    progress.start()
    progress.begin("training MadryPGD (ART) on PyTorch, seed 0", notice)
    progress.advance()
    notice.write("epoch 3 of 24, about 50 min left")
    time.sleep(0.5)
    progress.stop()
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err)
    assert "1/3 0:00:00" in shown
    assert "epoch 3 of 24" in re.sub(r"\s+", " ", shown)


def test_each_task_tells_where_it_stands(tmp_path, monkeypatch):
    plan = msgspec.structs.replace(PLAN, defences=("natural", "madry_pgd", "entropic"), seeds=(0,), checks=True, profile=False)
    told, begun = {}, []
    write, begin = Notice.write, RunProgress.begin
    monkeypatch.setattr(RunProgress, "begin", lambda self, *given: (begun.append(given[1].read()), begin(self, *given)))
    monkeypatch.setattr(
        Notice, "write", lambda self, text: (told.setdefault(self.path.name, []).append(text), write(self, text))
    )
    notice = tmp_path / notice_of(TrainTask(plan_jobs(resolved(plan), load_data("digits").sha256)[0]))
    notice.parent.mkdir()
    notice.write_text("of a run that was killed")
    run_benchmark(plan, tmp_path, verbose=False)
    lines = list(told.values())
    assert len(lines) == 9  # training, attacks and checks of three networks
    assert sum(line[0].startswith("epoch 1 of ") for line in lines) == 3
    assert sum(line[0].startswith("check 1 of 13: ") for line in lines) == 3
    assert sum(line[0].startswith("attack 1 of 2: ") and line[-1] == "security curve" for line in lines) == 3
    assert begun == 9 * [""]
    assert list(notice.parent.iterdir()) == []


def test_the_epochs_so_far_tell_how_long_the_others_take(tmp_path):
    now = iter([100.0, 130.0, 180.0, 1000.0])
    notice = Notice(tmp_path / "notice.txt")
    epoch = EpochNotice(notice, 12, clock=lambda: next(now))
    seen = [notice.read()]
    for finished in (4, 5, 6, 12):  # it goes on after an interruption
        epoch(finished)
        seen.append(notice.read())
    assert seen == ["", "epoch 5 of 12", "epoch 6 of 12, about 4 min left", "epoch 7 of 12, about 4 min left", seen[3]]


def test_a_notice_that_cannot_be_written_ends_no_task(tmp_path, capsys):
    (tmp_path / "file").touch()
    notice = Notice(tmp_path / "file" / "notice.txt")
    notice.write("epoch 1 of 2")
    assert notice.read() == ""
    notice.remove()
    assert "could not be written" in capsys.readouterr().err


@pytest.mark.parametrize("n_jobs", [1, 2, 3])
def test_cores_are_shared_out(monkeypatch, n_jobs):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 5}, raising=False)
    shares = _shares(n_jobs)
    assert len(shares) == n_jobs
    assert sorted(np.concatenate(shares)) == [0, 1, 2, 5]


def test_frameworks_side_by_side_have_a_process_and_a_thread_each():
    def request(framework):
        return SimpleNamespace(task=TrainTask(SimpleNamespace(framework=framework)))

    with side_by_side(("pytorch", "tensorflow")) as executor:
        first, second, again = (executor.submit(_seen, request(name)).result() for name in ("pytorch", "tensorflow", "pytorch"))
    assert first == again and first != second
    assert {threads for _, threads in (first, second)} == {"1"}


def _seen(_request):
    return os.getpid(), os.environ["OMP_NUM_THREADS"]


def test_a_run_that_is_no_terminal_tells_what_it_does_as_time_goes_by(tmp_path, capsys):
    notice = Notice(tmp_path / "a" / "a.txt")
    progress = RunProgress(3, True, interval=0.01)
    progress.begin("training A", notice)
    progress.begin("training B", Notice(tmp_path / "b.txt"))
    progress.advance()
    progress.start()
    time.sleep(0.1)
    notice.write("epoch 2 of 9")
    time.sleep(0.1)
    progress.stop()
    told = capsys.readouterr().err
    assert "1 of 3 done after 0 min: training A (1 more running or waiting)" in told
    assert "1 of 3 done after 0 min: training A: epoch 2 of 9 (1 more running or waiting)" in told


def test_tensorflow_starts_without_a_word_of_its_cpp_code_and_python_warnings_stay():
    pytest.importorskip("tensorflow")
    code = (
        "import os, sys, warnings\n"
        "os.write(2, b'before\\n')\n"
        "from art_entropic.backends.registry import framework_module\n"
        "framework_module('tensorflow')\n"
        "import tensorflow as tf\n"
        "tf.zeros(3).numpy()\n"
        "warnings.warn('a warning')\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ran.stderr.startswith("before\n") and "UserWarning: a warning" in ran.stderr
    assert not re.search(r"absl|\.cc:\d+\]|CPU instructions", ran.stderr)


def test_more_jobs_than_cores_are_warned_of(monkeypatch, capsys):
    monkeypatch.setattr("art_entropic.benchmark.executors.available_cores", lambda: 1)
    with process_pool(2):
        pass
    assert "2 jobs on 1 cores slow each other down" in capsys.readouterr().err
    with pytest.raises(ValueError, match="`jobs` must be at least 1"), process_pool(0):
        pass
