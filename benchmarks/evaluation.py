"""What an evaluation costs and finds: our standard battery beside AutoAttack of torchattacks, beside ART's attacks one after
another with ART's defaults, and both batteries beside adversarial examples that were planted.

    python benchmarks/evaluation.py benchmarks/plans/mnist-0.3.toml runs/mnist-0.3

The folder is that of a finished run of the plan, for its weights. One record per defence is appended to
results/evaluation.jsonl. Run it on a quiet machine: seconds are compared. For a plan on TensorFlow the same battery runs on
the same weights in both frameworks, into results/frameworks.jsonl.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from art_entropic.backends.registry import backend_for
from art_entropic.benchmark.cells import plan_jobs
from art_entropic.benchmark.data import for_framework
from art_entropic.benchmark.keys import digest
from art_entropic.benchmark.plan import read_plan, resolved
from art_entropic.benchmark.problems import Problem, build_classifier, load_data, to_pytorch
from art_entropic.benchmark.provenance import machine_provenance
from art_entropic.benchmark.store import Store
from art_entropic.evaluation.attacks import BATTERIES
from art_entropic.evaluation.evaluate import evaluate
from art_entropic.evaluation.planted import find_planted
from art_entropic.evaluation.result import Evaluation
from art_entropic.evaluation.target import Ball, Target
from art_entropic.records import MeasurementRecord, append_record

RESULTS = Path(__file__).parent.parent / "results"
DEFENCES = ("entropic", "madry_pgd")
N, N_PLAIN, N_PLANTED = 1000, 100, 100


def attacked(classifier: Any, x: np.ndarray, y: np.ndarray, eps: float, battery: str) -> tuple[Evaluation, float]:
    result = evaluate(classifier, x, y, eps, battery=battery, checks=False, verbose=False)
    if result.missing:
        raise RuntimeError(f"the battery {battery!r} must be complete, got {result.missing}")
    return result, sum(outcome.seconds for outcome in result.attacks)


def plain_seconds(classifier: Any, x: np.ndarray, y: np.ndarray, eps: float, nb_classes: int) -> float:
    """The attacks of the standard battery, each on every point, on ART's own estimator with ART's defaults.

    Steps and rounds are those of the battery; restarts and batches are ART's.
    """
    from art.attacks.evasion import AutoProjectedGradientDescent, ProjectedGradientDescent, SquareAttack

    began = time.perf_counter()
    apgd = AutoProjectedGradientDescent(classifier, eps=eps, eps_step=2 * eps, loss_type="cross_entropy", verbose=False)
    apgd.generate(x, y=y)
    apgd.set_params(targeted=True)
    for shift in range(1, nb_classes):
        apgd.generate(x, y=(y + shift) % nb_classes)
    pgd = ProjectedGradientDescent(classifier, eps=eps, eps_step=eps / 8, max_iter=20, num_random_init=10, verbose=False)
    pgd.generate(x, y=y)
    SquareAttack(classifier, eps=eps, max_iter=1000, verbose=False).generate(x, y=y)
    return time.perf_counter() - began


def beside_autoattack(classifier: Any, x: np.ndarray, y: np.ndarray, eps: float, problem: Problem) -> dict[str, float]:
    ours, our_seconds = attacked(classifier, x, y, eps, "standard")
    theirs, their_seconds = attacked(classifier, x, y, eps, "reference")
    plain = plain_seconds(classifier, x[:N_PLAIN], y[:N_PLAIN], eps, problem.nb_classes) * len(x) / N_PLAIN
    target, right = Target.of(classifier), x[ours.clean_correct][:N_PLANTED]
    values = {
        "robust_standard": ours.robust.value,
        "robust_autoattack": theirs.robust.value,
        "only_standard_breaks": float((theirs.survived & ~ours.survived).sum()),
        "only_autoattack_breaks": float((ours.survived & ~theirs.survived).sum()),
        "seconds_standard": our_seconds,
        "seconds_autoattack": their_seconds,
        "seconds_plain": plain,
        "ratio_to_autoattack": our_seconds / their_seconds,
        "speedup_over_plain": plain / our_seconds,
    }
    for battery in ("quick", "standard"):
        found = find_planted(target, right, Ball(eps, np.inf), BATTERIES[battery], seed=0)
        values |= {f"planted_found_{battery}": found.found / found.n, "planted_n": float(found.n)}
        values["planted_by_chance"] = found.by_chance / found.n
    return values


def beside_pytorch(classifier: Any, x: np.ndarray, y: np.ndarray, eps: float, twin: Any) -> dict[str, float]:
    """The standard battery on a TensorFlow classifier and on its twin in PyTorch, after one batch that compiles."""
    theirs_x = for_framework(x, "pytorch")
    for one, points in ((classifier, x), (twin, theirs_x)):
        attacked(one, points[:N_PLAIN], y[:N_PLAIN], eps, "standard")
    ours, our_seconds = attacked(classifier, x, y, eps, "standard")
    theirs, their_seconds = attacked(twin, theirs_x, y, eps, "standard")
    return {
        "robust_tensorflow": ours.robust.value,
        "robust_pytorch": theirs.robust.value,
        "only_tensorflow_breaks": float((theirs.survived & ~ours.survived).sum()),
        "only_pytorch_breaks": float((ours.survived & ~theirs.survived).sum()),
        "seconds_tensorflow": our_seconds,
        "seconds_pytorch": their_seconds,
        "ratio": our_seconds / their_seconds,
    }


def main(file: str, folder: str) -> None:
    plan = resolved(read_plan(file))
    data = load_data(plan.problem)
    store = Store(Path(folder))
    (framework,) = plan.frameworks
    x, y = for_framework(data.x_test[:N], framework), data.y_test[:N]
    name = "evaluation" if framework == "pytorch" else "frameworks"
    for job in plan_jobs(plan, data.sha256):
        training = store.training(job.training_key)
        if job.defence not in DEFENCES or job.variant or job.seed or training is None:
            continue
        classifier = build_classifier(plan.problem_spec, framework, 0, plan.network)
        backend_for(classifier).load_weights(store.home / str(training.weights))
        if framework == "pytorch":
            values = beside_autoattack(classifier, x, y, plan.eps, plan.problem_spec)
        else:
            values = beside_pytorch(classifier, x, y, plan.eps, to_pytorch(classifier, plan.problem_spec, plan.network))
        facts = {"plan": Path(file).stem, "defence": job.defence, "n": N, "n_plain": N_PLAIN, "eps": plan.eps}
        record = MeasurementRecord(
            key=digest(name=name, training=job.training_key, **facts),
            name=name,
            values={name: round(value, 4) for name, value in values.items()},
            settings=facts,
            provenance=machine_provenance(
                f"python benchmarks/evaluation.py {file} {folder}",
                ("pytorch", "tensorflow")[: 1 + (framework != "pytorch")],
                data.sha256,
            ),
        )
        append_record(RESULTS / f"{name}.jsonl", record)
        print(job.defence, record.values, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
