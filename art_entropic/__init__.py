"""Entropic retraining for ART: robust neural networks without adversarial training.

Names are loaded when they are first used: importing this package loads neither ART nor a framework.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from art_entropic.analysis.profile import InformationProfile, information_profile
    from art_entropic.analysis.readings import PROFILE_MEASURES
    from art_entropic.backends.errors import BoundsMismatchError, MissingFrameworkError, NoIntervalRuleError
    from art_entropic.backends.registry import load_weights, move_to, save_weights
    from art_entropic.benchmark.defences import DEFENCES
    from art_entropic.benchmark.plan import BenchmarkPlan, Variant
    from art_entropic.benchmark.problems import PROBLEMS
    from art_entropic.benchmark.published_networks import NetworkRecord, list_networks, load_network, network_record
    from art_entropic.benchmark.run import run_benchmark
    from art_entropic.callbacks import TensorBoard
    from art_entropic.certificates import certify
    from art_entropic.choosing import smooth_activations, to_logits
    from art_entropic.evaluation.attacks import ATTACKS, BATTERIES
    from art_entropic.evaluation.checks import CHECKS
    from art_entropic.evaluation.compare import Comparison, compare, leaderboard_entry
    from art_entropic.evaluation.curve import security_curve
    from art_entropic.evaluation.evaluate import evaluate
    from art_entropic.evaluation.gallery import attacked_examples
    from art_entropic.evaluation.result import Evaluation
    from art_entropic.history import History, TrainingDivergedError
    from art_entropic.measures import MEASURES, Activation, Channel, Coding, Interval, Linear
    from art_entropic.report.page import write_report
    from art_entropic.schedule import Schedule
    from art_entropic.trainer import EntropicTrainer

__version__ = "0.1.0"

_HOMES = {
    "ATTACKS": "evaluation.attacks",
    "BATTERIES": "evaluation.attacks",
    "BenchmarkPlan": "benchmark.plan",
    "BoundsMismatchError": "backends.errors",
    "CHECKS": "evaluation.checks",
    "Comparison": "evaluation.compare",
    "MissingFrameworkError": "backends.errors",
    "NoIntervalRuleError": "backends.errors",
    "attacked_examples": "evaluation.gallery",
    "certify": "certificates",
    "compare": "evaluation.compare",
    "DEFENCES": "benchmark.defences",
    "EntropicTrainer": "trainer",
    "Evaluation": "evaluation.result",
    "History": "history",
    "InformationProfile": "analysis.profile",
    "MEASURES": "measures",
    "Activation": "measures",
    "Channel": "measures",
    "Coding": "measures",
    "Interval": "measures",
    "Linear": "measures",
    "Schedule": "schedule",
    "PROBLEMS": "benchmark.problems",
    "PROFILE_MEASURES": "analysis.readings",
    "TensorBoard": "callbacks",
    "Variant": "benchmark.plan",
    "TrainingDivergedError": "history",
    "evaluate": "evaluation.evaluate",
    "information_profile": "analysis.profile",
    "leaderboard_entry": "evaluation.compare",
    "list_networks": "benchmark.published_networks",
    "load_network": "benchmark.published_networks",
    "load_weights": "backends.registry",
    "move_to": "backends.registry",
    "NetworkRecord": "benchmark.published_networks",
    "network_record": "benchmark.published_networks",
    "run_benchmark": "benchmark.run",
    "save_weights": "backends.registry",
    "security_curve": "evaluation.curve",
    "smooth_activations": "choosing",
    "to_logits": "choosing",
    "write_report": "report.page",
}

__all__ = [
    "ATTACKS", "BATTERIES", "CHECKS", "DEFENCES", "MEASURES", "PROBLEMS", "PROFILE_MEASURES", "Activation", "BenchmarkPlan",
    "BoundsMismatchError", "Channel", "Coding", "Comparison", "EntropicTrainer", "Evaluation", "History", "InformationProfile",
    "Interval", "Linear", "MissingFrameworkError", "NetworkRecord", "NoIntervalRuleError", "Schedule", "TensorBoard",
    "TrainingDivergedError", "Variant", "__version__", "attacked_examples", "certify", "compare", "evaluate",
    "information_profile", "leaderboard_entry", "list_networks", "load_network", "load_weights", "move_to", "network_record",
    "run_benchmark", "save_weights", "security_curve", "smooth_activations", "to_logits", "write_report",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
