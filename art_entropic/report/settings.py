"""What a training was told that is not what it is told by default."""

from __future__ import annotations

import math
from typing import Any

from art_entropic.benchmark.defences import VALIDATION_SHARE
from art_entropic.benchmark.problems import PROBLEMS
from art_entropic.benchmark.provenance import OTHER_LOAD
from art_entropic.benchmark.store import TITLE
from art_entropic.measures import MEASURES
from art_entropic.records import Setting, TrainingRecord
from art_entropic.schedule import DECAY

TRAINER = "trainer."
# What a report tells elsewhere.
_ELSEWHERE = ("data", TITLE, OTHER_LOAD, "trainer.seed", "trainer.reason", "trainer.n")


def unusual(training: TrainingRecord) -> dict[str, Setting]:
    """The measure by name, and all settings that differ from its defaults and the problem's.

    What is not known to have a default is told.
    """
    usual = _usual(training)
    return {
        name.removeprefix(TRAINER): value
        for name, value in training.settings.items()
        if name not in _ELSEWHERE and not _is_of_variant(name, training) and not (name in usual and value == usual[name])
    }


def _is_of_variant(name: str, training: TrainingRecord) -> bool:
    """Whether a variant asks for what the history of its training tells too."""
    same = {"measure.type": f"{TRAINER}measure"}.get(name, name.replace("measure.", TRAINER, 1))
    return name.startswith("measure.") and same in training.settings


def _usual(training: TrainingRecord) -> dict[str, Any]:
    problem = PROBLEMS.get(training.problem)
    rate = training.settings.get("learning_rate")
    usual: dict[str, Any] = {
        "learning_rate": None if problem is None else problem.learning_rate,
        "validation_share": VALIDATION_SHARE,
        "start": "natural",
        "trainer.nb_epochs": training.nb_epochs,
        "trainer.batch_size": training.batch_size,
        "trainer.norm": training.norm,
        "trainer.learning_rate": rate,
        "trainer.learning_rates": training.settings.get("trainer.learning_rates") if _is_rate(training, rate) else None,
        "trainer.class_weights": None,
        "trainer.label_smoothing": 0.0,
        "trainer.scheduler": None,
        "trainer.decay": DECAY,
    }
    name = training.settings.get("trainer.measure")
    if name in MEASURES:
        measure = MEASURES[str(name)]()
        facts = {**measure.controls(training.eps)._asdict(), **measure.facts()}
        # Older records have another name for it.
        facts["pure"] = facts["pure_phase"]
        usual |= {f"{TRAINER}{fact}": value for fact, value in facts.items() if fact != "measure"}
    return usual


def _is_rate(training: TrainingRecord, rate: Setting) -> bool:
    """Whether the one learning rate of the optimizer is that of the problem, up to float32."""
    told = str(training.settings.get("trainer.learning_rates", "")).strip("[]")
    return isinstance(rate, float) and told.replace(".", "", 1).isdigit() and math.isclose(float(told), rate, rel_tol=1e-6)
