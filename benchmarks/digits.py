"""The table of the README: every defence on scikit-learn's digits, three seeds, both frameworks, all 500 test points.

    python benchmarks/digits.py [folder]

Interrupted, it goes on where it was. The records go to results/digits.jsonl; the folder keeps weights and report.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from art_entropic.benchmark import BenchmarkPlan, run_benchmark
from art_entropic.report import RECORDS, print_table, write_report

PLAN = BenchmarkPlan(problem="digits", battery="standard", seeds=(0, 1, 2), n_examples=500)


def run(plan: BenchmarkPlan, results: Path) -> None:
    """Run a plan in the folder that the command line names, and keep its records."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("runs") / results.stem
    print_table(run_benchmark(plan, folder), sys.stdout)
    write_report(folder)
    results.parent.mkdir(exist_ok=True)
    shutil.copyfile(folder / RECORDS, results)


if __name__ == "__main__":
    run(PLAN, Path(__file__).parent.parent / "results" / "digits.jsonl")
