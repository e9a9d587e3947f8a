"""What is left to do of a plan: the one rule that a run follows and a dry run tells."""

from __future__ import annotations

from collections.abc import Sequence

from art_entropic.benchmark.cells import AttackTask, CheckTask, Job, Task, TrainTask, shards_of
from art_entropic.benchmark.plan import ResolvedPlan
from art_entropic.benchmark.store import Store
from art_entropic.palette import NATURAL


def tasks_of(plan: ResolvedPlan, job: Job) -> list[Task]:
    """All tasks of a cell, in an order in which they can be done."""
    shards = [AttackTask(job, shard) for shard in shards_of(plan, job)]
    checks = [] if job.checks_key is None else [CheckTask(job)]
    return [TrainTask(job), *shards, AttackTask(job), *checks]


def is_done(task: Task, store: Store, jobs: Sequence[Job]) -> bool:
    """Whether nothing is left of a task: it is done, or what it is about could not be trained.

    Args:
        jobs: all cells of the plan, since a natural training is done for others too.
    """
    if isinstance(task, TrainTask):
        return not (_must_train(task.job, store) or _is_awaited(task.job, store, jobs))
    if isinstance(task, AttackTask):
        if store.evaluation(task.job.evaluation_key) is not None or not store.is_trained(task.job):
            return True
        return task.shard is not None and store.shard(task.shard) is not None
    if isinstance(task, CheckTask):
        return store.evaluation(task.job.evaluation_key) is None or store.checks(str(task.job.checks_key)) is not None
    return store.has(task.key) or not any(store.is_trained(job) for job in task.jobs)


def _must_train(job: Job, store: Store) -> bool:
    return not store.is_done(job) and store.lacks_weights(job.training_key)


def _is_awaited(job: Job, store: Store, jobs: Sequence[Job]) -> bool:
    """Whether another cell needs the weights of this natural training, which came without them: to start, or to transfer."""
    if job.defence != NATURAL or not store.lacks_weights(job.training_key):
        return False
    others = [other for other in jobs if other is not job and other.natural_key == job.training_key]
    return any((other.starts_natural and _must_train(other, store)) or _lacks_checks(other, store) for other in others)


def _lacks_checks(job: Job, store: Store) -> bool:
    training = store.training(job.training_key)
    failed = training is not None and training.status != "done"
    return job.checks_key is not None and store.checks(job.checks_key) is None and not failed
