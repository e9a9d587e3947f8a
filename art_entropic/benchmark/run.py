"""Every cell of a plan that is not done yet, here or on the workers of an executor."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import msgspec

from art_entropic._validate import file_path
from art_entropic.benchmark.cells import AttackTask, CheckTask, Job, TrainTask, hold_out, plan_jobs, profiles_of, shards_of
from art_entropic.benchmark.costs import costs_like
from art_entropic.benchmark.data import Data
from art_entropic.benchmark.defences import VALIDATION_SHARE
from art_entropic.benchmark.executors import InProcess
from art_entropic.benchmark.plan import BenchmarkPlan, ResolvedPlan, check_device, default_folder, naming, resolved
from art_entropic.benchmark.progress import progress_bar
from art_entropic.benchmark.provenance import provenance
from art_entropic.benchmark.runner import Runner, shared_data
from art_entropic.benchmark.scheduler import Scheduler
from art_entropic.benchmark.store import RECORDS, Store, as_published, titled, write_results
from art_entropic.benchmark.tasks import is_done, tasks_of
from art_entropic.benchmark.tools import TOOLS, Tools
from art_entropic.benchmark.worker import hold_data
from art_entropic.files import alone_in
from art_entropic.records import (
    AnyRecord,
    CellRecord,
    EvaluationRecord,
    MeasurementRecord,
    TrainingRecord,
    cell_of,
    read_records,
)


def run_benchmark(
    plan: BenchmarkPlan | None = None,
    out: str | os.PathLike[str] | None = None,
    *,
    results: str | os.PathLike[str] | None = None,
    executor: Executor | None = None,
    verbose: bool = True,
) -> list[AnyRecord]:
    """Train and attack every cell of a plan that neither `out` nor `results` holds yet.

    Each training and each evaluation is appended to ``records.jsonl`` as it finishes; weights go to ``weights/``. An
    interrupted run loses the cell in progress, no more; of a plan with `points_per_shard`, the shards in progress.

    Args:
        plan: what to compare; None compares the default defences on the embedded digits.
        out: folder of the run; None takes ``runs/<stem of the plan's file>``, or ``runs/<problem>`` without a file.
        results: file of the records of an earlier, finished run of the plan, maybe on another machine. Cells that it holds are
            not done again. After the run it holds the plan's records, in the plan's order, without example pictures, and
            behind them those of cells that the plan does not have.
        executor: of `concurrent.futures`, on whose workers the cells run: a process pool, or `Client.get_executor()` of Dask.
            They must see the folder `out` under the same path. None runs the cells one after another in this process.
        verbose: progress on stderr.
    Returns:
        The records of the plan, those of earlier starts included.
    Raises:
        ValueError, TypeError: an argument of the plan is out of range or names nothing.
        MissingFrameworkError: a framework is not installed.
    """
    return run_with(TOOLS, plan or BenchmarkPlan(), out, results=results, executor=executor, verbose=verbose)


def run_with(
    tools: Tools,
    asked: BenchmarkPlan,
    out: str | os.PathLike[str] | None,
    *,
    results: str | os.PathLike[str] | None = None,
    executor: Executor | None = None,
    verbose: bool = True,
) -> list[AnyRecord]:
    """`run_benchmark`, with the tools that are handed in."""
    plan = resolved(asked, tools)
    home = file_path("out", out) if out is not None else default_folder(plan)
    published = None if results is None else file_path("results", results)
    with naming(plan.source):
        data = shared_data(plan, tools)
    earlier = [] if published is None else _replaceable(published, plan, home, data.sha256)
    if executor is None:
        with naming(plan.source):
            check_device(plan)
    jobs = plan_jobs(plan, data.sha256)
    profiles = profiles_of(plan, jobs)
    with alone_in(home):
        store = Store(home)
        store.adopt(earlier, jobs, [profile.key for profile in profiles])
        store.retitle(jobs, plan.title)
        store.reappend_overtaken([job.evaluation_key for job in jobs])
        runner = Runner(plan, data, store, provenance(plan, data.sha256), tools)
        hold_data(plan, data)
        with progress_bar(len(jobs) + len(profiles), verbose) as progress:
            done = sum(store.is_done(job) for job in jobs)
            if done:
                progress.note(f"resuming in {home}: {done} of {len(jobs)} cells are done")
            Scheduler(runner, executor or InProcess(), jobs, progress).run(profiles)
        records = store.of(jobs, profiles)
        if published is not None:
            earlier = _replaceable(published, plan, home, data.sha256)  # by now another run may have written there
            others = _not_replaced(earlier, records)
            numbers = {one.clean.n for one in earlier if isinstance(one, EvaluationRecord)} - {plan.n_examples}
            if numbers:
                had = ", ".join(map(str, sorted(numbers)))
                progress.note(
                    f"{published} had attacks of {had} points, now of {plan.n_examples}: those of its cells are replaced"
                )
            if others:
                cells = len({cell_of(one) for one in others})
                progress.note(f"{published} keeps {cells} {'cell' if cells == 1 else 'cells'} that this plan does not have")
            write_results(published, [*_as_attacked(earlier, records, plan.title), *others])
    return records


@dataclass(frozen=True)
class CellStatus:
    """What is left to do of one cell.

    Attributes:
        state: "train", "attack" or "check", the first thing that is missing; "done"; or "unavailable", where the defence
            does not exist for the framework.
        seconds: an estimate from like cells that have been done; None where there is none.
    """

    framework: str
    title: str
    state: str
    seconds: float | None

    @property
    def is_left(self) -> bool:
        return self.state not in ("done", "unavailable")


def cell_status(
    plan: BenchmarkPlan | None = None, out: str | os.PathLike[str] | None = None, results: str | os.PathLike[str] | None = None
) -> list[CellStatus]:
    """What `run_benchmark` would do, without doing or writing anything.

    The estimate takes the mean seconds of the trainings and the evaluations that the folder and `results` know of the same
    problem, network, framework and defence, by epoch and training point, and by attacked point; where they know none, and for
    checks, what our own published comparisons took. Machines differ.

    Raises:
        As `run_benchmark`.
    """
    return status_with(TOOLS, plan or BenchmarkPlan(), out, results)


def status_with(
    tools: Tools,
    asked: BenchmarkPlan,
    out: str | os.PathLike[str] | None,
    results: str | os.PathLike[str] | None = None,
) -> list[CellStatus]:
    """`cell_status`, with the tools that are handed in."""
    plan = resolved(asked, tools)
    home = file_path("out", out) if out is not None else default_folder(plan)
    with naming(plan.source):
        data = shared_data(plan, tools)
    published = [] if results is None else map(as_published, read_records(file_path("results", results)))
    known = [*published, *read_records(home / RECORDS)]  # the folder's own go before, since their weights are there
    store, jobs = Store(home, known), plan_jobs(plan, data.sha256)
    return [_status(plan, data, store, known, job, jobs, tools) for job in jobs]


def _status(
    plan: ResolvedPlan, data: Data, store: Store, known: Sequence[AnyRecord], job: Job, jobs: Sequence[Job], tools: Tools
) -> CellStatus:
    left = [task for task in tasks_of(plan, job) if not is_done(task, store, jobs)]
    if not left:
        return CellStatus(job.framework, job.title, "done", 0.0)
    state = _STATES[type(left[0])]
    if tools.defences[job.defence].unavailable(job.framework) is not None:
        return CellStatus(job.framework, job.title, "unavailable", 0.0)
    like = [
        record
        for record in known
        if isinstance(record, (TrainingRecord, EvaluationRecord))
        and (record.problem, record.network, record.framework, record.defence)
        == (plan.problem, plan.network, job.framework, job.defence)
    ]
    trained = [record for record in like if isinstance(record, TrainingRecord) and record.status == "done"]
    attacked = [record for record in like if isinstance(record, EvaluationRecord) and record.battery == plan.battery]
    epochs = plan.epochs_of(job.defence, job.variant)
    kept, _ = hold_out(len(data.x_train), VALIDATION_SHARE, job.seed, data.groups_train)
    steps = epochs * len(kept)
    training = [one.seconds * steps / (one.nb_epochs * max(1, one.n_train)) for one in trained]
    finished = sum(len(shard.points) for shard in shards_of(plan, job) if store.shard(shard) is not None)
    attack = [one.seconds * (plan.n_examples - finished) / one.clean.n for one in attacked]

    costs = costs_like(plan)

    def recorded(kind: str) -> list[float]:
        if costs is None or job.variant is not None:
            return []
        seconds = costs.of(plan, job.framework, job.defence, kind, epochs, len(kept))
        return [] if seconds is None else [seconds]

    # An attack that waits for its training is not among what is left yet.
    attacks = [attack or recorded("attack")] if store.evaluation(job.evaluation_key) is None else []
    checks = [recorded("check")] if job.checks_key is not None and (state == "check" or recorded("check")) else []
    needed = [*([training or recorded("train")] if state == "train" else []), *attacks, *checks]
    return CellStatus(job.framework, job.title, state, sum(sum(one) / len(one) for one in needed) if all(needed) else None)


_STATES: dict[type, str] = {TrainTask: "train", AttackTask: "attack", CheckTask: "check"}


def _not_replaced(earlier: Sequence[CellRecord], records: Sequence[AnyRecord]) -> list[CellRecord]:
    """What a results file holds of other cells: a run of a few rows of a plan must not cost the others."""
    keys, cells = {one.key for one in records}, {cell_of(one) for one in records if not isinstance(one, MeasurementRecord)}
    return [one for one in earlier if one.key not in keys and cell_of(one) not in cells]


def _as_attacked(earlier: Sequence[CellRecord], records: Sequence[AnyRecord], title: str | None) -> list[AnyRecord]:
    """Each training as it was when its network was attacked: one that was only repeated for its weights is another network.

    Names are those of today, of the variant and, in `title`, of the table.
    """
    evaluations = {one.key: one for one in earlier if isinstance(one, EvaluationRecord)}
    adopted = {
        one.training_key
        for one in records
        if isinstance(one, EvaluationRecord) and as_published(one) == evaluations.get(one.key)
    }
    first = {one.key: one for one in earlier if isinstance(one, TrainingRecord) and one.key in adopted}
    return [
        msgspec.structs.replace(first[one.key], variant=one.variant, settings=titled(first[one.key].settings, title))
        if isinstance(one, TrainingRecord) and one.key in first
        else one
        for one in records
    ]


def _replaceable(path: Path, plan: ResolvedPlan, home: Path, data_sha256: str) -> list[CellRecord]:
    """The records of a results file that this plan may replace.

    Raises:
        ValueError: it is the run's own file, or holds records of another comparison, which would be lost.
    """
    if path.resolve() == (home / RECORDS).resolve():
        raise ValueError(
            f"`results` must not be the run's own file, whose records would lose weights and pictures, got {home / RECORDS}"
        )
    records: list[CellRecord] = []
    own = (plan.problem, plan.network, plan.n_train, plan.eps, plan.norm)
    for record in read_records(path):
        if isinstance(record, MeasurementRecord):
            raise ValueError(f"`results` must hold records of a plan, got a measurement ({record.name}) in {path}")
        found = (record.problem, record.network, record.n_train_limit, record.eps, record.norm)
        if found != own:
            raise ValueError(
                f"`results` must be new or hold records of this plan's problem, network, n_train, eps and norm {own}, "
                f"got {found} in {path}: those records would be lost, so choose another file"
            )
        if record.provenance.data_sha256 != data_sha256:
            raise ValueError(
                f"`results` must be new or hold records of the same data, SHA-256 {data_sha256[:12]}, "
                f"got {record.provenance.data_sha256[:12]} in {path}: those records would be lost, so choose another file"
            )
        if isinstance(record, EvaluationRecord):
            wanted, has = (plan.battery, plan.first_example), (record.battery, record.first_example)
            if wanted != has:
                raise ValueError(
                    f"`results` must be new or hold attacks of this plan's battery and first_example {wanted}, got {has} in "
                    f"{path}: those records would be lost, so choose another file"
                )
        records.append(record)
    return records
