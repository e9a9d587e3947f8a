"""Certificates from interval bounds: points whose decision no perturbation of the ball can change."""

from __future__ import annotations

from typing import Any

import numpy as np

from art_entropic import intervals
from art_entropic._validate import check_eps, check_inputs, check_labels, positive_int
from art_entropic.backends import Interval, backend_for
from art_entropic.backends.numpy import ops


def certify(classifier: Any, x: np.ndarray, y: np.ndarray, eps: float, *, batch_size: int = 256) -> np.ndarray:
    """Which points are certified: correct for every perturbation |d|_inf <= eps within clip_values.

    Args:
        classifier: ART PyTorchClassifier, TensorFlowV2Classifier or KerasClassifier that returns logits.
        x: (n, ...), in the estimator's raw units.
        y: class indices (n,) or one-hot rows (n, nb_classes).
        eps: Linf radius, in the units of x.
    Returns:
        Booleans, (n,). Sound up to the rounding of float32; a point without a certificate may still be robust.
    Raises:
        ValueError, TypeError: an argument is not what it should be.
        NoIntervalRuleError: the network has an operation without an interval rule.
    """
    backend = backend_for(classifier)
    eps = check_eps(eps, classifier.clip_values)
    x = check_inputs(x, input_shape=tuple(classifier.input_shape), clip_values=classifier.clip_values)
    labels = check_labels(y, n=len(x), nb_classes=classifier.nb_classes)
    bounds = backend.intervals(x, eps, positive_int("batch_size", batch_size))
    lower, upper = list(bounds.values())[-1]
    box = Interval(np.asarray(lower, np.float64), np.asarray(upper, np.float64))
    certain = intervals.certified(ops, box, ops.one_hot(labels, classifier.nb_classes)) > 0
    return np.asarray(certain, bool)
