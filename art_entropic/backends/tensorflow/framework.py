"""TensorFlow as a `Framework`: this module is one, and mypy holds it against the protocol in `registry`."""

from __future__ import annotations

from typing import Any

from art_entropic.backends.tensorflow.art import before_each_step, for_art_trainers
from art_entropic.backends.tensorflow.backend import TensorFlowBackend
from art_entropic.backends.tensorflow.building import build_classifier, state_of
from art_entropic.backends.tensorflow.devices import accelerators, device_title
from art_entropic.backends.tensorflow.generators import untouched


def estimator_backend(estimator: Any) -> TensorFlowBackend:
    """The backend of an ART TensorFlowV2Classifier or KerasClassifier."""
    return TensorFlowBackend(estimator)


reference_attack = None  # torchattacks knows PyTorch alone

__all__ = [
    "accelerators",
    "before_each_step",
    "build_classifier",
    "device_title",
    "estimator_backend",
    "for_art_trainers",
    "reference_attack",
    "state_of",
    "untouched",
]
