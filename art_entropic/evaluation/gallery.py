"""Points that fell, beside what they fell to."""

from __future__ import annotations

from typing import Any

import numpy as np

from art_entropic._validate import check_points, whole_number
from art_entropic.evaluation.result import Evaluation, digest_of
from art_entropic.evaluation.target import Target
from art_entropic.ops import Array
from art_entropic.records import AttackedExample


def attacked_examples(classifier: Any, x: Any, y: Any, result: Evaluation, number: int = 10) -> list[AttackedExample]:
    """The first point of each class that fell in an evaluation, as pictures.

    Args:
        classifier: the one that `evaluate` was given.
        x: the points that it was given.
        y: their classes.
        result: what it found.
        number: of examples, no more.
    Returns:
        In the order of their classes; none where x is no image data.
    Raises:
        TypeError: not a supported estimator.
        ValueError: `x` and `y` are not the points of `result`.
    """
    number = whole_number("number", number)
    x, y = check_points(classifier, x, y)
    if digest_of(classifier, x, y) != result.points_sha256:
        raise ValueError("`x` and `y` must be the points that `result` was evaluated on, got different ones")
    fell_to = {int(point): tally.x_adv[point] for tally in result.runs.values() for point in np.flatnonzero(tally.broken)}
    fallen = np.array(sorted(fell_to), dtype=np.int64)
    chosen = [int(fallen[y[fallen] == label][0]) for label in np.unique(y[fallen])][:number]
    if not chosen or x.ndim != 4:
        return []
    target, x_adv = Target.of(classifier, input_shape=x.shape[1:]), np.stack([fell_to[point] for point in chosen])
    clean_images, attacked_images = (_images(classifier, points) for points in (x[chosen], x_adv))
    return [
        AttackedExample(
            index=point,
            label=int(y[point]),
            clean_prediction=int(y[point]),  # a point that is wrong without an attack was never attacked
            attacked_prediction=int(prediction),
            shape=clean.shape,
            clean=clean.ravel().tolist(),
            attacked=attacked.ravel().tolist(),
        )
        for point, prediction, clean, attacked in zip(chosen, target.predict(x_adv), clean_images, attacked_images, strict=True)
    ]


def _images(classifier: Any, points: Array) -> Array:
    """Points as images: (n, h, w, c), the clip range mapped to [0, 1]."""
    clip_values = classifier.clip_values
    low, high = (points.min(), points.max()) if clip_values is None else map(np.asarray, clip_values)
    scaled = np.clip((points - low) / np.maximum(high - low, 1e-12), 0.0, 1.0)
    return np.moveaxis(scaled, 1, -1) if classifier.channels_first else scaled
