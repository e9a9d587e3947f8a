"""Which task of a plan is next. Any `concurrent.futures.Executor` does them, one that does each at once included."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import dataclass, replace

from art_entropic.benchmark.cells import AttackTask, CheckTask, Job, ProfileTask, Task, TrainTask, jobs_of, shards_of
from art_entropic.benchmark.progress import RunProgress
from art_entropic.benchmark.runner import Done, Runner
from art_entropic.benchmark.tasks import is_done, tasks_of
from art_entropic.benchmark.worker import WorkRequest, work


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

    def run(self, profiles: Sequence[ProfileTask]) -> None:
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
            for future, node in running.items():
                if future.done() and not future.cancelled() and future.exception() is None:
                    self._keep(node.task, future.result())
            raise

    def _nodes(self, profiles: Sequence[ProfileTask]) -> list[_Node]:
        """All tasks, cell by cell."""
        nodes = [node for job in self.jobs for node in self._nodes_of(job)]
        for profile in profiles:
            node = _node(profile, gives=[profile.key], needs=[job.training_key for job in profile.jobs])
            nodes.append(replace(node, ends=True))
        return nodes

    def _nodes_of(self, job: Job) -> list[_Node]:
        tasks = tasks_of(self.runner.plan, job)
        return [replace(self._node_of(task), ends=task is tasks[-1]) for task in tasks]

    def _node_of(self, task: Task) -> _Node:
        """What a task of a cell gives and needs."""
        (job,) = jobs_of(task)
        natural = [job.natural_key] if job.natural_key != job.training_key else []
        if isinstance(task, TrainTask):
            return _node(task, gives=[job.training_key], needs=natural if job.starts_natural else [])
        if isinstance(task, CheckTask):  # they transfer from the natural network
            return _node(task, gives=[str(job.checks_key)], needs=[job.evaluation_key, job.training_key, *natural])
        if isinstance(task, AttackTask) and task.shard is not None:
            return _node(task, gives=[task.shard.file], needs=[job.training_key])
        files = [shard.file for shard in shards_of(self.runner.plan, job)]
        return _node(task, gives=[job.evaluation_key], needs=[job.training_key, *files])

    def _start(self, node: _Node, running: dict[Future[Done], _Node]) -> None:
        task, runner = node.task, self.runner
        if is_done(task, runner.store, self.jobs):
            self._advance(node)
        elif isinstance(task, AttackTask) and task.shard is None and shards_of(runner.plan, task.job):
            self._keep(task, runner.join(task.job))  # here, where records are written
            self._advance(node)
        else:
            notice = runner.notice(task)
            notice.remove()  # of an earlier run, which was killed
            self.progress.begin(task.title, notice)
            running[self.executor.submit(work, self._request(task), runner.tools)] = node

    def _collect(self, done: Iterable[Future[Done]], running: dict[Future[Done], _Node]) -> None:
        for future in done:
            node = running.pop(future)
            self.progress.end(node.task.title)
            self._keep(node.task, future.result())
            self._advance(node)

    def _keep(self, task: Task, done: Done) -> None:
        if done.record is not None:
            self.runner.store.append(done.record)
        if isinstance(task, AttackTask) and task.shard is None:
            shutil.rmtree(self.runner.store.home / task.job.attacks, ignore_errors=True)
        self.progress.note(done.note)

    def _advance(self, node: _Node) -> None:
        if node.ends:
            self.progress.advance()

    def _request(self, task: Task) -> WorkRequest:
        runner = self.runner
        keys = [key for job in jobs_of(task) for key in (job.natural_key, job.training_key, job.evaluation_key)]
        home = str(runner.store.home.resolve())
        return WorkRequest(runner.plan, runner.source, home, task, tuple(runner.store.records(keys)))


def _node(task: Task, *, gives: Sequence[str], needs: Sequence[str]) -> _Node:
    return _Node(task, frozenset(gives), frozenset(needs))


def _next(waiting: Sequence[_Node], running: Iterable[_Node]) -> _Node | None:
    """The first task that needs nothing which is still to come."""
    coming = frozenset[str]().union(*(node.gives for node in (*waiting, *running)))
    return next((node for node in waiting if not node.needs & coming), None)
