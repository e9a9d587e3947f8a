"""Cost of one compiled training step against the same step without compiling: PyTorch, same batch, same process.

    python benchmarks/compiled_steps.py

Network, batch and turns are those of benchmarks/step_cost.py. The first compiled step, which compiles, is timed by itself. One
record is appended to results/compiled_steps.jsonl.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from step_cost import BATCH, BLOCK, TURNS, WARM_UP, random_batch, timed

from art_entropic.backends import Controls, backend_for
from art_entropic.benchmark import Stopwatch, digest, machine_provenance
from art_entropic.information import MEASURES
from art_entropic.objective import EntropicObjective
from art_entropic.problems import PROBLEMS, build_classifier
from art_entropic.records import MeasurementRecord, append_record

RESULTS = Path(__file__).parent.parent / "results" / "compiled_steps.jsonl"
READ = ("interval", "channel")


def measure(name: str) -> dict[str, float]:
    """Milliseconds of a step of each kind, the ratio of compiled to plain, and the seconds of compiling."""
    backend = backend_for(build_classifier(PROBLEMS["mnist"], "pytorch", seed=0))
    row, batch = MEASURES[name], random_batch("pytorch")
    objective, controls = EntropicObjective(name, row.resolution, read_share=row.read_share), Controls(0.1, row.k, row.beta)
    with backend.training(0):
        plain, compiled = backend.training_step(objective), backend.training_step(objective, compile=True)
        first = timed(compiled, batch, controls)
        medians = []
        for _ in range(TURNS):
            blocks = [[timed(step, batch, controls) for _ in range(WARM_UP + BLOCK)] for step in (plain, compiled)]
            medians.append([float(np.median(block[WARM_UP:])) for block in blocks])
    spent = np.array(medians)
    milliseconds = dict(zip((f"{name}_ms", f"{name}_compiled_ms"), (np.median(spent, axis=0) * 1e3).tolist(), strict=True))
    ratio = float(np.median(spent[:, 1] / spent[:, 0]))
    return milliseconds | {f"{name}_compiled_ratio": ratio, f"{name}_first_step_s": first}


def main() -> None:
    watch = Stopwatch()
    values = {key: round(value, 3) for name in READ for key, value in measure(name).items()}
    load = watch.stop().other_load
    values |= {} if load is None else {"other_load": load}  # the share of this process's cores that others kept busy
    settings = {"framework": "pytorch", "batch_size": BATCH, "steps": TURNS * BLOCK, "network": "mnist"}
    command = "python benchmarks/compiled_steps.py"
    record = MeasurementRecord(
        key=digest(name="compiled_steps", **settings),
        name="compiled_steps",
        values=values,
        settings=settings,
        provenance=machine_provenance(command, ("pytorch",), "random images, seed 0"),
    )
    append_record(RESULTS, record)
    print(values)


if __name__ == "__main__":
    main()
