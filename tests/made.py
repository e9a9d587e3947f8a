"""Records for tests of what is done with them: reports, comparisons of runs, full disks."""

from __future__ import annotations

from typing import Any

import numpy as np

from art_entropic.records import (
    Accuracy,
    AnyRecord,
    AttackedExample,
    AttackOutcome,
    CurvePoint,
    EvaluationRecord,
    ProfileRecord,
    ProfileRow,
    Provenance,
    TrainingRecord,
)

N = 200
PROVENANCE = Provenance(
    created="2026-01-02T03:04:05+00:00",
    command="art-entropic benchmark --problem digits",
    python="3.11.2",
    platform="Linux",
    processor="A Processor & Co",
    cores=2,
    versions={"numpy": "2.4.6", "torch": "2.13.0"},
    data_sha256="ab" * 32,
)


def accuracy(share: float, n: int = N) -> Accuracy:
    """An accuracy with an interval of plus and minus five points, easy to recognise in a report."""
    return Accuracy(correct=round(share * n), n=n, low=max(share - 0.05, 0.0), high=min(share + 0.05, 1.0))


def training(defence: str, framework: str = "pytorch", seed: int = 0, **changes: Any) -> TrainingRecord:
    facts: dict[str, Any] = {
        "key": f"t-{framework}-{defence}-{seed}", "problem": "digits", "framework": framework, "defence": defence,
        "seed": seed, "eps": 0.15, "status": "done", "nb_epochs": 20, "batch_size": 64, "n_train": 90, "seconds": 10.0,
        "notes": (), "settings": {"learning_rate": 0.001}, "provenance": PROVENANCE,
    }  # fmt: skip
    return TrainingRecord(**{**facts, **changes})


def evaluation(
    defence: str, robust: float, framework: str = "pytorch", seed: int = 0, clean: float = 0.95, **changes: Any
) -> EvaluationRecord:
    facts: dict[str, Any] = {
        "key": f"e-{framework}-{defence}-{seed}", "training_key": f"t-{framework}-{defence}-{seed}",
        "problem": "digits", "framework": framework, "defence": defence, "seed": seed, "eps": 0.15,
        "battery": "standard", "clean": accuracy(clean), "robust": accuracy(robust), "attacks": [], "seconds": 3.0,
        "provenance": PROVENANCE,
    }  # fmt: skip
    return EvaluationRecord(**{**facts, **changes})


def curve(robust: float) -> list[CurvePoint]:
    return [
        CurvePoint(eps=eps, robust=accuracy(float(np.clip(0.97 - (0.97 - robust) * (eps / 0.15) ** 1.5, 0, 1))))
        for eps in (0.0, 0.05, 0.1, 0.15, 0.2, 0.3)
    ]


def example(index: int, label: int, says: int, size: int = 8) -> AttackedExample:
    rng = np.random.default_rng(index)
    clean = rng.random(size * size)
    return AttackedExample(
        index=index, label=label, clean_prediction=label, attacked_prediction=says, shape=(size, size, 1),
        clean=clean.tolist(), attacked=np.clip(clean + rng.uniform(-0.15, 0.15, clean.shape), 0, 1).tolist(),
    )  # fmt: skip


def comparison(entropic: float = 0.80, madry: float = 0.70) -> list[AnyRecord]:
    """Both frameworks, natural, entropic and MadryPGD; TRADES is missing on TensorFlow."""
    records: list[AnyRecord] = []
    for framework in ("pytorch", "tensorflow"):
        cells = (("natural", 0.10, 5.0), ("entropic", entropic, 12.0), ("madry_pgd", madry, 40.0))
        for defence, robust, seconds in cells:
            says = 3 if defence == "natural" else None
            notes = ("ART's MadryPGD takes no validation data",) if defence == "madry_pgd" else ()
            records.append(training(defence, framework, seconds=seconds, notes=notes))
            records.append(
                evaluation(
                    defence,
                    robust,
                    framework,
                    certified=accuracy(0.6) if defence == "entropic" else None,
                    curve=curve(robust),
                    examples=[example(index, index, index if says is None else says) for index in range(6)],
                    attacks=[AttackOutcome(attack="apgd_ce", attacked=190, broken=20, seconds=1.0)],
                )
            )
    reason = "ART 1.20.1 has no TRADES for TensorFlow"
    records.append(training("trades", "tensorflow", status="unavailable", reason=reason, seconds=0.0, n_train=0))
    return [*records, profile("pytorch"), profile("tensorflow")]


def profile(framework: str, **changes: Any) -> ProfileRecord:
    """Two layers of three networks: of their units 10 and 2, half of what stands in `values` per unit."""
    rows = []
    for model, value in (("natural", 4.0), ("madry_pgd", 2.0), ("entropic", 1.0)):
        for measure in ("interval", "rivals"):
            for position, (layer, units) in enumerate((("input", 10), ("logits", 2))):
                total = units * value / 2
                rows.append(
                    ProfileRow(
                        model=model, layer=layer, position=position, depth=float(position), units=units, measure=measure,
                        value=total, low=0.9 * total, high=1.1 * total, n=50,
                    )
                )  # fmt: skip
    known: dict[str, Any] = {
        "key": f"p-{framework}", "problem": "digits", "framework": framework, "defence": "", "seed": 0, "eps": 0.15, "n": 50,
        "resolution": 0.1, "copies": 16, "rows": rows, "seconds": 1.0, "provenance": PROVENANCE, "notes": ("a <note>",),
    }  # fmt: skip
    return ProfileRecord(**{**known, **changes})
