"""MNIST at the large radius Linf 0.3, where the measures part: PyTorch, one seed, six epochs, the first 300 test points.

    ART_ENTROPIC_DATA=folder-with-mnist.npz python benchmarks/mnist.py [folder]

Interrupted, it goes on where it was. The records go to results/mnist.jsonl; the folder keeps weights and report.
"""

from __future__ import annotations

from pathlib import Path

from digits import run

from art_entropic.benchmark import BenchmarkPlan

PLAN = BenchmarkPlan(
    problem="mnist",
    frameworks=("pytorch",),
    defences=("natural", "entropic", "entropic_channel", "madry_pgd"),
    battery="standard",
    n_examples=300,
    nb_epochs=6,
)

if __name__ == "__main__":
    run(PLAN, Path(__file__).parent.parent / "results" / "mnist.jsonl")
