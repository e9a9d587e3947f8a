"""PyTorch as a `Framework`: this module is one, and mypy holds it against the protocol in `registry`."""

from __future__ import annotations

from typing import Any

from art_entropic.backends.torch.art import before_each_step, for_art_trainers, reference_attack, untouched
from art_entropic.backends.torch.backend import TorchBackend
from art_entropic.backends.torch.building import build_classifier, state_of
from art_entropic.backends.torch.devices import accelerators, device_title


def estimator_backend(estimator: Any) -> TorchBackend:
    """The backend of an ART PyTorchClassifier."""
    return TorchBackend(estimator)


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
