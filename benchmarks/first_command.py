"""Measures the default comparison task by task, in CPU seconds, and writes the table that estimates are made of.

python benchmarks/first_command.py
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

from cost_tables import keep_costs

from art_entropic.benchmark.cells import AttackTask, CheckTask, ProfileTask, TrainTask
from art_entropic.benchmark.costs import Costs, cost_key
from art_entropic.benchmark.executors import side_by_side
from art_entropic.benchmark.plan import BenchmarkPlan, resolved
from art_entropic.benchmark.provenance import processor_name, timestamp
from art_entropic.benchmark.run import run_benchmark
from art_entropic.records import TrainingRecord

KINDS: dict[type, str] = {TrainTask: "train", AttackTask: "attack", CheckTask: "check", ProfileTask: "profile"}
_spent = 0.0


def timed(request: Any, tools: Any, work: Callable[..., Any]) -> tuple[Any, float]:
    """What a task gave, and the CPU seconds of its process since the one before, imports included."""
    global _spent
    before, done = _spent, work(request, tools)
    _spent = time.process_time()
    return done, _spent - before


class Timing(Executor):
    """Hands tasks on and keeps what each took."""

    def __init__(self, inner: Executor) -> None:
        self._inner = inner
        self.seconds: dict[str, float] = {}

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        request, tools = args
        outer: Future[Any] = Future()

        def finish(inner: Future[Any]) -> None:
            if inner.exception() is not None:
                outer.set_exception(inner.exception())
                return
            done, seconds = inner.result()
            task = request.task
            place = (task.framework, "") if isinstance(task, ProfileTask) else (task.job.framework, task.job.defence)
            self.seconds[cost_key(*place, KINDS[type(task)])] = round(seconds, 1)
            outer.set_result(done)

        self._inner.submit(timed, request, tools, fn).add_done_callback(finish)
        return outer


def main() -> None:
    plan = resolved(BenchmarkPlan())
    with side_by_side(plan.frameworks) as inner, tempfile.TemporaryDirectory() as folder:
        executor = Timing(inner)
        records = run_benchmark(plan, folder, executor=executor)
    trained = [record for record in records if isinstance(record, TrainingRecord) and record.status == "done"]
    costs = Costs(
        created=timestamp(),
        processor=processor_name(),
        problem=plan.problem,
        network=plan.network,
        battery=plan.battery,
        n_train=max(record.n_train for record in trained),
        n_examples=plan.n_examples,
        epochs={record.defence: record.nb_epochs for record in trained},
        seconds=dict(sorted(executor.seconds.items())),
    )
    keep_costs([costs])


if __name__ == "__main__":
    main()
