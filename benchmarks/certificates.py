"""How many points each method of `certify` proves, and in how many seconds.

    python benchmarks/certificates.py benchmarks/plans/mnist-0.1.toml runs/mnist-0.1 entropic 0.1 0.15
    python benchmarks/certificates.py benchmarks/plans/mnist-0.1.toml runs/mnist-0.1 natural 0.01

The folder is that of a finished run of the plan, for the weights of one defence; the radii follow. One record for each
radius is appended to results/certificates.jsonl, with the boxes of the logits, that is IBP with nothing merged, beside them.
Seconds are those of the processor, of one thread where OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
from measuring import keep

from art_entropic import intervals
from art_entropic.backends.numpy import ops
from art_entropic.backends.registry import backend_for
from art_entropic.benchmark.cells import plan_jobs
from art_entropic.benchmark.data import for_framework
from art_entropic.benchmark.plan import read_plan, resolved
from art_entropic.benchmark.problems import build_classifier, load_data
from art_entropic.benchmark.store import Store
from art_entropic.certificates import BEST, METHODS, certificates
from art_entropic.evaluation.evaluate import evaluate

SEED, N = 0, 1000
N_CROWN = 100  # which alone takes long


def main(file: str, folder: str, defence: str, *radii: str) -> None:
    plan = resolved(read_plan(file))
    data, store = load_data(plan.problem), Store(Path(folder))
    (framework,) = plan.frameworks
    x, y = for_framework(data.x_test[:N], framework), data.y_test[:N]
    (job,) = (one for one in plan_jobs(plan, data.sha256) if (one.defence, one.variant, one.seed) == (defence, None, SEED))
    training = store.training(job.training_key)
    if training is None:
        raise ValueError(f"`folder` must hold the training of {defence!r}, got {folder!r} without it")
    classifier = build_classifier(plan.problem_spec, framework, 0, plan.network)
    backend_for(classifier).load_weights(store.home / str(training.weights))
    for eps in map(float, radii):
        one_hot, boxes = np.eye(classifier.nb_classes)[y], backend_for(classifier).logit_bounds(x, eps)
        values = {"boxes_of_logits_proved": float(intervals.certified(ops, boxes, one_hot).mean())}
        for method in (*METHODS, BEST):
            n, began = N_CROWN if method == "crown" else N, time.process_time()
            found = certificates(classifier, x[:n], y[:n], eps, method=method)
            seconds = 1000 * (time.process_time() - began) / n
            values |= {f"{method}_proved": float(found.proved.mean()), f"{method}_cpu_seconds_per_1000": seconds}
        values |= {f"best_by_{method}": float(proved.mean()) for method, proved in found.by.items()}
        attacked = evaluate(classifier, x, y, eps, battery="quick", checks=False, verbose=False)
        values |= {"clean": attacked.clean.value, "survive_quick": attacked.robust.value}
        keep(
            "certificates",
            values,
            {
                "plan": Path(file).stem,
                "defence": defence,
                "measure": str(training.settings.get("measure", "")),
                "eps": eps,
                "n": N,
                "n_crown": N_CROWN,
            },
            command=f"python benchmarks/certificates.py {file} {folder} {defence} {' '.join(radii)}",
            frameworks=plan.frameworks,
            data=data.sha256,
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
