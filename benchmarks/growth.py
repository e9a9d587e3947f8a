"""How the cost of entropic retraining grows with the data, with the network and with the batch.

    python benchmarks/growth.py                # every part, on each framework that is installed
    python benchmarks/growth.py data pytorch   # one of PARTS, on one framework

- data: seconds of an epoch on random images of MNIST's shape, and on four times as many.
- network: a step on a small CNN, on one four times as wide, on one with four convolutions in the middle in place of one, in
  milliseconds, beside the multiplications of a natural pass. Kinds and networks take turns, as in step_cost.py.
- memory: what `fit` takes beyond the data and what one batch left behind, in a fresh process for each case.

One record per part and framework is appended to results/growth.jsonl.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from measuring import NATURAL, entropic, keep, timed

from art_entropic.backends.architecture import Architecture, Conv, Dense, Flatten
from art_entropic.backends.protocol import Batch, Controls, Step
from art_entropic.backends.registry import backend_for, framework_module, installed_frameworks
from art_entropic.benchmark.data import for_framework
from art_entropic.choosing import AUTOMATIC
from art_entropic.objective import natural_objective
from art_entropic.trainer import EntropicTrainer

SHAPE, CLASSES, BATCH = (28, 28, 1), 10, 128
TURNS, BLOCK, WARM_UP = 5, 8, 2
N_DATA, N_MEMORY = 3200, 12800


def network(width: int = 1, depth: int = 1) -> Architecture:
    """The CNN of the small MNIST tables without its stride, `width` times as wide, `depth` times as deep in the middle."""
    middle = (Conv(16 * width, 3, padding=1) for _ in range(depth))
    return (Conv(16 * width, 4, stride=2, padding=1), *middle, Flatten(), Dense(64 * width), Dense(CLASSES, None))


def multiplications(architecture: Architecture) -> float:
    """Of a natural pass of one image, in millions."""
    (height, width, channels), total, features = SHAPE, 0, 0
    for layer in architecture:
        match layer:
            case Conv(filters, kernel, stride, padding):
                height, width = ((side + 2 * padding - kernel) // stride + 1 for side in (height, width))
                total += height * width * filters * kernel**2 * channels
                channels, features = filters, height * width * filters
            case Dense(units):
                total += features * units
                features = units
    return total / 1e6


def classifier(framework: str, architecture: Architecture) -> Any:
    return framework_module(framework).build_classifier(
        architecture, input_shape=SHAPE, nb_classes=CLASSES, clip_values=(0.0, 1.0), learning_rate=1e-3, seed=0
    )


def images(framework: str, n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return for_framework(rng.random((n, *SHAPE), np.float32), framework), rng.integers(0, CLASSES, n)


def fit(
    framework: str, measure: str, n: int, batch: int = BATCH, architecture: Architecture | None = None
) -> Callable[[], object]:
    x, y = images(framework, n)
    trainer = EntropicTrainer(classifier(framework, architecture or network()), 0.1, measure=measure, verbose=False)
    return partial(trainer.fit, x, y, batch_size=batch, nb_epochs=1, seed=0)


# ----------------------------------------------------------------------------------------------------------------- parts


def growth_with_data(framework: str) -> dict[str, float]:
    """Seconds of an epoch; the compilation of TensorFlow's step is in both, and is timed apart by an epoch of one batch."""
    values = {}
    for measure in AUTOMATIC:
        acts = {n: fit(framework, measure, n) for n in (BATCH, N_DATA, 4 * N_DATA)}
        seconds: dict[int, list[float]] = {n: [] for n in acts}
        for turn in range(4):
            for n, act in acts.items():
                spent = timed(act)
                if turn:
                    seconds[n].append(spent)
        once, little, much = (float(np.median(seconds[n])) for n in acts)
        each = [(seconds[4 * N_DATA][i] - seconds[BATCH][i]) / (seconds[N_DATA][i] - seconds[BATCH][i]) for i in range(3)]
        batches = (4 * N_DATA - BATCH) / (N_DATA - BATCH)
        values |= {f"{measure}_one_batch_s": once, f"{measure}_s": little, f"{measure}_4x_s": much}
        # Against the ratio of the batches beyond the first: 1 is linear.
        values[f"{measure}_4x_of_linear"] = float(np.median(each)) / batches
    return values


NETWORKS = {"base": network(), "4x_width": network(width=4), "4x_depth": network(depth=4)}


def growth_with_network(framework: str) -> dict[str, float]:
    """Milliseconds of a natural and of an entropic step on each of NETWORKS, and their ratio, medians over turns."""
    x, y = images(framework, BATCH)
    rng = np.random.default_rng(1)
    noise = rng.random(x.shape, np.float32) * 2 - 1
    batch = Batch(x, np.eye(CLASSES, dtype=np.float32)[y], noise, rng.random(BATCH, np.float32))
    kinds: dict[str, tuple[Any, Controls]] = {"natural": (natural_objective, NATURAL)}
    kinds |= {name: entropic(name, 0.1) for name in AUTOMATIC}
    steps: dict[tuple[str, str], tuple[Step, Controls]] = {}
    for label, architecture in NETWORKS.items():
        backend = backend_for(classifier(framework, architecture))
        with backend.training(0):
            for kind, (objective, controls) in kinds.items():
                steps[label, kind] = backend.training_step(objective), controls
    medians: dict[tuple[str, str], list[float]] = {place: [] for place in steps}
    for turn in range(TURNS + 1):
        for place, (step, controls) in steps.items():
            spent = [timed(partial(step, batch, controls)) for _ in range(WARM_UP + BLOCK)]
            if turn:
                medians[place].append(float(np.median(spent[WARM_UP:])))
    values = {f"{label}_{kind}_ms": float(np.median(spent)) * 1e3 for (label, kind), spent in medians.items()}
    for label, architecture in NETWORKS.items():
        values[f"{label}_multiplications_m"] = multiplications(architecture)
        natural = np.array(medians[label, "natural"])
        values |= {f"{label}_{kind}_ratio": float(np.median(np.array(medians[label, kind]) / natural)) for kind in AUTOMATIC}
    return values


MEMORY_CASES = {
    "base": {"n": N_MEMORY, "batch": BATCH},
    "4x_data": {"n": 4 * N_MEMORY, "batch": BATCH},
    "4x_batch": {"n": N_MEMORY, "batch": 4 * BATCH},
    "4x_width": {"n": N_MEMORY, "batch": BATCH, "width": 4},
}


def growth_of_memory(framework: str) -> dict[str, float]:
    """Mebibytes at the peak of `fit` beyond what stood before it: data, frameworks, and a network that saw one batch of 16."""
    values = {}
    for measure in AUTOMATIC:
        for label, case in MEMORY_CASES.items():
            command = [sys.executable, __file__, "case", json.dumps({**case, "framework": framework, "measure": measure})]
            told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            values[f"{measure}_{label}_mib"] = float(told.splitlines()[-1])
    return values


def memory_case(framework: str, measure: str, n: int, batch: int, width: int = 1) -> float:
    act = fit(framework, measure, n, batch, network(width))
    fit(framework, measure, 16, 16, network())()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins again. Source: proc_pid_clear_refs(5)
    before = memory("VmRSS")
    act()
    return memory("VmHWM") - before


def memory(field: str) -> float:
    """Mebibytes of a field of proc_pid_status(5), on Linux."""
    (line,) = (line for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines() if line.startswith(field))
    return float(line.split()[1]) / 2**10


PARTS = {"data": growth_with_data, "network": growth_with_network, "memory": growth_of_memory}


def main() -> None:
    if sys.argv[1:2] == ["case"]:
        print(memory_case(**json.loads(sys.argv[2])))
        return
    parts, frameworks = sys.argv[1:2] or PARTS, sys.argv[2:3] or installed_frameworks()
    for part in parts:
        for framework in frameworks:
            values = PARTS[part](framework)
            settings = {"part": part, "framework": framework, "batch_size": BATCH}
            keep("growth", values, settings, command="python benchmarks/growth.py", frameworks=(framework,))


if __name__ == "__main__":
    main()
