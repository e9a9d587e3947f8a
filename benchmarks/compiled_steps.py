"""Cost of one compiled training step against the same step without compiling: PyTorch, same batch, same process.

    python benchmarks/compiled_steps.py

Network, batch and turns are those of benchmarks/step_cost.py. The first compiled step, which compiles, is timed by itself. One
record is appended to results/compiled_steps.jsonl.
"""

from __future__ import annotations

import os
import tempfile
from functools import partial

import numpy as np
from measuring import entropic, keep, timed
from step_cost import BATCH, BLOCK, TURNS, WARM_UP, random_batch

from art_entropic.backends.registry import backend_for
from art_entropic.benchmark.problems import PROBLEMS, build_classifier
from art_entropic.benchmark.provenance import Stopwatch

READ = ("interval", "channel")


def measure(name: str) -> dict[str, float]:
    """Milliseconds of a step of each kind, the ratio of compiled to plain, and the seconds of compiling."""
    backend = backend_for(build_classifier(PROBLEMS["mnist"], "pytorch", seed=0))
    batch, (objective, controls) = random_batch("pytorch"), entropic(name, 0.1)
    with backend.training(0):
        plain, compiled = backend.training_step(objective), backend.training_step(objective, compile=True)
        first = timed(partial(compiled, batch, controls))
        medians = []
        for _ in range(TURNS):
            blocks = [[timed(partial(step, batch, controls)) for _ in range(WARM_UP + BLOCK)] for step in (plain, compiled)]
            medians.append([float(np.median(block[WARM_UP:])) for block in blocks])
    spent = np.array(medians)
    milliseconds = dict(zip((f"{name}_ms", f"{name}_compiled_ms"), (np.median(spent, axis=0) * 1e3).tolist(), strict=True))
    ratio = float(np.median(spent[:, 1] / spent[:, 0]))
    return milliseconds | {f"{name}_compiled_ratio": ratio, f"{name}_first_step_s": first}


def main() -> None:
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as empty:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = empty  # what another run compiled is no part of the cost
        values = {key: value for name in READ for key, value in measure(name).items()}
    load = watch.stop().other_load
    values |= {} if load is None else {"other_load": load}  # the share of this process's cores that others kept busy
    settings = {"framework": "pytorch", "batch_size": BATCH, "steps": TURNS * BLOCK, "network": "mnist"}
    keep("compiled_steps", values, settings, command="python benchmarks/compiled_steps.py", frameworks=("pytorch",))


if __name__ == "__main__":
    main()
