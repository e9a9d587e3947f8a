"""Cells of a benchmark on many processes or machines. We write no scheduler: any `concurrent.futures.Executor` will do.

The process that calls `run_benchmark` alone writes records. Workers read and write weights, finished attacks and finished
shards in the folder of the run, which all must see: on one machine any folder, on a cluster one on a shared file system."""

from __future__ import annotations

import pickle
import platform
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from art_entropic.benchmark.cells import Job, ProfileJob, Shard, shards_of
from art_entropic.benchmark.data import Data
from art_entropic.benchmark.plan import ResolvedPlan, check_device
from art_entropic.benchmark.progress import Progress
from art_entropic.benchmark.provenance import package_versions, provenance
from art_entropic.benchmark.runner import Runner, shared_data
from art_entropic.benchmark.store import Store
from art_entropic.records import AnyRecord, Provenance


class Result(NamedTuple):
    """What a worker did of a cell."""

    records: list[AnyRecord]
    notes: list[str]  # for the progress of the whole run
    error: Exception | None = None  # that came after the records


@dataclass(frozen=True)
class Training:
    """The training of a cell by itself, where shards of its points follow."""

    job: Job


Piece = Job | Training | Shard | ProfileJob


class Step(NamedTuple):
    """A piece of a run, what it gives and what it needs from others: keys of records, files of shards."""

    piece: Piece
    gives: frozenset[str]
    needs: frozenset[str]


@dataclass(frozen=True)
class Task:
    """A piece of a run, with all that a worker needs to know to do what is missing of it."""

    plan: ResolvedPlan
    source: Provenance  # of the process that asked
    home: str
    piece: Piece
    trains: bool
    known: tuple[AnyRecord, ...]  # of its cell, and of the natural training that this starts from


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
    """Do a task, in a worker.

    Raises:
        ValueError: this worker has other package versions, or other data, than the process that asked.
    """
    plan = task.plan
    _check_versions(task)
    check_device(plan)
    data = _data(plan.problem, plan.n_train, plan)
    if data.sha256 != task.source.data_sha256:
        raise ValueError(
            f"the worker on {platform.node()} has other data for {plan.problem!r}: SHA-256 {data.sha256[:12]}, the "
            f"client has {task.source.data_sha256[:12]}"
        )
    shelf, notes = _Shelf(Path(task.home), task.known), _Notes()
    runner = Runner(plan, data, shelf, provenance(plan, data.sha256))
    try:
        if isinstance(task.piece, ProfileJob):
            runner.profile(task.piece, notes)
        elif isinstance(task.piece, Training):
            runner.train(task.piece.job, notes)
        elif isinstance(task.piece, Shard):
            runner.attack(task.piece, notes)
        else:
            runner.run(task.piece, notes, trains=task.trains)
    except Exception as error:
        if not shelf.added:
            raise
        # A finished training outlives the attack that failed behind it.
        return Result(shelf.added, notes.lines, _sendable(error))
    return Result(shelf.added, notes.lines)


def _sendable(error: Exception) -> Exception:
    """The error itself, or its text where it cannot travel to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _check_versions(task: Task) -> None:
    here = package_versions(task.plan.frameworks)
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


def _data(name: str, n_train: int | None, plan: ResolvedPlan) -> Data:
    """The data, read once a process."""
    if (name, n_train) not in _cached:
        _cached[name, n_train] = shared_data(plan)
    return _cached[name, n_train]


def run_on(executor: Executor, runner: Runner, jobs: Sequence[Job], profiles: Sequence[ProfileJob], progress: Progress) -> None:
    """Do every cell that is missing, each as soon as what it starts from is there, and its shards as soon as it is trained.

    An error ends the run as it does in one process; what other workers have finished by then is kept.
    """
    waiting = _steps(runner.plan, jobs, profiles)
    running: dict[Future[Result], Step] = {}
    try:
        while waiting or running:
            while ready := _ready(waiting, running.values()):  # again, since what is done already sets others free
                for step in ready:
                    waiting.remove(step)
                    if _is_done(runner, step.piece, jobs, progress):
                        _advance(step.piece, progress)
                    else:
                        running[executor.submit(work, _task(runner, step.piece, jobs))] = step
            if running:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    _keep(runner, future, progress)
                    _advance(running.pop(future).piece, progress)
    except BaseException:
        for future in running:
            future.cancel()
        for future in running:
            if future.done() and not future.cancelled() and future.exception() is None:
                _keep_records(runner, future.result(), progress)
        raise


def _steps(plan: ResolvedPlan, jobs: Sequence[Job], profiles: Sequence[ProfileJob]) -> list[Step]:
    """All steps of a run, trainings first, since others wait for them."""
    shards = [shard for job in jobs for shard in shards_of(plan, job)]
    return [
        *(_step(Training(job), gives=[job.training_key], needs=_natural(job, job.starts_natural)) for job in jobs if shards),
        *(_step(shard, gives=[shard.file], needs=[shard.job.training_key]) for shard in shards),
        *(_cell_step(job, shards_of(plan, job)) for job in jobs),
        *(_step(one, gives=[one.key], needs=[job.training_key for job in one.jobs]) for one in profiles),
    ]


def _step(piece: Piece, *, gives: Sequence[str], needs: Sequence[str]) -> Step:
    return Step(piece, frozenset(gives), frozenset(needs))


def _cell_step(job: Job, shards: Sequence[Shard]) -> Step:
    """A cell, or, behind its shards, what is left of it: to join them, and the checks."""
    natural = _natural(job, job.starts_natural or job.checks_key is not None)  # checks transfer from the natural network
    if not shards:
        return _step(job, gives=[job.training_key, job.evaluation_key], needs=natural)
    return _step(job, gives=[job.evaluation_key], needs=[job.training_key, *natural, *(shard.file for shard in shards)])


def _natural(job: Job, is_needed: bool) -> list[str]:
    return [job.natural_key] if is_needed and job.natural_key != job.training_key else []


def _ready(waiting: Sequence[Step], running: Iterable[Step]) -> list[Step]:
    """The steps that need nothing that is still to come."""
    coming = frozenset[str]().union(*(step.gives for step in (*waiting, *running)))
    return [step for step in waiting if not step.needs & coming]


def _is_done(runner: Runner, piece: Piece, jobs: Sequence[Job], progress: Progress) -> bool:
    """Whether nothing is left for a worker; shards that are all there are joined here, where records are written."""
    if isinstance(piece, ProfileJob):
        return runner.store.has(piece.key)
    if isinstance(piece, Training):
        return not runner.trains(piece.job, jobs)
    if isinstance(piece, Shard):
        return runner.attackable(piece.job) is None or runner.store.shard(piece) is not None
    if runner.trains(piece, jobs):
        return False
    if shards_of(runner.plan, piece) and runner.attackable(piece) is not None:
        runner.join(piece, progress)
    return runner.store.is_done(piece)


def _keep(runner: Runner, future: Future[Result], progress: Progress) -> None:
    result = future.result()
    _keep_records(runner, result, progress)
    if result.error is not None:
        raise result.error


def _keep_records(runner: Runner, result: Result, progress: Progress) -> None:
    for record in result.records:
        runner.store.append(record)
    for line in result.notes:
        progress.note(line)


def _advance(piece: Piece, progress: Progress) -> None:
    """Progress counts cells, not their parts."""
    if isinstance(piece, (Job, ProfileJob)):
        progress.advance()


def _task(runner: Runner, piece: Piece, jobs: Sequence[Job]) -> Task:
    if isinstance(piece, ProfileJob):
        cells: Sequence[Job] = piece.jobs
    else:
        cells = [piece if isinstance(piece, Job) else piece.job]
    keys = [key for cell in cells for key in (cell.natural_key, cell.training_key, cell.evaluation_key)]
    trains = isinstance(piece, Job) and runner.trains(piece, jobs)
    known = tuple(runner.store.records(keys))
    return Task(runner.plan, runner.source, str(runner.store.home.resolve()), piece, trains, known)
