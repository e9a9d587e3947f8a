"""Cells on several processes: the same records as in one, whatever happens to a worker."""

import dataclasses
import hashlib
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from art_entropic import distribution
from art_entropic.backends import backend_for
from art_entropic.benchmark import BenchmarkPlan, run_benchmark, settings_of
from art_entropic.distribution import dask_cluster, process_pool
from art_entropic.problems import build_classifier, load_data
from art_entropic.records import EvaluationRecord, ProfileRecord, TrainingRecord, read_records

PLAN = BenchmarkPlan(
    frameworks=("pytorch",), defences=("entropic", "fbf"), battery="quick", n_examples=30, n_train=200, nb_epochs=2,
    nb_epochs_natural=2, seeds=(0, 1), checks=False,
)  # fmt: skip


def outcome(records, home):
    """What a run found, without when, where and how fast: weights, points, profile."""
    found = {}
    for record in records:
        if isinstance(record, TrainingRecord):
            classifier = build_classifier(settings_of(PLAN).problem, "pytorch", record.seed)
            backend_for(classifier).load_weights(home / record.weights)
            arrays = backend_for(classifier).state().values()
            found[record.key] = hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()
        elif isinstance(record, EvaluationRecord):
            found[record.key] = (record.points, record.training_key)
        elif isinstance(record, ProfileRecord):
            found[record.key] = record.rows
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The plan in one process, on one thread as the workers have."""
    import torch

    home = tmp_path_factory.mktemp("alone")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return outcome(run_benchmark(PLAN, home, verbose=False), home)
    finally:
        torch.set_num_threads(threads)


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
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, env=environment, silence_logs=50
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
        monkeypatch.setattr(distribution, "package_versions", lambda frameworks: {"torch": "0.1"})
        with pytest.raises(ValueError, match=r"the worker on .* must have the package versions .*torch 0.1 \(client: "):
            run_benchmark(PLAN, tmp_path, executor=pool, verbose=False)
        monkeypatch.undo()
        data = load_data("digits")
        monkeypatch.setattr(distribution, "shared_data", lambda settings: dataclasses.replace(data, sha256="feed"))
        monkeypatch.setattr(distribution, "_cached", {})
        with pytest.raises(ValueError, match="has other data for 'digits': SHA-256 feed, the client has "):
            run_benchmark(PLAN, tmp_path, executor=pool, verbose=False)


def test_an_error_keeps_what_others_have_finished(tmp_path, monkeypatch):
    from art_entropic import benchmark

    real = benchmark.Runner._evaluate

    def evaluate(self, job, training):
        if job.defence == "fbf":
            raise RuntimeError("no such luck")
        return real(self, job, training)

    monkeypatch.setattr(benchmark.Runner, "_evaluate", evaluate)
    plan = dataclasses.replace(PLAN, seeds=(0,), profile=False)
    with ThreadPoolExecutor(1) as pool, pytest.raises(RuntimeError, match="no such luck"):
        run_benchmark(plan, tmp_path, executor=pool, verbose=False)
    kept = [(type(record).__name__, record.defence) for record in read_records(tmp_path / "records.jsonl")]
    assert ("EvaluationRecord", "entropic") in kept and ("EvaluationRecord", "fbf") not in kept
    monkeypatch.undo()
    again = run_benchmark(plan, tmp_path, verbose=False)
    assert len([record for record in again if isinstance(record, EvaluationRecord)]) == 3


@pytest.mark.parametrize("n_jobs", [1, 2, 3])
def test_cores_are_shared_out(monkeypatch, n_jobs):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 5}, raising=False)
    shares = distribution._shares(n_jobs)
    assert len(shares) == n_jobs
    assert sorted(np.concatenate(shares)) == [0, 1, 2, 5]


def test_more_jobs_than_cores_are_warned_of(monkeypatch, capsys):
    monkeypatch.setattr(distribution, "available_cores", lambda: 1)
    with process_pool(2):
        pass
    assert "2 jobs on 1 cores will slow each other" in capsys.readouterr().err
    with pytest.raises(ValueError, match="`jobs` must be at least 1"), process_pool(0):
        pass
