"""Cost of one training step of each measure against one natural step: same backend, same batch, same process.

    python benchmarks/step_cost.py

The network is the MNIST CNN of PROBLEMS, the batch 128 random images. The kinds take turns in short blocks: steps follow each
other as in training, and a change in the machine's speed meets all kinds alike. The ratio is the median over turns of the ratio
of the blocks' medians. One record per framework is appended to results/step_cost.jsonl.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from measuring import NATURAL, entropic, keep, timed

from art_entropic.backends.protocol import Batch
from art_entropic.backends.registry import backend_for, installed_frameworks
from art_entropic.benchmark.data import for_framework
from art_entropic.benchmark.problems import PROBLEMS, build_classifier
from art_entropic.measures import MEASURES
from art_entropic.objective import natural_objective

BATCH, TURNS, BLOCK, WARM_UP = 128, 7, 30, 5


def random_batch(framework: str) -> Batch:
    rng = np.random.default_rng(0)
    shape = (BATCH, *PROBLEMS["mnist"].input_shape)
    x = for_framework(rng.random(shape, np.float32), framework)
    noise = for_framework(rng.random(shape, np.float32) * 2 - 1, framework)
    return Batch(x, np.eye(10, dtype=np.float32)[rng.integers(0, 10, BATCH)], noise, rng.random(BATCH, np.float32))


def measure(framework: str) -> dict[str, float]:
    """Milliseconds of a step of each kind, and its ratio to the natural one."""
    problem = PROBLEMS["mnist"]
    classifier = build_classifier(problem, framework, seed=0)
    backend = backend_for(classifier)
    batch = random_batch(framework)
    kinds = {"natural": (natural_objective, NATURAL), **{name: entropic(name, 0.1) for name in MEASURES}}
    medians: dict[str, list[float]] = {name: [] for name in kinds}
    with backend.training(0):
        steps = {name: (backend.training_step(objective), controls) for name, (objective, controls) in kinds.items()}
        for turn in range(TURNS + 1):
            for name, (step, controls) in steps.items():
                seconds = [timed(partial(step, batch, controls)) for _ in range(WARM_UP + BLOCK)]
                if turn:  # the first turn traces and fills caches
                    medians[name].append(float(np.median(seconds[WARM_UP:])))
    natural = np.array(medians["natural"])
    values = {f"{name}_ms": float(np.median(spent) * 1e3) for name, spent in medians.items()}
    return values | {f"{name}_ratio": float(np.median(np.array(medians[name]) / natural)) for name in MEASURES}


def main() -> None:
    for framework in installed_frameworks():
        values = measure(framework)
        settings = {"framework": framework, "batch_size": BATCH, "steps": TURNS * BLOCK, "network": "mnist"}
        keep("step_cost", values, settings, command="python benchmarks/step_cost.py", frameworks=(framework,))


if __name__ == "__main__":
    main()
