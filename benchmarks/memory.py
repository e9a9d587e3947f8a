"""Peak memory of one epoch of entropic retraining on MNIST, measured from outside in a fresh process per framework and measure.

    ART_ENTROPIC_DATA=folder-with-mnist.npz python benchmarks/memory.py

The peak includes the framework, ART and the data. One record per process is appended to results/memory.jsonl.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time

from measuring import keep

from art_entropic.backends.registry import installed_frameworks
from art_entropic.benchmark.data import for_framework
from art_entropic.benchmark.problems import PROBLEMS, build_classifier, load_data
from art_entropic.measures import MEASURES


def train(framework: str, measure: str) -> None:
    """One epoch in this process; appends the record of its own peak."""
    from art_entropic.trainer import EntropicTrainer

    problem, data = PROBLEMS["mnist"], load_data("mnist")
    classifier = build_classifier(problem, framework, seed=0)
    began = time.perf_counter()
    EntropicTrainer(classifier, 0.1, measure=measure, verbose=False).fit(
        for_framework(data.x_train, framework), data.y_train, batch_size=problem.batch_size, nb_epochs=1, seed=0
    )
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # kilobytes on Linux
    settings = {"framework": framework, "measure": measure, "n_train": len(data.x_train), "batch_size": problem.batch_size}
    values = {"peak_gib": peak, "epoch_seconds": round(seconds, 1)}
    keep("memory", values, settings, command="python benchmarks/memory.py", frameworks=(framework,), data=data.sha256)


def main() -> None:
    if len(sys.argv) == 3:
        train(*sys.argv[1:])
        return
    for framework in installed_frameworks():
        for measure in MEASURES:
            subprocess.run([sys.executable, __file__, framework, measure], check=True)


if __name__ == "__main__":
    main()
