"""Which task of a plan is next. Any `concurrent.futures.Executor` does them, one that does each at once included."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import dataclass

from art_entropic.benchmark.cells import Attack, Check, Job, Profile, Task, Train, jobs_of, shards_of
from art_entropic.benchmark.progress import RunProgress
from art_entropic.benchmark.runner import Done, Runner
from art_entropic.benchmark.worker import WorkRequest, work
from art_entropic.palette import NATURAL
from art_entropic.records import EvaluationRecord


@dataclass(frozen=True)
class _Node:
    """A task, what it gives and what it needs from others: keys of records, files of shards."""

    task: Task
    gives: frozenset[str]
    needs: frozenset[str]
    ends: bool = False  # its cell, or its profile: what progress counts


@dataclass
class Scheduler:
    """Does every task of a plan that is missing, each as soon as what it needs is there.

    An error ends the run; what has been finished by then is kept: a training outlives the attack that fails behind it.
    """

    runner: Runner
    executor: Executor
    jobs: Sequence[Job]
    progress: RunProgress

    def run(self, profiles: Sequence[Profile]) -> None:
        waiting = self._nodes(profiles)
        running: dict[Future[Done], _Node] = {}
        try:
            while waiting or running:
                node = _next(waiting, running.values())
                if node is not None:
                    waiting.remove(node)
                    self._start(node, running)
                self._collect([future for future in running if future.done()], running)
                if node is None and running:
                    self._collect(wait(running, return_when=FIRST_COMPLETED).done, running)
        except BaseException:
            for future in running:
                future.cancel()
            for future in running:
                if future.done() and not future.cancelled() and future.exception() is None:
                    self._keep(future.result())
            raise

    def _nodes(self, profiles: Sequence[Profile]) -> list[_Node]:
        """All tasks, cell by cell."""
        cells = [node for job in self.jobs for node in self._nodes_of(job)]
        return cells + [
            _node(profile, gives=[profile.key], needs=[job.training_key for job in profile.jobs], ends=True)
            for profile in profiles
        ]

    def _nodes_of(self, job: Job) -> list[_Node]:
        shards = shards_of(self.runner.plan, job)
        natural = [job.natural_key] if job.natural_key != job.training_key else []
        nodes = [_node(Train(job), gives=[job.training_key], needs=natural if job.starts_natural else [])]
        nodes += [_node(Attack(job, shard), gives=[shard.file], needs=[job.training_key]) for shard in shards]
        needs = [job.training_key, *(shard.file for shard in shards)]
        nodes.append(_node(Attack(job), gives=[job.evaluation_key], needs=needs, ends=job.checks_key is None))
        if job.checks_key is not None:  # they transfer from the natural network
            needs = [job.evaluation_key, job.training_key, *natural]
            nodes.append(_node(Check(job), gives=[job.checks_key], needs=needs, ends=True))
        return nodes

    def _start(self, node: _Node, running: dict[Future[Done], _Node]) -> None:
        task, runner = node.task, self.runner
        if self._is_done(task):
            self._advance(node)
        elif isinstance(task, Attack) and task.shard is None and shards_of(runner.plan, task.job):
            self._keep(runner.join(task.job))  # here, where records are written
            self._advance(node)
        else:
            self.progress.begin(task.title)
            running[self.executor.submit(work, self._request(task))] = node

    def _collect(self, done: Iterable[Future[Done]], running: dict[Future[Done], _Node]) -> None:
        for future in done:
            self._keep(future.result())
            self._advance(running.pop(future))

    def _keep(self, done: Done) -> None:
        if done.record is not None:
            self.runner.store.append(done.record)
        if isinstance(done.record, EvaluationRecord):
            (job,) = (job for job in self.jobs if job.evaluation_key == done.record.key)
            shutil.rmtree(self.runner.store.home / job.attacks, ignore_errors=True)
        self.progress.note(done.note)

    def _advance(self, node: _Node) -> None:
        if node.ends:
            self.progress.advance()

    def _request(self, task: Task) -> WorkRequest:
        runner = self.runner
        keys = [key for job in jobs_of(task) for key in (job.natural_key, job.training_key, job.evaluation_key)]
        home = str(runner.store.home.resolve())
        return WorkRequest(runner.plan, runner.source, home, task, tuple(runner.store.records(keys)))

    # -- what is left to do

    def _is_done(self, task: Task) -> bool:
        """Whether nothing is left of a task: it is done, or what it is about could not be trained."""
        store = self.runner.store
        if isinstance(task, Train):
            return not (self._must_train(task.job) or self._is_awaited(task.job))
        if isinstance(task, Attack):
            attacked = store.evaluation(task.job.evaluation_key) is not None
            return (
                attacked or not store.is_trained(task.job) or (task.shard is not None and store.shard(task.shard) is not None)
            )
        if isinstance(task, Check):
            return store.evaluation(task.job.evaluation_key) is None or store.checks(str(task.job.checks_key)) is not None
        return store.has(task.key) or not any(store.is_trained(job) for job in task.jobs)

    def _must_train(self, job: Job) -> bool:
        store = self.runner.store
        return not store.is_done(job) and store.lacks_weights(job.training_key)

    def _is_awaited(self, job: Job) -> bool:
        """Whether another cell needs the weights of this natural training, which came without them."""
        if job.defence != NATURAL or not self.runner.store.lacks_weights(job.training_key):
            return False
        followers = [other for other in self.jobs if other.starts_natural and other.natural_key == job.training_key]
        return any(self._must_train(other) for other in followers)


def _node(task: Task, *, gives: Sequence[str], needs: Sequence[str], ends: bool = False) -> _Node:
    return _Node(task, frozenset(gives), frozenset(needs), ends)


def _next(waiting: Sequence[_Node], running: Iterable[_Node]) -> _Node | None:
    """The first task that needs nothing which is still to come."""
    coming = frozenset[str]().union(*(node.gives for node in (*waiting, *running)))
    return next((node for node in waiting if not node.needs & coming), None)
