"""Seconds of training of each defence on a published network, with nothing else running: what "equal time" rests on.

    python benchmarks/training_cost.py mnist small 0.3 interval        # problem, network, radius, measure
    python benchmarks/training_cost.py cifar10 small 8/255 channel

Each trains the same network for an epoch of some images as a benchmark trains it, in one thread, checks and augmentation left
out. Beside ART's trainers stands a seven-step PGD loop in plain PyTorch, since ART's carries a cost of its own. Defences take
turns, so that a change in the machine's speed meets all alike; ratios are medians over turns. One record per network and radius
is appended to results/training_cost.jsonl.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
import torch.nn.functional as F
from measuring import in_turns, keep

from art_entropic.benchmark.course import PGD_STEPS, pgd_step
from art_entropic.benchmark.data import CLIP_VALUES, for_framework
from art_entropic.benchmark.defences import DEFENCES
from art_entropic.benchmark.problems import PROBLEMS, build_classifier, load_data
from art_entropic.choosing import AUTOMATIC

KINDS = ("natural", "entropic", "fbf", "madry_pgd", "trades")
LOOP = "pgd_loop"
IMAGES, WARM_UP = 3200, 640


def plain_pgd(estimator: Any, x: np.ndarray, y: np.ndarray, eps: float, batch_size: int) -> None:
    """An epoch of adversarial training with PGD, written as its papers write it."""
    model, optimizer = estimator.model, estimator.optimizer
    model.train()
    low, high = CLIP_VALUES
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(x)))
    points, labels = torch.from_numpy(x), torch.from_numpy(y)
    for index in order.split(batch_size):
        natural, target = points[index], labels[index]
        moved = (natural + torch.empty_like(natural).uniform_(-eps, eps)).clamp(low, high)
        for _ in range(PGD_STEPS):
            moved.requires_grad_(True)
            (gradient,) = torch.autograd.grad(F.cross_entropy(model(moved), target), moved)
            moved = moved.detach() + pgd_step(eps) * gradient.sign()
            moved = torch.minimum(torch.maximum(moved, natural - eps), natural + eps).clamp(low, high)
        optimizer.zero_grad()
        F.cross_entropy(model(moved), target).backward()
        optimizer.step()
    model.eval()


def trainings(
    problem_name: str, network: str, eps: float, measure: str, x: np.ndarray, y: np.ndarray
) -> dict[str, Callable[[int], object]]:
    """By name, what trains for one epoch on the first n images."""
    problem = PROBLEMS[problem_name]
    estimator = build_classifier(problem, "pytorch", 0, network)
    usual = {"nb_epochs": 1, "batch_size": problem.batch_size, "learning_rate": 1e-4, "seed": 0, "verbose": False}

    def train(name: str, n: int) -> None:
        DEFENCES[name].train(estimator, x[:n], y[:n], eps=eps, **usual)

    found: dict[str, Callable[[int], object]] = {name: partial(train, name) for name in KINDS}
    found["entropic"] = partial(train, f"entropic_{measure}")
    found[LOOP] = lambda n: plain_pgd(estimator, x[:n], y[:n], eps, problem.batch_size)
    return found


def costs(kinds: dict[str, Callable[[int], object]]) -> dict[str, float]:
    """Milliseconds an image of each kind, and the ratio of ours to each."""
    seconds = in_turns(kinds, IMAGES, WARM_UP)
    values = {f"{kind}_ms": float(np.median(spent)) / IMAGES * 1000 for kind, spent in seconds.items()}
    ours = seconds["entropic"]
    return values | {f"of_{kind}": float(np.median(ours / seconds[kind])) for kind in kinds if kind != "entropic"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problem", choices=PROBLEMS)
    parser.add_argument("network")
    parser.add_argument("eps", type=lambda text: float(Fraction(text)))
    parser.add_argument("measure", choices=AUTOMATIC, help="what EntropicTrainer chooses there")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    data = load_data(asked.problem)
    x, y = for_framework(data.x_train[:IMAGES], "pytorch"), data.y_train[:IMAGES]
    values = costs(trainings(asked.problem, asked.network, asked.eps, asked.measure, x, y))
    settings = {
        "problem": asked.problem, "network": asked.network, "eps": asked.eps, "measure": asked.measure, "images": len(x),
        "threads": 1,
    }  # fmt: skip
    command = shlex.join(["python", "benchmarks/training_cost.py", *sys.argv[1:]])
    keep("training_cost", values, settings, command=command, frameworks=("pytorch",), data=data.sha256)


if __name__ == "__main__":
    main()
