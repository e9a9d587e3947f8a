"""Seconds of an epoch on MNIST, of natural training, entropic retraining and ART's MadryPGD: same network, batches and process.

    python benchmarks/epoch_cost.py                          # on each framework that is installed, where ART computes
    python benchmarks/epoch_cost.py pytorch --device cuda

Each is trained as a benchmark trains it, all of it counted: the checks of the data, and what compiles in the first step. The
kinds take turns, so that a change in the machine's speed meets all alike; ratios are medians over turns. One record per
framework and device is appended to results/epoch_cost.jsonl.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from functools import partial

import numpy as np
from measuring import in_turns, keep

from art_entropic.backends.registry import framework_module, installed_frameworks, resolve_device
from art_entropic.benchmark.data import for_framework
from art_entropic.benchmark.defences import DEFENCES
from art_entropic.benchmark.problems import PROBLEMS, build_classifier, load_data

KINDS = {"natural": "natural", "interval": "entropic_interval", "channel": "entropic_channel", "madry_pgd": "madry_pgd"}
EPS, BATCH, WARM_UP = 0.3, 128, 5 * 128


def measure(framework: str, device: str | None, x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Seconds of an epoch of each kind, and its ratio to the natural one."""
    problem = PROBLEMS["mnist"]
    estimator = build_classifier(problem, framework, 0, device=device)
    arguments = {"nb_epochs": 1, "batch_size": BATCH, "learning_rate": problem.learning_rate, "seed": 0, "verbose": False}

    def train(name: str, n: int) -> None:
        DEFENCES[name].train(estimator, x[:n], y[:n], eps=EPS, **arguments)

    seconds = in_turns({kind: partial(train, name) for kind, name in KINDS.items()}, len(x), WARM_UP)
    values = {f"{kind}_s": float(np.median(spent)) for kind, spent in seconds.items()}
    values |= {f"{kind}_ratio": float(np.median(spent / seconds["natural"])) for kind, spent in seconds.items()}
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("framework", nargs="?", choices=installed_frameworks(), help="all that are installed, if none is named")
    parser.add_argument("--device", help="'auto', 'cpu' or 'cuda[:i]'; ART's choice if none is named")
    asked = parser.parse_args()
    data = load_data("mnist")
    for framework in (asked.framework,) if asked.framework else installed_frameworks():
        place = None if asked.device is None else resolve_device(framework, asked.device)
        values = measure(framework, place, for_framework(data.x_train, framework), data.y_train)
        device = framework_module(framework).device_title(place)
        settings = {"framework": framework, "device": device, "batch_size": BATCH, "images": len(data.x_train)}
        command = shlex.join(["python", "benchmarks/epoch_cost.py", *sys.argv[1:]])
        keep("epoch_cost", values, settings, command=command, frameworks=(framework,), data=data.sha256)


if __name__ == "__main__":
    main()
