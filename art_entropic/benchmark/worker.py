"""Where a task runs: in this process, in another one, or on another machine.

The process that calls `run_benchmark` alone writes records. Workers read and write weights, finished attacks and finished
shards in the folder of the run, which all must see: on one machine any folder, on a cluster one on a shared file system."""

from __future__ import annotations

import pickle
import platform
from dataclasses import dataclass
from pathlib import Path

from art_entropic.benchmark.cells import Task
from art_entropic.benchmark.data import Data
from art_entropic.benchmark.plan import ResolvedPlan, check_device
from art_entropic.benchmark.provenance import package_versions, provenance
from art_entropic.benchmark.runner import Done, Runner, shared_data
from art_entropic.benchmark.store import Store
from art_entropic.benchmark.tools import Tools
from art_entropic.records import AnyRecord, Provenance


@dataclass(frozen=True)
class WorkRequest:
    """A task, with all that a worker needs to know to do it."""

    plan: ResolvedPlan
    source: Provenance  # of the process that asked
    home: str
    task: Task
    known: tuple[AnyRecord, ...]  # of its cells, and of the natural trainings that these start from


def work(request: WorkRequest, tools: Tools) -> Done:
    """Do a task, in a worker.

    Raises:
        ValueError: this worker has other package versions, or other data, than the process that asked.
        Exception: what the task raised, or its text where it cannot travel to another process.
    """
    plan = request.plan
    _check_versions(request)
    check_device(plan)
    data = _data(plan, tools)
    if data.sha256 != request.source.data_sha256:
        raise ValueError(
            f"the worker on {platform.node()} has different data for {plan.problem!r}: SHA-256 {data.sha256[:12]}, the "
            f"client has {request.source.data_sha256[:12]}"
        )
    runner = Runner(plan, data, Store(Path(request.home), request.known), provenance(plan, data.sha256), tools)
    try:
        return runner.do(request.task)
    except Exception as error:
        sendable = _sendable(error)
        if sendable is error:
            raise
        raise sendable from error


def _sendable(error: Exception) -> Exception:
    """The error itself, or its text where it cannot travel to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _check_versions(request: WorkRequest) -> None:
    here = package_versions(request.plan.frameworks)
    other = [
        f"{package} {here.get(package, 'not installed')} (client: {version})"
        for package, version in request.source.versions.items()
        if here.get(package) != version
    ]
    if other:
        raise ValueError(
            f"the worker on {platform.node()} must have the package versions of the client, got {', '.join(other)}"
        )


_cached: dict[tuple[str, int | None], Data] = {}


def hold_data(plan: ResolvedPlan, data: Data) -> None:
    """Keep the data of a plan for the tasks that run in this process."""
    _cached[plan.problem, plan.n_train] = data


def _data(plan: ResolvedPlan, tools: Tools) -> Data:
    """The data, read once a process."""
    if (plan.problem, plan.n_train) not in _cached:
        hold_data(plan, shared_data(plan, tools))
    return _cached[plan.problem, plan.n_train]
