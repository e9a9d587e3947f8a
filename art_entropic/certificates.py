"""Certificates from interval bounds: points whose decision no perturbation of the ball can change."""

from __future__ import annotations

from typing import Any

import numpy as np

from art_entropic import intervals
from art_entropic._validate import check_eps, check_logits, check_points, positive_int
from art_entropic.backends.numpy import ops
from art_entropic.backends.registry import backend_for
from art_entropic.guards import BOUNDS_ROUNDING, check_bounds, check_predictions, some_of
from art_entropic.ops import Box


def certify(classifier: Any, x: np.ndarray, y: np.ndarray, eps: float, *, batch_size: int = 256) -> np.ndarray:
    """Which points are certified: correct for every perturbation |d|_inf <= eps within clip_values.

    Args:
        classifier: ART PyTorchClassifier, TensorFlowV2Classifier or KerasClassifier that returns logits.
        x: (n, ...), in the estimator's raw units.
        y: class indices (n,) or one-hot rows (n, nb_classes).
        eps: Linf radius, in the units of x.
    Returns:
        Booleans, (n,). Bounds are float32; a margin within their rounding, 1e-5 of the largest bound on a logit, certifies
        nothing. A point without a certificate may still be robust.
    Raises:
        ValueError, TypeError: an argument is not what it should be, or the classifier predicts by something else than its
            logits.
        NoIntervalRuleError: the network has an operation without an interval rule.
        BoundsMismatchError: the bounds are not those of this network: logits differ, or a point of the ball lies outside.
    """
    backend = backend_for(classifier)
    eps = check_eps(eps, classifier.clip_values)
    x, labels = check_points(classifier, x, y)
    batch_size = positive_int("batch_size", batch_size)
    check_predictions(backend, x)
    check_logits(backend.logits(some_of(x, 2)), classifier.nb_classes)
    check_bounds(backend, x, eps)
    lower, upper = (np.asarray(end, np.float64) for end in backend.logit_bounds(x, eps, batch_size))
    slack = BOUNDS_ROUNDING * np.maximum(np.abs(lower), np.abs(upper)).max(axis=1, keepdims=True)
    one_hot = ops.one_hot(labels, classifier.nb_classes)
    return np.asarray(intervals.certified(ops, Box(lower - slack, upper), one_hot) > 0, bool)
