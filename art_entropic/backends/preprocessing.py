"""ART preprocessing as numbers: every backend applies (x - mean) / std itself, inside its differentiable step."""

from __future__ import annotations

from typing import Any

import numpy as np


def standardisation(estimator: Any) -> tuple[np.ndarray, np.ndarray] | None:
    """(mean, std) of an ART estimator in shapes that broadcast against a batch of raw inputs, None where it has none.

    Raises:
        ValueError: the estimator has a preprocessing defence other than standardisation, or a standard deviation that is
            not positive.
    """
    from art.preprocessing.standardisation_mean_std.utils import broadcastable_mean_std

    result = None
    for operation in estimator.preprocessing_operations:
        kind = type(operation).__name__
        if not kind.startswith("StandardisationMeanStd") or result is not None:
            raise ValueError(
                f"`classifier` has the preprocessing defence {kind}, which is not supported: "
                "remove it, or make it part of the model"
            )
        mean, std = np.asarray(operation.mean, np.float32), np.asarray(operation.std, np.float32)
        if not (np.all(np.isfinite(mean)) and np.all(std > 0)):
            raise ValueError(f"`preprocessing` of `classifier` must have a finite mean and a positive std, got std {std!r}")
        if np.all(mean == 0) and np.all(std == 1):
            continue
        example = np.zeros((1, *estimator.input_shape), np.float32)
        result = broadcastable_mean_std(example, mean, std)
    return result
