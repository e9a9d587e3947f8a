"""A run in shards that dies in the attack which its second argument counts: python split_victim.py FOLDER NUMBER."""

import os
import signal
import sys
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
from world import SMALL, World

from art_entropic.benchmark.data import for_framework
from art_entropic.records import Accuracy, Findings, PointsRecord, pack


class Victim(World):
    asked: list[tuple[int, int]] = []  # noqa: RUF012

    def evaluate(self, estimator: Any, x: np.ndarray, *_: Any, **__: Any) -> Any:
        (start,) = np.flatnonzero((for_framework(self.data.x_test, "pytorch") == x[0]).all((1, 2, 3)))
        self.asked.append((int(start), int(start) + len(x)))
        if len(self.asked) == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        bits = np.arange(*self.asked[-1]) % 3 == 0
        share = Accuracy(correct=int(bits.sum()), n=len(x), low=0.1, high=0.9)
        points = PointsRecord(clean=pack(bits), robust=pack(bits))
        found = Findings(clean=share, robust=share, attacks=[], distances=[], points=points, seconds=0.0)
        return SimpleNamespace(findings=lambda: found, seconds=found.seconds)


world = Victim()
plan = msgspec.structs.replace(SMALL, frameworks=("pytorch",), defences=("natural",), points_per_shard=3)
records = world.run(sys.argv[1], plan)
print(world.asked, records[1].points.robust)
