"""Entropic retraining for ART: robust neural networks without adversarial training.

Names are loaded when they are first used: importing this package loads neither ART nor a framework.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from art_entropic.analysis import PROFILE_MEASURES, InformationProfile, information_profile
    from art_entropic.attacks import ATTACKS, BATTERIES
    from art_entropic.backends import (
        BoundsMismatchError,
        MissingFrameworkError,
        NoIntervalRuleError,
        load_weights,
        move_to,
        save_weights,
    )
    from art_entropic.benchmark import BenchmarkPlan, run_benchmark
    from art_entropic.callbacks import TensorBoard
    from art_entropic.certificates import certify
    from art_entropic.checks import CHECKS
    from art_entropic.comparison import Comparison, compare, leaderboard_entry
    from art_entropic.defences import DEFENCES
    from art_entropic.evaluation import Evaluation, evaluate
    from art_entropic.information import MEASURES
    from art_entropic.problems import PROBLEMS
    from art_entropic.recipes import smooth_activations, to_logits
    from art_entropic.report import write_report
    from art_entropic.trainer import EntropicTrainer, History, TrainingDivergedError

__version__ = "0.1.0.dev0"

_HOMES = {
    "ATTACKS": "attacks",
    "BATTERIES": "attacks",
    "BenchmarkPlan": "benchmark",
    "BoundsMismatchError": "backends",
    "CHECKS": "checks",
    "Comparison": "comparison",
    "MissingFrameworkError": "backends",
    "NoIntervalRuleError": "backends",
    "certify": "certificates",
    "compare": "comparison",
    "DEFENCES": "defences",
    "EntropicTrainer": "trainer",
    "Evaluation": "evaluation",
    "History": "trainer",
    "InformationProfile": "analysis",
    "MEASURES": "information",
    "PROBLEMS": "problems",
    "PROFILE_MEASURES": "analysis",
    "TensorBoard": "callbacks",
    "TrainingDivergedError": "trainer",
    "evaluate": "evaluation",
    "information_profile": "analysis",
    "leaderboard_entry": "comparison",
    "load_weights": "backends",
    "move_to": "backends",
    "run_benchmark": "benchmark",
    "save_weights": "backends",
    "smooth_activations": "recipes",
    "to_logits": "recipes",
    "write_report": "report",
}

__all__ = [
    "ATTACKS", "BATTERIES", "CHECKS", "DEFENCES", "MEASURES", "PROBLEMS", "PROFILE_MEASURES", "BenchmarkPlan",
    "BoundsMismatchError", "Comparison", "EntropicTrainer", "Evaluation", "History", "InformationProfile",
    "MissingFrameworkError", "NoIntervalRuleError", "TensorBoard", "TrainingDivergedError", "__version__", "certify", "compare",
    "evaluate", "information_profile", "leaderboard_entry", "load_weights", "move_to", "run_benchmark", "save_weights",
    "smooth_activations", "to_logits", "write_report",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
