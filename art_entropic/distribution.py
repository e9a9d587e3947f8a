"""Cells of a benchmark on many processes or machines. We write no scheduler: any `concurrent.futures.Executor` will do.

The process that calls `run_benchmark` alone writes records. Workers read and write weights in the folder of the run, which all
of them must see: on one machine any folder, on a cluster one on a shared file system.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from art_entropic._validate import positive_int
from art_entropic.benchmark import (
    Job,
    ProfileJob,
    Progress,
    Runner,
    Settings,
    Store,
    available_cores,
    package_versions,
    provenance,
    shared_data,
)
from art_entropic.problems import Data
from art_entropic.records import AnyRecord, Provenance


class Result(NamedTuple):
    """What a worker did of a cell."""

    records: list[AnyRecord]
    notes: list[str]  # for the progress of the whole run


@dataclass(frozen=True)
class Task:
    """One cell, with all that a worker needs to know to do what is missing of it."""

    settings: Settings
    source: Provenance  # of the process that asked
    home: str
    job: Job | ProfileJob
    trains: bool
    known: tuple[AnyRecord, ...]  # of this cell, and of the natural training that it starts from


class _Shelf(Store):
    """Records in memory: what a worker knows and what it adds."""

    def __init__(self, home: Path, known: Sequence[AnyRecord]) -> None:
        super().__init__(home, known)
        self.added: list[AnyRecord] = []

    def append(self, record: AnyRecord) -> None:
        self._keep(record)
        self.added.append(record)


class _Notes(Progress):
    """Keeps the lines for the process that shows them."""

    def __init__(self) -> None:
        super().__init__(0, verbose=False)
        self.lines: list[str] = []

    def note(self, line: str) -> None:
        self.lines.append(line)


def work(task: Task) -> Result:
    """Do what is missing of one cell, in a worker.

    Raises:
        ValueError: this worker has other package versions, or other data, than the process that asked.
    """
    settings = task.settings
    _check_versions(task)
    data = _data(settings.problem.name, settings.n_train, settings)
    if data.sha256 != task.source.data_sha256:
        raise ValueError(
            f"the worker on {platform.node()} has other data for {settings.problem.name!r}: SHA-256 {data.sha256[:12]}, the "
            f"client has {task.source.data_sha256[:12]}"
        )
    shelf, notes = _Shelf(Path(task.home), task.known), _Notes()
    runner = Runner(settings, data, shelf, provenance(settings, data.sha256))
    if isinstance(task.job, ProfileJob):
        runner.profile(task.job, notes)
    else:
        runner.run(task.job, notes, trains=task.trains)
    return Result(shelf.added, notes.lines)


def _check_versions(task: Task) -> None:
    here = package_versions(task.settings.frameworks)
    other = [
        f"{package} {here.get(package, 'not installed')} (client: {version})"
        for package, version in task.source.versions.items()
        if here.get(package) != version
    ]
    if other:
        raise ValueError(
            f"the worker on {platform.node()} must have the package versions of the client, got {', '.join(other)}"
        )


_cached: dict[tuple[str, int | None], Data] = {}


def _data(name: str, n_train: int | None, settings: Settings) -> Data:
    """The data, read once a process."""
    if (name, n_train) not in _cached:
        _cached[name, n_train] = shared_data(settings)
    return _cached[name, n_train]


def run_on(executor: Executor, runner: Runner, jobs: Sequence[Job], profiles: Sequence[ProfileJob], progress: Progress) -> None:
    """Do every cell that is missing, each as soon as the natural training that it starts from is there.

    An error ends the run as it does in one process; what other workers have finished by then is kept.
    """
    waiting: list[Job | ProfileJob] = [*jobs, *profiles]
    running: dict[Future[Result], Job | ProfileJob] = {}
    try:
        while waiting or running:
            for job in [job for job in waiting if _is_ready(runner, job, waiting, running)]:
                waiting.remove(job)
                trains = isinstance(job, Job) and runner.trains(job, jobs)
                if not trains and _is_done(runner, job):
                    progress.advance()
                    continue
                running[executor.submit(work, _task(runner, job, trains))] = job
            if running:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    _keep(runner, future, progress)
                    running.pop(future)
    except BaseException:
        for future in running:
            future.cancel()
        for future in running:
            if future.done() and not future.cancelled() and future.exception() is None:
                _keep(runner, future, progress)
        raise


def _keep(runner: Runner, future: Future[Result], progress: Progress) -> None:
    result = future.result()
    for record in result.records:
        runner.store.append(record)
    for line in result.notes:
        progress.note(line)
    progress.advance()


def _is_done(runner: Runner, job: Job | ProfileJob) -> bool:
    return runner.store.has(job.key) if isinstance(job, ProfileJob) else runner.store.is_done(job)


def _is_ready(
    runner: Runner, job: Job | ProfileJob, waiting: Sequence[Job | ProfileJob], running: dict[Future[Result], Job | ProfileJob]
) -> bool:
    """Whether all that a cell starts from has been done."""
    open_jobs = {one.training_key for one in (*waiting, *running.values()) if isinstance(one, Job)}
    if isinstance(job, ProfileJob):
        return not open_jobs.intersection(one.training_key for one in job.jobs)
    return not job.starts_natural or job.natural_key not in open_jobs


def _task(runner: Runner, job: Job | ProfileJob, trains: bool) -> Task:
    cells = job.jobs if isinstance(job, ProfileJob) else (job,)
    keys = [key for cell in cells for key in (cell.natural_key, cell.training_key, cell.evaluation_key)]
    known = tuple(runner.store.records(keys))
    return Task(runner.settings, runner.source, str(runner.store.home.resolve()), job, trains, known)


# ----------------------------------------------------------------------------------------------------------- executors


@contextlib.contextmanager
def process_pool(n_jobs: int) -> Iterator[Executor]:
    """Processes of this machine, each with cores of its own, so that they do not slow each other.

    Args:
        n_jobs: number of processes, >= 1. More than there are cores are allowed, with a warning.
    """
    cores = available_cores()
    if positive_int("jobs", n_jobs) > cores:
        print(f"{n_jobs} jobs on {cores} cores will slow each other: their training seconds compare nothing", file=sys.stderr)
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads, as frameworks have them, may hang
    shares = context.SimpleQueue()
    for share in _shares(n_jobs):
        shares.put(share)
    with ProcessPoolExecutor(n_jobs, mp_context=context, initializer=_settle, initargs=(shares,)) as pool:
        yield pool


def _shares(n_jobs: int) -> list[tuple[int, ...]]:
    """Which cores each process has; empty where the system does not tell."""
    if not hasattr(os, "sched_getaffinity"):
        return [()] * n_jobs
    cores = sorted(os.sched_getaffinity(0))
    if n_jobs >= len(cores):
        return [(cores[number % len(cores)],) for number in range(n_jobs)]
    return [tuple(cores[number::n_jobs]) for number in range(n_jobs)]


def _settle(shares: Any) -> None:
    """Take a share of the cores, before any framework is imported and counts them."""
    share = shares.get()
    threads = str(len(share) or max(1, available_cores()))
    for name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
        os.environ[name] = threads
    if share:
        os.sched_setaffinity(0, share)


@contextlib.contextmanager
def dask_cluster(address: str, timeout: float = 10.0) -> Iterator[Executor]:
    """The workers of a Dask scheduler, whoever started it: a shell, dask-jobqueue on SLURM, dask-kubernetes.

    Args:
        address: of the scheduler, such as "tcp://host:8786".
        timeout: seconds until it counts as unreachable.
    Raises:
        ImportError: Dask is not installed.
        ValueError: no scheduler answers there.
    """
    try:
        client_of: Any = importlib.import_module("distributed").Client
    except ImportError as error:
        raise ImportError("Dask is not installed: pip install 'art-entropic[distributed]'") from error
    try:
        client = client_of(address, timeout=timeout, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise ValueError(f"`scheduler` must be the address of a running Dask scheduler, got {address!r}: {error}") from error
    with client, client.get_executor() as executor:
        yield executor


__all__ = ["dask_cluster", "process_pool", "run_on"]
