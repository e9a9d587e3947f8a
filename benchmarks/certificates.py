"""How many points each method of `certify` proves on a published network, and in how many seconds.

    python benchmarks/certificates.py mnist-0.1-entropic 0.1 0.15
    python benchmarks/certificates.py mnist-0.1-natural 0.01

One record for each radius is appended to results/certificates.jsonl, with the boxes of the logits, that is IBP with nothing
merged, beside them. Seconds are those of the processor, of one thread where OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import sys
import time

import numpy as np
from measuring import keep

from art_entropic import intervals
from art_entropic.backends.numpy import ops
from art_entropic.backends.registry import backend_for
from art_entropic.benchmark.data import for_framework
from art_entropic.benchmark.problems import load_data
from art_entropic.benchmark.published_networks import load_network, network_record
from art_entropic.certificates import BEST, METHODS, certificates
from art_entropic.evaluation.evaluate import evaluate

N = 1000
N_CROWN = 100  # which alone takes long


def main(name: str, *radii: str) -> None:
    record, classifier = network_record(name), load_network(name)
    data = load_data(record.problem)
    x, y = for_framework(data.x_test[:N], record.framework), data.y_test[:N]
    one_hot = np.eye(classifier.nb_classes)[y]
    for eps in map(float, radii):
        boxes = backend_for(classifier).logit_bounds(x, eps)
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
            {"network": name, "eps": eps, "n": N, "n_crown": N_CROWN},
            command=f"python benchmarks/certificates.py {name} {' '.join(radii)}",
            frameworks=(record.framework,),
            data=data.sha256,
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
