"""A run whose cells take no time, to be killed at any moment: python victim.py FOLDER."""

import sys
import time
from pathlib import Path
from typing import Any

import msgspec
from world import SMALL, World

from art_entropic.benchmark.cells import plan_jobs
from art_entropic.benchmark.plan import resolved


class Victim(World):
    def framework_module(self, framework: str) -> Any:
        time.sleep(0.005)  # asked for the device of a record: what it is about is done, and not yet told
        return super().framework_module(framework)

    def evaluate(self, estimator: Any, *given: Any, **options: Any) -> Any:
        job = jobs[options["folder"].name]
        start = [f"init-{job.seed}", "natural"]
        assert estimator.weights == (start if job.defence == "natural" else [*start, job.defence])
        return super().evaluate(estimator, *given, **options)


plan = msgspec.structs.replace(SMALL, frameworks=("pytorch",), defences=("entropic", "fbf", "trades"), seeds=tuple(range(40)))
world = Victim()
jobs = {Path(job.attacks).name: job for job in plan_jobs(resolved(plan, world), world.data.sha256)}
print("ready", flush=True)
print(len(world.run(sys.argv[1], plan)), flush=True)
