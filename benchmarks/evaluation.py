"""What an evaluation costs and finds: our standard battery beside AutoAttack of torchattacks, beside ART's attacks one after
another with ART's defaults, and both batteries beside adversarial examples that were planted.

    python benchmarks/evaluation.py benchmarks/plans/mnist-0.3.toml runs/mnist-0.3

The folder is that of a finished run of the plan, for its weights. One record per defence is appended to
results/evaluation.jsonl, and one to results/evaluation_cost.jsonl that holds the whole of `evaluate`, with checks and without,
beside torchattacks and ART used alone, on an undefended and on a certified network. Run it on a quiet machine: seconds are
compared. For a plan on TensorFlow the same battery runs on the same weights in both frameworks, into results/frameworks.jsonl.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from measuring import RESULTS, keep

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

DEFENCES = ("entropic", "madry_pgd")
COMPARED = {"undefended": "natural", "certified": "entropic"}
SEED = 0
N, N_PLAIN, N_PLANTED, BATCH = 1000, 100, 100, 250


def attacked(classifier: Any, x: np.ndarray, y: np.ndarray, eps: float, battery: str) -> tuple[Evaluation, float]:
    result = evaluate(classifier, x, y, eps, battery=battery, checks=False, verbose=False)
    if result.missing:
        raise RuntimeError(f"the battery {battery!r} must be complete, got {result.missing}")
    return result, sum(outcome.seconds for outcome in result.attacks)


def plainly(classifier: Any, x: np.ndarray, y: np.ndarray, eps: float, nb_classes: int) -> tuple[np.ndarray, float]:
    """The attacks of the standard battery, each on every point, on ART's own estimator with ART's defaults.

    Steps and rounds are those of the battery; restarts and batches are ART's. Returns which points survive all, and seconds.
    """
    from art.attacks.evasion import AutoProjectedGradientDescent, ProjectedGradientDescent, SquareAttack

    began = time.perf_counter()
    apgd = AutoProjectedGradientDescent(classifier, eps=eps, eps_step=2 * eps, loss_type="cross_entropy", verbose=False)
    found = [apgd.generate(x, y=y)]
    apgd.set_params(targeted=True)
    found += [apgd.generate(x, y=(y + shift) % nb_classes) for shift in range(1, nb_classes)]
    pgd = ProjectedGradientDescent(classifier, eps=eps, eps_step=eps / 8, max_iter=20, num_random_init=10, verbose=False)
    found.append(pgd.generate(x, y=y))
    found.append(SquareAttack(classifier, eps=eps, max_iter=1000, verbose=False).generate(x, y=y))
    seconds = time.perf_counter() - began
    return np.all([classifier.predict(one).argmax(axis=1) == y for one in (x, *found)], axis=0), seconds


def torchattacks_alone(classifier: Any, x: np.ndarray, y: np.ndarray, eps: float) -> tuple[np.ndarray, float]:
    """Its standard AutoAttack as its users call it, batch by batch: which points survive, and seconds."""
    import torch
    import torchattacks

    began, survived = time.perf_counter(), []
    model = classifier.model.eval()
    attack = torchattacks.AutoAttack(model, eps=eps, n_classes=classifier.nb_classes, seed=SEED)
    for start in range(0, len(x), BATCH):
        points, labels = torch.from_numpy(x[start : start + BATCH]), torch.from_numpy(y[start : start + BATCH].astype(np.int64))
        found = attack(points, labels)
        with torch.no_grad():
            survived.append(((model(found).argmax(dim=1) == labels) & (model(points).argmax(dim=1) == labels)).numpy())
    return np.concatenate(survived), time.perf_counter() - began


def cost(classifier: Any, x: np.ndarray, y: np.ndarray, eps: float, natural: Any | None) -> dict[str, float]:
    """The whole of `evaluate`, certificates included, beside torchattacks and, on some of the points, ART's attacks."""
    told = dict(eps=eps, seeds=SEED, verbose=False, transfer_from=None if natural is None else {"natural": natural})
    bare = evaluate(classifier, x, y, battery="standard", checks=False, **told)
    checked = evaluate(classifier, x, y, battery="standard", **told)
    reference = evaluate(classifier, x, y, battery="reference", checks=False, **told)
    theirs, their_seconds = torchattacks_alone(classifier, x, y, eps)
    plain, plain_seconds = plainly(classifier, x[:N_PLAIN], y[:N_PLAIN], eps, classifier.nb_classes)
    return {
        "clean": bare.clean.value,
        "certified": 0.0 if bare.certified is None else bare.certified.value,
        "robust_standard": bare.robust.value,
        "robust_reference": reference.robust.value,
        "robust_torchattacks": float(theirs.mean()),
        "robust_standard_first": float(bare.survived[:N_PLAIN].mean()),
        "robust_art_first": float(plain.mean()),
        "symptoms": float(sum(one.status in ("flag", "fail") for one in checked.checks)),
        "seconds_standard": bare.seconds,
        "seconds_standard_checked": checked.seconds,
        "seconds_reference": reference.seconds,
        "seconds_torchattacks": their_seconds,
        "seconds_art": plain_seconds * len(x) / N_PLAIN,
        "ratio_of_checks": checked.seconds / bare.seconds,
        "standard_to_torchattacks": bare.seconds / their_seconds,
        "reference_to_torchattacks": reference.seconds / their_seconds,
    }


def beside_autoattack(classifier: Any, x: np.ndarray, y: np.ndarray, eps: float, problem: Problem) -> dict[str, float]:
    ours, our_seconds = attacked(classifier, x, y, eps, "standard")
    theirs, their_seconds = attacked(classifier, x, y, eps, "reference")
    _survived, seconds = plainly(classifier, x[:N_PLAIN], y[:N_PLAIN], eps, problem.nb_classes)
    plain = seconds * len(x) / N_PLAIN
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
    classifiers: dict[str, Any] = {}
    for job in plan_jobs(plan, data.sha256):
        training = store.training(job.training_key)
        if job.variant or job.seed or training is None:
            continue
        classifier = build_classifier(plan.problem_spec, framework, 0, plan.network)
        backend_for(classifier).load_weights(store.home / str(training.weights))
        classifiers[job.defence] = classifier
        if job.defence not in DEFENCES:
            continue
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
    if framework == "pytorch" and classifiers.keys() >= set(COMPARED.values()):
        natural = classifiers["natural"]
        costs = {
            f"{kind}_{key}": value
            for kind, defence in COMPARED.items()
            for key, value in cost(classifiers[defence], x, y, plan.eps, None if defence == "natural" else natural).items()
        }
        keep(
            "evaluation_cost",
            costs,
            {"plan": Path(file).stem, "n": N, "n_art": N_PLAIN, "eps": plan.eps, "seed": SEED, "batch_torchattacks": BATCH},
            command=f"python benchmarks/evaluation.py {file} {folder}",
            frameworks=["pytorch"],
            data=data.sha256,
            digits=4,
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
