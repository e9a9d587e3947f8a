"""What a training may do to its points before each epoch, alike for every defence."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator

from art_entropic.ops import Array

NO_AUGMENTATION = "none"
# Pixels on every side, the usual number for CIFAR-10.
PAD = 4
Augment = Callable[[Array, Generator], Array]


@dataclass(frozen=True)
class Augmentation:
    """One row of AUGMENTATIONS.

    Attributes:
        make: points (n, h, w, c) and random numbers -> other points of that shape; None leaves them as they are.
    """

    description: str
    make: Augment | None

    def of(self, channels_first: bool) -> Augment | None:
        """The same for points in a framework's order of axes."""
        make = self.make
        if make is None or not channels_first:
            return make
        return lambda x, rng: np.ascontiguousarray(np.moveaxis(make(np.moveaxis(x, 1, -1), rng), -1, 1))


def flip_and_crop(x: Array, rng: Generator) -> Array:
    """Each image mirrored or not, and moved by up to PAD pixels each way, with zeros behind it.

    Args:
        x: (n, h, w, c).
    Source: the usual augmentation of CIFAR-10 (He et al. 2016, arXiv 1512.03385, section 4.2).

    >>> flip_and_crop(np.arange(1.0, 4.0).reshape(1, 1, 3, 1), np.random.default_rng(16)).ravel()
    array([0., 3., 2.])
    """
    n, height, width, channels = x.shape
    padded = np.zeros((n, height + 2 * PAD, width + 2 * PAD, channels), x.dtype)
    padded[:, PAD : PAD + height, PAD : PAD + width] = x
    down, right = rng.integers(0, 2 * PAD + 1, (2, n))
    mirrored = rng.random((n, 1)) < 0.5
    columns = np.where(mirrored, np.arange(width)[::-1], np.arange(width)) + right[:, None]
    rows = np.arange(height) + down[:, None]
    cropped: Array = padded[np.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return cropped


AUGMENTATIONS: dict[str, Augmentation] = {
    NO_AUGMENTATION: Augmentation("as they are", None),
    "flip_crop": Augmentation(f"images mirrored at random and moved by up to {PAD} pixels", flip_and_crop),
}


def augmented(x: Array, augment: Augment | None, seed: int, epoch: int) -> Array:
    """The points of an epoch, which depend on seed and epoch alone."""
    return x if augment is None else augment(x, np.random.default_rng([seed, epoch, 3]))


def batches_of(
    x: Array, y: Array, augment: Augment | None, batch_size: int, seed: int, first_epoch: int = 0
) -> Iterator[tuple[Array, Array]]:
    """Batches of one epoch after another, without end, each epoch in an order of its own."""
    for epoch in itertools.count(first_epoch):
        points = augmented(x, augment, seed, epoch)
        order = np.random.default_rng([seed, epoch]).permutation(len(x))
        for start in range(0, len(x), batch_size):
            chosen = order[start : start + batch_size]
            yield points[chosen], y[chosen]


def generator_of(x: Array, y: Array, augment: Augment, batch_size: int, seed: int, first_epoch: int = 0) -> Any:
    """The same as an ART DataGenerator."""
    from art.data_generators import DataGenerator

    class Augmented(DataGenerator):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(size=len(x), batch_size=batch_size)
            self._batches = batches_of(x, y, augment, batch_size, seed, first_epoch)

        def get_batch(self) -> tuple[Array, Array]:
            return next(self._batches)

    return Augmented()
